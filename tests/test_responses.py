"""Masks, text to tokens and back, rows and columns: by hand."""

import pytest
import torch
from torch import tensor

from minippo.rollout import Responses, encode, response_mask
from tests import tiny

# ---- left_pad, response_mask, text to tokens and back


@pytest.mark.parametrize(
    ("ids", "mask"),
    [
        ([5, 6, 7], [1, 1, 1]),  # truncated: no EOS
        ([5, 6, 0], [1, 1, 1]),  # EOS on the last column is real
        ([5, 0, 0], [1, 1, 0]),  # the padding is EOS too
        ([0, 0, 0], [1, 0, 0]),  # EOS at once: one real token
        ([5, 0, 6], [1, 1, 0]),  # nothing after EOS is real, whatever it is
    ],
)
def test_response_mask_by_hand(ids, mask):
    assert response_mask(tensor([ids]), tiny.EOS).int().tolist() == [mask]


def test_trim_drops_the_columns_that_are_padding_in_every_row():
    wide = Responses(
        tensor([[0, 0, 1], [0, 2, 3]]), tensor([[0, 0, 1], [0, 1, 1]]).bool(),
        tensor([[5, 0, 0, 0], [6, 7, 0, 0]]), tensor([[1, 1, 0, 0], [1, 1, 1, 0]]).bool(),
    )  # fmt: skip
    narrow = wide.trim()
    assert narrow.prompt_ids.tolist() == [[0, 1], [2, 3]]
    assert narrow.ids.tolist() == [[5, 0, 0], [6, 7, 0]]
    assert narrow.mask.int().tolist() == [[1, 1, 0], [1, 1, 1]]


# ---- rows of like length


@pytest.mark.parametrize(
    ("lengths", "size", "parts"),
    [
        ([4, 1, 3, 2], None, [[1, 3], [2, 0]]),  # 2 * (4 - 2) of 16 columns are left out
        ([4, 1, 3, 2], 3, [[1, 3, 2], [0]]),
        ([4, 4, 1, 4], None, [[2, 0, 1, 3]]),  # halves would be no shorter
        ([3], None, [[0]]),
        ([3, 1, 2], None, [[1, 2], [0]]),
    ],
)
def test_rows_of_similar_length_are_put_together(lengths, size, parts):
    mask = torch.arange(4) < tensor(lengths).unsqueeze(1)
    ids = torch.ones_like(mask).long()
    rows = Responses(ids, mask, ids, mask).by_length(size)
    assert [part.tolist() for part in rows] == parts


# ---- columns

NAMED = [{"prompt": p, "answer": p.upper(), "number": i} for i, p in enumerate(tiny.PROMPTS[:4])]


@pytest.mark.parametrize(
    ("rows", "numbers"),
    [
        (tensor([3, 1, 1]), [3, 1, 1]),
        (tensor([False, True, True, False]), [1, 2]),
        (slice(1, None, 2), [1, 3]),
        (slice(0, 0), []),
    ],
)
def test_columns_travel_with_the_rows_that_are_taken(rows, numbers):
    whole = encode(tiny.tokenizer(), NAMED, ["good", "bad", "so bad", "fine"])
    part = whole[rows]
    assert part.columns == {"answer": [NAMED[i]["answer"] for i in numbers], "number": numbers}
    assert part.ids.tolist() == whole.ids[numbers].tolist()


def test_columns_stay_when_responses_are_trimmed_or_moved():
    responses = encode(tiny.tokenizer(), NAMED, ["good", "bad", "so bad", "fine"])
    for same in (responses.trim(), responses.to(torch.device("cpu"))):
        assert same.columns == responses.columns == {
            "answer": ["A B", "C", "D E F", "B B B A"], "number": [0, 1, 2, 3],
        }  # fmt: skip


def test_columns_reach_the_score_and_the_rollout_of_a_trainer():
    seen = []

    def score(responses):
        seen.append(responses.columns)
        return tensor([float(n) for n in responses.columns["number"]])

    config = {"rollout_size": 4, "minibatch_size": 2, "micro_batch_size": 1}
    rollout = tiny.trainer(score=score, **config).collect(NAMED)
    assert seen == [{"answer": ["A B", "C", "D E F", "B B B A"], "number": [0, 1, 2, 3]}]
    assert rollout.scores.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert rollout[tensor([2, 0])].responses.columns["number"] == [2, 0]
