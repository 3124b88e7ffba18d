"""Credit, minibatches, learning rates and what a step reports, by hand."""

from dataclasses import replace

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from minippo.checks import definitions as slow
from minippo.ppo import Credit, PPOConfig, assign_credit, summarise
from minippo.rollout import Responses, Rollout
from tests import tiny
from tests.tiny import PROMPTS, SEQUENCE


def test_the_number_of_optimizer_steps_is_epochs_times_minibatches():
    stats = tiny.run(1, epochs=3, minibatch_size=4).history[0]  # 4 rows and 2
    assert stats["optimizer_steps"] == 6


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [0.1, 0.1, 0.1, 0.1]),
        ({"warmup_steps": 2}, [0.05, 0.1, 0.1, 0.1]),
        ({"total_steps": 4}, [0.1, 0.075, 0.05, 0.025]),
        ({"warmup_steps": 2, "total_steps": 4}, [0.05, 0.075, 0.05, 0.025]),
    ],
)
def test_the_learning_rate_of_each_rollout_by_hand(changes, expected):
    used = []
    trainer = tiny.trainer(
        score=tiny.spread, learning_rate=0.1, max_grad_norm=1e-9, epochs=1, **changes,
        callbacks=[lambda trainer, _: used.append(trainer.optimizer.param_groups[0]["lr"])],
    )  # fmt: skip
    tiny.run(4, trainer=trainer)
    assert_close(used, expected)
    assert_close([stats["learning_rate"] for stats in trainer.history], expected)


# ---- advantages, by hand


def rollout_by_hand(**changes):
    """Row 0 ended after two tokens, row 1 was truncated after three."""
    mask = tensor([[True, True, False], [True, True, True]])
    prompts = tensor([[1], [2]])
    parts = {
        "log_probs": torch.zeros(2, 3),
        "ref_log_probs": torch.zeros(2, 3),
        "values": tensor([[0.5, 0.25, 0.0], [1.0, 0.0, -1.0]]),
        "scores": tensor([2.0, 3.0]),
        "kl": tensor([[0.1, 0.2, 0.0], [0.4, 0.0, -0.2]]),
        "truncated": tensor([False, True]),
        "bootstrap": tensor([0.0, 7.0]),
    }
    responses = Responses(prompts, prompts > 0, tensor([[5, tiny.EOS, tiny.EOS], [5, 6, 7]]), mask)
    return Rollout(responses, **(parts | changes))


MONTE_CARLO = {"gamma": 1.0, "lam": 1.0, "whiten_advantages": False, "kl_coef": 0.5}
PAID = tensor([[0.0, 2.0, 9.0], [1.0, 1.0, 1.0]])  # 9 is on padding


@pytest.mark.parametrize(
    ("changes", "scores", "rewards", "returns"),
    [
        # -.5 KL a token, and the score on the last real one; returns are their sums to the right.
        ({}, None, [[-0.05, 1.9, 0], [-0.2, 0, 3.1]], [[1.85, 1.9, 0], [2.9, 3.1, 3.1]]),
        # Token by token: 0, 2 and 1, 1, 1.
        ({}, PAID, [[-0.05, 1.9, 0], [0.8, 1.0, 1.1]], [[1.85, 1.9, 0], [2.9, 2.1, 1.1]]),
        # Row 1 was truncated: 2 less at its end.
        (
            {"missing_eos_penalty": 2.0}, None,
            [[-0.05, 1.9, 0], [-0.2, 0, 1.1]], [[1.85, 1.9, 0], [0.9, 1.1, 1.1]],
        ),
        (
            {"missing_eos_penalty": 2.0}, PAID,
            [[-0.05, 1.9, 0], [0.8, 1.0, -0.9]], [[1.85, 1.9, 0], [0.9, 0.1, -0.9]],
        ),
    ],
)  # fmt: skip
def test_monte_carlo_credit_by_hand(changes, scores, rewards, returns):
    trainer = tiny.trainer(**MONTE_CARLO, **changes)
    rollout = rollout_by_hand(**({} if scores is None else {"scores": scores}))
    got_rewards, advantages, got_returns, _ = trainer.credit(rollout)
    assert_close(got_rewards, tensor(rewards))
    assert_close(got_returns, tensor(returns))
    assert_close(advantages, torch.where(rollout.mask, tensor(returns) - rollout.values, 0.0))


def test_discounted_credit_is_that_of_the_definitions():
    changes = {"gamma": 0.9, "lam": 0.6, "kl_coef": 0.5}
    rollout = rollout_by_hand()
    mask, values = rollout.mask.tolist(), rollout.values.tolist()
    rewards = slow.shape_rewards(rollout.scores.tolist(), rollout.kl.tolist(), mask, 0.5)
    raw = slow.gae(rewards, values, mask, 0.9, 0.6)
    returns = tensor(raw) + torch.where(rollout.mask, rollout.values, 0.0)
    for whiten in (False, True):
        trainer = tiny.trainer(whiten_advantages=whiten, **changes)
        _, advantages, got, whitened = trainer.credit(rollout)
        expected = slow.whiten(raw, mask) if whiten else raw
        assert_close(advantages, tensor(raw), rtol=1e-5, atol=1e-5)
        assert_close(whitened, tensor(expected), rtol=1e-5, atol=1e-5)
        assert_close(got, returns, rtol=1e-5, atol=1e-5)  # from the raw advantages


