"""The invariants of PPO, through the trainer itself and for every switch that is cheap."""

import dataclasses
import functools
import math

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from minippo.ppo import PPOConfig
from minippo.trainer import PPOTrainer, weights_hash
from tests import tiny
from tests.shapes import refuses
from tests.tiny import BANDIT, FAST, PROMPTS, SEQUENCE

TO_REFERENCE = {"ratio_to": "reference", "reference_update_every": 1}
KL_IN_LOSS = {"kl_coef": 0.0, "kl_loss_coef": 0.1}
TEXTBOOK = {
    name: value
    for name, value in dataclasses.asdict(PPOConfig.textbook()).items()
    if value != getattr(PPOConfig(), name)
} | {"reference_update_every": 1}  # or the ratio would not begin at 1
pytestmark = tiny.too_fast
SWITCHES = {
    "the defaults": {},
    "sequence advantages": SEQUENCE,
    "sequence ratios": BANDIT,
    "ratio to a renewed reference": TO_REFERENCE,
    "sequence ratio to a renewed reference": BANDIT | TO_REFERENCE,
    "penalty": {"policy_loss": "penalty"},
    "penalty, sequence ratios": BANDIT | {"policy_loss": "penalty"},
    "penalty, ratio to a renewed reference": TO_REFERENCE | {"policy_loss": "penalty"},
    "the textbook sketch": TEXTBOOK,
    "k2 in the loss": KL_IN_LOSS,
    "k3 in the loss": KL_IN_LOSS | {"kl_loss_estimator": "k3"},
    "exact KL in the loss": KL_IN_LOSS | {"kl_loss_estimator": "exact"},
    "KL in the reward and in the loss": {"kl_loss_coef": 0.1},
    "exact KL in the reward": {"kl_estimator": "exact"},
    "temperature .7": {"temperature": 0.7},
    "temperature 1.4, sequence ratios": BANDIT | {"temperature": 1.4},
    "an entropy bonus": {"entropy_coef": 0.05},
    "no whitening, no clipping of values": {"whiten_advantages": False, "value_clip_range": None},
    "two lambdas": {"lam_critic": 1.0},
    "a lambda per length": {"lam_alpha": 0.5, "max_new_tokens": 16},
    "a dual clip": {"dual_clip": 1.5},
    "means of responses": {"loss_mean": "responses"},
    "a constant mean, sequence ratios": BANDIT | {"loss_mean": "constant"},
    "a penalty for a missing end": {"missing_eos_penalty": 1.0},
    "a reference renewed now and then": {"reference_update_every": 2},
    "an adaptive KL": {"kl_target": 1.0, "kl_horizon": 20},
    "micro-batches": {"micro_batch_size": 2},
    "one row at a time": {"minibatch_size": 1, "micro_batch_size": 1},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "discounts": {"gamma": 0.9, "lam": 0.5},
}


def watch(trainer):
    """The statistics of each minibatch, by rollout: what `history` holds only the means of."""
    rollouts, update = [], trainer.update

    def watched(rollout):
        stats = update(rollout)
        rollouts.append(trainer.minibatch_stats)
        return stats

    trainer.update = watched
    return rollouts


# ---- the ratio


@functools.cache
def three_rollouts(name):
    """Three steps with these switches: the trainer, its minibatches, and its reference before."""
    trainer = tiny.trainer(score=tiny.spread, **(FAST | SWITCHES[name]))
    before, rollouts = weights_hash(trainer.reference), watch(trainer)
    return tiny.run(trainer=trainer), rollouts, before


@pytest.mark.parametrize("name", SWITCHES)
def test_at_the_first_minibatch_of_every_rollout_nothing_has_moved(name):
    trainer, rollouts, _ = three_rollouts(name)
    assert len(rollouts) == 3
    for minibatches, stats in zip(rollouts, trainer.history, strict=True):
        first, *_, last = minibatches
        assert stats["first_ratio_error"] == first["ratio_error"] < 1e-5
        assert abs(first["approx_kl"]) < 1e-6
        assert first["clip_fraction"] == 0
        assert last["ratio_error"] > 1e-3  # or nothing was learned


