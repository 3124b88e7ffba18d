"""Stage 2: the Bradley-Terry loss of pairs, and a model that learns which word is wanted."""

import itertools
import math

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from minippo.reward_model import preference_accuracy, train_reward_model
from minippo.rollout import encode
from minippo.sft import FitConfig
from tests import tiny
from tests.shapes import refuses

PROMPTS = ["a", "b c", "d e f", "f"]
CHOSEN = ["good", "so good", "good fine", "very good good"]
REJECTED = ["bad", "so bad bad", "fine", "very bad"]


def pairs():
    return (encode(tiny.tokenizer(), PROMPTS, side) for side in (CHOSEN, REJECTED))


def test_the_first_reward_model_loss_is_that_of_the_pairs_by_hand():
    model, (chosen, rejected) = tiny.reward_model(), pairs()
    with torch.no_grad():
        model.body.score.weight.mul_(50)
        gaps = [
            (model(a.tokens, a.attention_mask) - model(b.tokens, b.attention_mask)).item()
            for a, b in ((chosen[i : i + 1], rejected[i : i + 1]) for i in range(4))
        ]
    expected = sum(math.log(1 + math.exp(-gap)) for gap in gaps) / 4
    assert abs(expected - math.log(2)) > 0.01
    losses = train_reward_model(model, chosen, rejected, FitConfig(minibatch_size=4))
    assert_close(losses[0], expected, rtol=1e-4, atol=1e-5)


def test_a_reward_model_learns_which_word_is_wanted_after_prompts_it_has_not_seen():
    model, letters = tiny.reward_model(), "abcdef"
    seen = [f"{x} {y}" for x, y in itertools.combinations(letters, 2)]
    unseen = [f"{y} {x}" for x, y in itertools.combinations(letters, 2)]

    def sides(prompts):
        return [encode(tiny.tokenizer(), prompts, [word] * 15) for word in ("so good", "so bad")]

    config = FitConfig(epochs=20, minibatch_size=5, learning_rate=0.01, warmup_steps=5)
    losses = train_reward_model(model, *sides(seen), config)
    assert losses[0] > 0.5 > 0.1 > losses[-1]
    assert not model.training
    scores = [model(rows.tokens, rows.attention_mask).detach() for rows in sides(unseen)]
    assert preference_accuracy(*scores) >= 14 / 15


def test_each_chosen_response_has_its_rejected_one():
    chosen, rejected = pairs()
    with refuses("train_reward_model: rejected", "3"):
        train_reward_model(tiny.reward_model(), chosen, rejected[:3], FitConfig())


@pytest.mark.parametrize(
    ("chosen", "rejected", "accuracy"),
    [
        ([1.0, 2.0], [0.0, 1.0], 1.0),
        ([0.0, 1.0], [1.0, 2.0], 0.0),
        ([1.0, 1.0], [1.0, 1.0], 0.5),  # a model that says nothing is no better than a coin
        ([3.0, 1.0, 0.0, 0.0], [1.0, 3.0, 0.0, -1.0], 0.625),
    ],
)
def test_pairwise_accuracy_by_hand(chosen, rejected, accuracy):
    assert preference_accuracy(tensor(chosen), tensor(rejected)) == accuracy


def test_accuracy_compares_pairs():
    with pytest.raises(ValueError, match=r"^preference_accuracy: rejected must be a tensor float"):
        preference_accuracy(tensor([1.0]), tensor([1.0, 2.0]))
