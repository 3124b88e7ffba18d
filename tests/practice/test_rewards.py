"""Adapters of scores."""

import math

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from minippo.practice.rewards import normalized_score
from minippo.texts import encode
from tests import tiny
from tests.shapes import refuses


def in_turn(*batches, **options):
    """A normalized score of these batches, one after the other: what each becomes."""
    waiting = [tensor(batch) for batch in batches]
    score = normalized_score(lambda _: waiting.pop(0), **options)
    rows = [encode(tiny.tokenizer(), ["a"] * len(b), ["good"] * len(b)) for b in batches]
    return [score(responses).tolist() for responses in rows]


def test_normalized_scores_by_their_running_mean_and_population_deviation_by_hand():
    # 1 and 3: mean 2, deviation 1. With 8: mean 4, variance (9 + 1 + 16) / 3.
    # With 0 and 3: mean 3, variance (4 + 0 + 25 + 9 + 0) / 5.
    first, second, third = in_turn([1.0, 3.0], [8.0], [0.0, 3.0])
    assert first == pytest.approx([-1.0, 1.0])
    assert second == pytest.approx([4 / math.sqrt(26 / 3)])
    assert third == pytest.approx([-3 / math.sqrt(38 / 5), 0.0], abs=1e-6)


def test_normalized_scores_by_a_fixed_mean_and_deviation_by_hand():
    first, second = in_turn([1.0, 4.0], [100.0], mean=2.0, std=4.0)
    assert first == [-0.25, 0.5]
    assert second == [24.5]  # whatever came before


def test_normalized_scores_are_clipped_in_deviations_on_both_sides():
    assert in_turn([1.0, 3.0, 30.0, -30.0], mean=2.0, std=2.0, clip=1.5) == [[-0.5, 0.5, 1.5, -1.5]]
    [running] = in_turn([0.0] * 15 + [1.0], clip=3.0)  # mean 1/16, variance 15/256
    assert running == pytest.approx([-1 / math.sqrt(15)] * 15 + [3.0])


def test_normalized_scores_that_are_all_equal_are_zero():
    assert in_turn([5.0, 5.0], [5.0]) == [[0.0, 0.0], [0.0]]


@pytest.mark.parametrize(
    ("options", "argument", "came"),
    [
        ({"mean": 1.0}, "mean and std", "(1.0, None)"),
        ({"std": 1.0}, "mean and std", "(None, 1.0)"),
        ({"mean": math.nan, "std": 1.0}, "mean", "nan"),
        ({"mean": 0.0, "std": 0.0}, "std", "0.0"),
        ({"clip": 0.0}, "clip", "0.0"),
    ],
)
def test_wrong_arguments_of_a_normalized_score_are_refused(options, argument, came):
    with refuses(f"normalized_score: {argument}", came):
        normalized_score(tiny.spread, **options)


def test_a_normalized_score_needs_one_number_per_response():
    score = normalized_score(lambda r: torch.ones(r.ids.shape))
    with refuses("normalized_score: score", "one per token"):
        score(encode(tiny.tokenizer(), ["a"], ["b"]))


def test_a_deviation_and_a_clip_below_one_are_taken():
    responses = encode(tiny.tokenizer(), ["a", "b"], ["c", "d"])
    score = normalized_score(lambda _: tensor([2.0, 1.1]), mean=1.0, std=0.5, clip=0.5)
    assert_close(score(responses), tensor([0.5, 0.2]))  # (2 - 1) / .5 is clipped