@pytest.mark.parametrize("name", SWITCHES)
def test_a_policy_that_does_not_learn_never_moves(name):
    trainer = tiny.trainer(score=tiny.spread, **(FAST | SWITCHES[name] | {"learning_rate": 0.0}))
    before, rollouts = weights_hash(trainer.policy), watch(trainer)
    tiny.run(1, trainer=trainer)
    for stats in (stats for minibatches in rollouts for stats in minibatches):
        assert stats["ratio_error"] < 1e-5
        assert abs(stats["approx_kl"]) < 1e-6
        assert stats["clip_fraction"] == 0
        assert stats["grad_norm"] > 0
    assert weights_hash(trainer.policy) == before


@tiny.another_reference
def test_a_ratio_to_another_reference_does_not_start_at_one():
    # Guards the tests above: they could see it.
    trainer = tiny.trainer(
        reference=tiny.shallow(7), ratio_to="reference", learning_rate=0.0, score=tiny.spread
    )
    assert tiny.run(1, trainer=trainer).history[0]["first_ratio_error"] > 0.1


def test_bf16_has_its_own_tolerance_and_keeps_float32_weights():
    # 8 bits of mantissa: logits of size 3 are right to 0.01, and so is a ratio.
    trainer = tiny.run(mixed_precision="bf16", **FAST)
    assert all(stats["first_ratio_error"] < 0.05 for stats in trainer.history)
    assert {p.dtype for p in trainer.policy.parameters()} == {torch.float32}
    assert weights_hash(trainer.policy) != weights_hash(tiny.shallow())


def test_bf16_is_another_arithmetic():
    exact, rounded = (
        tiny.trainer(mixed_precision=kind).collect(PROMPTS) for kind in ("no", "bf16")
    )
    gap = (exact.log_probs[:, 0] - rounded.log_probs[:, 0]).abs().max()
    assert gap > 1e-5


@pytest.mark.parametrize("level", [{}, SEQUENCE, BANDIT])
def test_ratio_to_a_reference_renewed_before_every_rollout_is_ratio_to_old(level):
    options = FAST | level | {"reference_update_every": 1}
    one, other = (tiny.run(ratio_to=to, **options) for to in ("old", "reference"))
    # Up to rounding: the same weights elsewhere in memory may be added in another order.
    assert tiny.difference(one, other) < 1e-4 < FAST["learning_rate"]
    assert weights_hash(one.policy) != weights_hash(tiny.shallow())


# ---- the reference


@pytest.mark.parametrize("name", SWITCHES)
def test_the_reference_stays_unless_it_is_renewed(name):
    trainer, _, before = three_rollouts(name)
    stays = trainer.config.reference_update_every is None
    assert (weights_hash(trainer.reference) == before) == stays
    assert all(p.grad is None for p in trainer.reference.parameters())


def test_the_reference_is_renewed_at_the_end_of_every_nth_update_and_by_nothing_else():
    trainer = tiny.trainer(score=tiny.spread, reference_update_every=2, **FAST)
    same = []
    for _ in range(6):
        rollout = trainer.collect(PROMPTS)
        same.append(weights_hash(trainer.reference) == weights_hash(trainer.policy))
        trainer.update(rollout)
        renewed = weights_hash(trainer.reference) == weights_hash(trainer.policy)
        trainer.collect(PROMPTS)
        assert (weights_hash(trainer.reference) == weights_hash(trainer.policy)) == renewed
    assert same == [True, False, True, False, True, False]  # the first: where it began
    assert renewed  # after the sixth update


def test_the_reference_is_not_the_policy():
    policy = tiny.shallow()
    with refuses("PPOTrainer: reference", "the policy itself"):
        PPOTrainer(policy, policy, tiny.spread, tiny.tokenizer(), PPOConfig())


def test_a_reference_that_is_renewed_must_be_a_model():
    config = PPOConfig(reference_update_every=1)
    with refuses("PPOTrainer: reference", "None"):  # as with an adapter
        PPOTrainer(tiny.shallow(), None, tiny.spread, tiny.tokenizer(), config)