def test_a_response_of_one_token_is_whitened_with_the_others():
    # Scores 2 and 3, no KL, V = .5 and 1: A = 1.5 and 2, whitened -1 and 1.
    rollout = rollout_by_hand(kl=torch.zeros(2, 3))
    mask = tensor([[True, False, False], [True, True, True]])
    responses = replace(rollout.responses, mask=mask)
    rollout = replace(rollout, responses=responses)
    config = tiny.trainer(**SEQUENCE).config
    assert_close(assign_credit(rollout, config, kl_coef=0.0).whitened, tensor([-1.0, 1.0]))


def test_sequence_credit_by_hand():
    # Row 0: 2 - .5 * .3 = 1.85, less V = .5. Row 1: 3 - 2 - .5 * .2 = .9, less V = 1.
    options = SEQUENCE | {"kl_coef": 0.5, "missing_eos_penalty": 2.0}
    trainer = tiny.trainer(whiten_advantages=False, **options)
    _, advantages, returns, _ = trainer.credit(rollout_by_hand())
    assert_close(returns, tensor([1.85, 0.9]))
    assert_close(advantages, tensor([1.35, -0.1]))
    _, _, returns, whitened = tiny.trainer(**options).credit(rollout_by_hand())
    assert_close(whitened, tensor([1.0, -1.0]))  # two numbers, whitened
    assert_close(returns, tensor([1.85, 0.9]))


@tiny.another_reference
def test_the_statistics_of_a_step_by_hand():
    trainer = tiny.trainer(
        policy=tiny.shallow(3), reference=tiny.shallow(7), score=tiny.spread, kl_coef=0.05
    )
    rollout = trainer.collect(PROMPTS)
    lengths = [sum(row) for row in rollout.mask.tolist()]
    k1 = [
        sum(a - b for a, b in zip(p[:n], q[:n], strict=True))
        for p, q, n in zip(
            rollout.log_probs.tolist(), rollout.ref_log_probs.tolist(), lengths, strict=True
        )
    ]
    score = rollout.scores.mean().item()
    ended = sum(
        (row[: lengths[i]] == tiny.EOS).any() for i, row in enumerate(rollout.responses.ids)
    )
    values, returns = rollout.values.tolist(), trainer.credit(rollout).returns.tolist()
    stats = trainer.update(rollout)
    expected = {
        "step": 1,
        "score": score,
        "kl": sum(k1) / 6,
        "reward": score - 0.05 * sum(k1) / 6,
        "response_length": sum(lengths) / 6,
        "truncated": 1 - ended.item() / 6,
        "explained_variance": slow.explained_variance(values, returns, rollout.mask.tolist()),
        "kl_coef": 0.05,
        "kl_loss_coef": 0.0,
        "optimizer_steps": 2,
    }
    for name, value in expected.items():
        assert_close(stats[name], value, rtol=1e-4, atol=1e-5, check_dtype=False, msg=name)
    assert trainer.history == [stats]


DONE = [
    {"policy_loss": 1.0, "ratio_error": 0.25, "stopped": 0.0},
    {"policy_loss": 3.0, "ratio_error": 0.75, "stopped": 1.0},
]


def test_the_summary_of_a_rollout_by_hand():
    log_probs = tensor([[0.1, 0.2, 9.0], [0.4, 0.0, 0.1]])  # 9 is on padding
    rollout, config = rollout_by_hand(log_probs=log_probs), PPOConfig(**MONTE_CARLO)
    credit = assign_credit(rollout, config, kl_coef=0.5)
    expected = {
        "score": 2.5,
        "reward": 2.375,  # 2 - .5 * .3 and 3 - .5 * .2
        "kl": 0.4,  # .3 and .5
        "response_length": 2.5,  # 2 and 3 tokens
        "truncated": 0.5,
        # Returns 1.85, 1.9, 2.9, 3.1, 3.1: variance .3276. Less the values 1.35, 1.65, 1.9, 3.1,
        # 4.1: variance 1.0586.
        "explained_variance": 1 - 1.0586 / 0.3276,
        "optimizer_steps": 1.0,  # the second stopped before its step
        "first_ratio_error": 0.25,
        "policy_loss": 2.0,
        "ratio_error": 0.5,
    }
    assert summarise(rollout, credit, DONE, config) == pytest.approx(expected, abs=1e-5)


def test_the_summary_at_the_sequence_level_takes_the_first_value_of_each_response():
    # Two responses of one token. V(prompt) .5, 1, 2 for returns 1, 1, 4: these vary by 2, and
    # 1/2, 0, 2, what is left of them, by 13/18.
    mask, zeros = tensor([[True, False], [True, False], [True, True]]), torch.zeros(3, 2)
    values = tensor([[0.5, 7.0], [1.0, 7.0], [2.0, -7.0]])
    responses = Responses(mask.long(), mask, mask.long(), mask)
    rollout = Rollout(responses, zeros, zeros, values, zeros[:, 0], zeros, ~mask[:, 0], zeros[:, 0])
    credit = Credit(zeros, zeros[:, 0], tensor([1.0, 1.0, 4.0]), zeros[:, 0])
    found = summarise(rollout, credit, DONE, PPOConfig(**SEQUENCE))
    assert found["explained_variance"] == pytest.approx(23 / 36)
    assert found["response_length"] == pytest.approx(4 / 3)