# ---- minibatches and micro-batches


@pytest.mark.parametrize("size", [None, 1, 4])  # None: two halves of like length
@pytest.mark.parametrize(
    "changes",
    [{}, SEQUENCE, BANDIT | {"entropy_coef": 0.1}, KL_IN_LOSS, {"policy_loss": "penalty"}],
)
def test_micro_batches_give_the_update_of_the_whole_minibatch(changes, size):
    options = {"max_new_tokens": 10, "learning_rate": 1e-3} | changes
    whole, parts = (tiny.run(2, micro_batch_size=n, **options) for n in (6, size))
    assert tiny.difference(whole, parts) < 1e-6
    assert tiny.difference(whole, tiny.trainer()) > 1e-3
    for name in whole.history[1].keys() - {"explained_variance", "step"}:
        assert_close(parts.history[1][name], whole.history[1][name], rtol=1e-4, atol=1e-5, msg=name)


def test_the_mean_of_the_micro_batches_means_is_another_update():
    # Guards the test above: it could see the usual mistake.
    class Naive(PPOTrainer):
        def loss(self, batch, credit, *, n_tokens, n_responses):
            counts = {"n_tokens": int(batch.mask.sum()), "n_responses": len(batch)}
            loss, stats = super().loss(batch, credit, **counts)
            return loss / 3, stats

    options = {"max_new_tokens": 10, "micro_batch_size": 2}
    whole = tiny.run(2, max_new_tokens=10, micro_batch_size=6)
    naive = tiny.run(2, trainer=tiny.trainer(kind=Naive, score=tiny.spread, **options))
    assert tiny.difference(whole, naive) > 1e-4


def test_gradient_checkpointing_gives_the_same_update_and_runs_twice():
    def calls(trainer):
        count, block = [], trainer.policy.language_model.transformer.h[0].ln_1
        block.register_forward_pre_hook(lambda *_: count.append(1))
        trainer.update(trainer.collect(PROMPTS))
        return len(count)

    plain, saving = (
        tiny.trainer(score=tiny.spread, gradient_checkpointing=on) for on in (False, True)
    )
    assert calls(saving) > calls(plain)
    assert tiny.difference(plain, saving) < 1e-6


def test_the_order_of_the_rows_does_not_change_an_update():
    one, other = (tiny.trainer(score=tiny.spread) for _ in range(2))
    rollout, order = one.collect(PROMPTS), tensor([4, 1, 5, 0, 3, 2])
    a = one.credit(rollout).whitened
    b = other.credit(rollout[order]).whitened
    assert_close(b, a[order])
    one.update(rollout)
    other.update(rollout[order])
    assert tiny.difference(one, other) < 1e-6


def test_junk_under_the_mask_does_not_change_an_update():
    one, other = (tiny.trainer(score=tiny.spread, **FAST) for _ in range(2))
    clean, dirty = one.collect(PROMPTS), other.collect(PROMPTS)
    padding = ~dirty.mask
    assert padding.any()
    for x in (dirty.log_probs, dirty.ref_log_probs, dirty.values, dirty.kl):
        x[padding] = math.nan
    dirty.responses.ids[padding] = 5
    one.update(clean)
    other.update(dirty)
    assert tiny.difference(one, other) < 1e-7


def test_an_update_may_take_some_rows_of_a_rollout():
    trainer = tiny.trainer(score=tiny.spread, kl_coef=0.05, kl_target=1.0, kl_horizon=20)
    rollout = trainer.collect(PROMPTS)
    stats = trainer.update(rollout[tensor([0, 2, 4])])
    assert_close(stats["score"], rollout.scores[[0, 2, 4]].mean().item())
    # KL 0 is more than a fifth below the target: 0.05 * (1 - .2 * 3 / 20).
    assert_close(trainer.kl_coef, 0.05 * 0.97)


def test_an_update_of_a_response_without_real_tokens_is_refused():
    trainer = tiny.trainer()
    rollout = trainer.collect(PROMPTS)
    rollout.mask[2] = False
    with refuses("PPOTrainer.update: mask", "none in row 2"):
        trainer.update(rollout)
