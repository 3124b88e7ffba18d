"""The invariants of PPO, through the trainer itself and for every switch that is cheap."""

import dataclasses
import functools
import math
import sys

import pytest
import torch
from torch import nn, tensor
from torch.testing import assert_close

from minippo import _validate, gae
from minippo.checks import definitions as slow
from minippo.kl import kl_k3
from minippo.log_probs import token_log_probs
from minippo.ppo import PPOConfig
from minippo.rollout import Responses, Rollout, evaluate, text_score
from minippo.trainer import PPOTrainer, weights_hash
from tests import tiny
from tests.shapes import refuses
from tests.tiny import PROMPTS

SEQUENCE = {"advantage_level": "sequence"}
BANDIT = SEQUENCE | {"ratio_level": "sequence"}
TO_REFERENCE = {"ratio_to": "reference", "reference_update_every": 1}
KL_IN_LOSS = {"kl_coef": 0.0, "kl_loss_coef": 0.1}
TEXTBOOK = {
    name: value
    for name, value in dataclasses.asdict(PPOConfig.textbook()).items()
    if value != getattr(PPOConfig(), name)
}
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
    "a bootstrap": {"bootstrap_truncated": True, "max_new_tokens": 16},
    "a penalty for a missing end": {"missing_eos_penalty": 1.0},
    "a reference renewed now and then": {"reference_update_every": 2},
    "an adaptive KL": {"kl_target": 1.0, "kl_horizon": 20},
    "micro-batches": {"micro_batch_size": 2},
    "one row at a time": {"minibatch_size": 1, "micro_batch_size": 1},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "discounts": {"gamma": 0.9, "lam": 0.5},
}
FAST = {"learning_rate": 0.01, "minibatch_size": 3}  # far enough to see, two minibatches an epoch


def watch(trainer):
    """The statistics of each minibatch, by rollout: what `history` holds only the means of."""
    rollouts, update = [], trainer.update

    def watched(rollout):
        stats = update(rollout)
        rollouts.append(trainer.minibatch_stats)
        return stats

    trainer.update = watched
    return rollouts


def run(n_steps=3, *, trainer=None, **changes):
    trainer = tiny.trainer(score=tiny.spread, **changes) if trainer is None else trainer
    trainer.train(PROMPTS, n_steps, progress=False)
    return trainer


def difference(one, other):
    """The largest difference between two trainers' weights."""
    pairs = zip(one.policy.parameters(), other.policy.parameters(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


# ---- the ratio


@functools.cache
def three_rollouts(name):
    """Three steps with these switches: the trainer, its minibatches, and its reference before."""
    trainer = tiny.trainer(score=tiny.spread, **(FAST | SWITCHES[name]))
    before, rollouts = weights_hash(trainer.reference), watch(trainer)
    return run(trainer=trainer), rollouts, before


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
    run(1, trainer=trainer)
    for stats in (stats for minibatches in rollouts for stats in minibatches):
        assert stats["ratio_error"] < 1e-5
        assert abs(stats["approx_kl"]) < 1e-6
        assert stats["clip_fraction"] == 0
        assert stats["grad_norm"] > 0
    assert weights_hash(trainer.policy) == before


def test_a_ratio_to_another_reference_does_not_start_at_one():
    # Guards the tests above: they could see it.
    trainer = tiny.trainer(
        reference=tiny.shallow(7), ratio_to="reference", learning_rate=0.0, score=tiny.spread
    )
    assert run(1, trainer=trainer).history[0]["first_ratio_error"] > 0.1


def test_bf16_has_its_own_tolerance_and_keeps_float32_weights():
    # 8 bits of mantissa: logits of size 3 are right to 0.01, and so is a ratio.
    trainer = run(mixed_precision="bf16", **FAST)
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
    one, other = (run(ratio_to=to, **options) for to in ("old", "reference"))
    assert weights_hash(one.policy) == weights_hash(other.policy)  # weight for weight
    assert weights_hash(one.policy) != weights_hash(tiny.shallow())


# ---- the reference


@pytest.mark.parametrize("name", SWITCHES)
def test_the_reference_stays_unless_it_is_renewed(name):
    trainer, _, before = three_rollouts(name)
    stays = trainer.config.reference_update_every is None
    assert (weights_hash(trainer.reference) == before) == stays
    assert all(p.grad is None for p in trainer.reference.parameters())


def test_the_reference_is_renewed_before_every_so_manieth_rollout():
    trainer = tiny.trainer(score=tiny.spread, reference_update_every=2, **FAST)
    same = []
    for _ in range(6):
        rollout = trainer.collect(PROMPTS)
        same.append(weights_hash(trainer.reference) == weights_hash(trainer.policy))
        trainer.update(rollout)
    assert same == [True, False, True, False, True, False]  # the first: where it began


def test_the_reference_is_not_the_policy():
    policy = tiny.shallow()
    with refuses("PPOTrainer: reference", "the policy itself"):
        PPOTrainer(policy, policy, tiny.spread, tiny.tokenizer(), PPOConfig())


def test_what_is_renewed_must_be_a_model():
    policy, config = tiny.shallow(), PPOConfig(**tiny.SMALL, reference_update_every=1)
    trainer = PPOTrainer(policy, None, tiny.spread, tiny.tokenizer(), config)
    trainer.n_rollouts = 1
    with refuses("PPOTrainer: reference", "None"):
        trainer.collect(PROMPTS)


# ---- minibatches and micro-batches


@pytest.mark.parametrize("size", [None, 1, 4])  # None: two halves of like length
@pytest.mark.parametrize(
    "changes",
    [{}, SEQUENCE, BANDIT | {"entropy_coef": 0.1}, KL_IN_LOSS, {"policy_loss": "penalty"}],
)
def test_micro_batches_give_the_update_of_the_whole_minibatch(changes, size):
    options = {"max_new_tokens": 10} | changes
    whole, parts = (run(2, micro_batch_size=n, **options) for n in (6, size))
    assert difference(whole, parts) < 1e-6
    assert difference(whole, tiny.trainer()) > 1e-3
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
    whole = run(2, max_new_tokens=10, micro_batch_size=6)
    naive = run(2, trainer=tiny.trainer(kind=Naive, score=tiny.spread, **options))
    assert difference(whole, naive) > 1e-4


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
    assert difference(plain, saving) < 1e-6


def test_the_order_of_the_rows_does_not_matter():
    one, other = (tiny.trainer(score=tiny.spread) for _ in range(2))
    rollout, order = one.collect(PROMPTS), tensor([4, 1, 5, 0, 3, 2])
    a = one.credit(rollout).whitened
    b = other.credit(rollout[order]).whitened
    assert_close(b, a[order])
    one.update(rollout)
    other.update(rollout[order])
    assert difference(one, other) < 1e-6


def test_junk_under_the_mask_does_not_matter():
    one, other = (tiny.trainer(score=tiny.spread, **FAST) for _ in range(2))
    clean, dirty = one.collect(PROMPTS), other.collect(PROMPTS)
    padding = ~dirty.mask
    assert padding.any()
    for x in (dirty.log_probs, dirty.ref_log_probs, dirty.values, dirty.kl):
        x[padding] = math.nan
    dirty.responses.ids[padding] = 5
    one.update(clean)
    other.update(dirty)
    assert difference(one, other) < 1e-7


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


# ---- one step, by hand


def test_the_first_step_is_adams_with_clipped_gradients():
    # m = g, v = g^2 after the corrections: p moves by -lr * g / (|g| + 1e-5).
    trainer = tiny.trainer(score=tiny.spread, epochs=1, max_grad_norm=0.1, learning_rate=0.002)
    gradients, step, before = {}, trainer.optimizer.step, tiny.weights(trainer.policy)

    def watched():
        gradients.update({n: p.grad.clone() for n, p in trainer.policy.named_parameters()})
        step()

    trainer.optimizer.step = watched
    stats = trainer.step(PROMPTS)
    norm = torch.stack([g.norm() for g in gradients.values()]).norm()
    assert stats["grad_norm"] > 0.2
    assert_close(norm, tensor(0.1), rtol=1e-4, atol=0)
    for name, g in gradients.items():
        expected = before[name] - 0.002 * g / (g.abs() + 1e-5)
        assert_close(trainer.policy.state_dict()[name], expected)


def test_without_a_limit_the_gradient_is_not_scaled():
    free, wide, narrow = (run(1, epochs=1, max_grad_norm=x) for x in (None, 1e3, 1e-4))
    assert len({trainer.history[0]["grad_norm"] for trainer in (free, wide, narrow)}) == 1
    assert difference(free, wide) == 0
    assert difference(free, narrow) > 1e-5


def test_an_update_does_not_read_the_last_token_of_a_response():
    trainer, lengths = tiny.trainer(score=tiny.spread, epochs=1), []
    rollout = trainer.collect(PROMPTS)
    trainer.policy.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    trainer.update(rollout)
    assert max(lengths) == rollout.responses.trim().tokens.shape[1] - 1


def test_the_number_of_steps_is_epochs_times_minibatches():
    stats = run(1, epochs=3, minibatch_size=4).history[0]  # 4 rows and 2
    assert stats["optimizer_steps"] == 6


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [0.1, 0.1, 0.1, 0.1]),
        ({"warmup_steps": 2}, [0.05, 0.1, 0.1, 0.1]),
        ({"total_steps": 4}, [0.1, 0.075, 0.05, 0.025]),
        ({"warmup_steps": 2, "total_steps": 4}, [0.05, 0.075, 0.05, 0.025]),
        ({"total_steps": 2}, [0.1, 0.05, 0.0, 0.0]),
    ],
)
def test_the_learning_rate_of_each_rollout_by_hand(changes, expected):
    used = []
    trainer = tiny.trainer(
        score=tiny.spread, learning_rate=0.1, max_grad_norm=1e-9, epochs=1, **changes,
        callbacks=[lambda trainer, _: used.append(trainer.optimizer.param_groups[0]["lr"])],
    )  # fmt: skip
    run(4, trainer=trainer)
    assert_close(used, expected)
    assert_close([stats["learning_rate"] for stats in trainer.history], expected)


# ---- advantages, by hand


def rollout_by_hand(**changes):
    """Row 0 ended after two tokens, row 1 was cut off after three."""
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
PAID = tensor([[0.0, 2.0, 9.0], [1.0, 1.0, 1.0]])  # 9 stands on padding


@pytest.mark.parametrize(
    ("changes", "scores", "rewards", "returns"),
    [
        # -.5 KL a token, and the score on the last real one; returns are their sums to the right.
        ({}, None, [[-0.05, 1.9, 0], [-0.2, 0, 3.1]], [[1.85, 1.9, 0], [2.9, 3.1, 3.1]]),
        # Token by token: 0, 2 and 1, 1, 1.
        ({}, PAID, [[-0.05, 1.9, 0], [0.8, 1.0, 1.1]], [[1.85, 1.9, 0], [2.9, 2.1, 1.1]]),
        # Row 1 was cut off: 2 less at its end.
        (
            {"missing_eos_penalty": 2.0}, None,
            [[-0.05, 1.9, 0], [-0.2, 0, 1.1]], [[1.85, 1.9, 0], [0.9, 1.1, 1.1]],
        ),
        (
            {"missing_eos_penalty": 2.0}, PAID,
            [[-0.05, 1.9, 0], [0.8, 1.0, -0.9]], [[1.85, 1.9, 0], [0.9, 0.1, -0.9]],
        ),
        # The value after its end, 7, stands for its score: no 3.
        (
            {"bootstrap_truncated": True}, None,
            [[-0.05, 1.9, 0], [-0.2, 0, 0.1]], [[1.85, 1.9, 0], [6.9, 7.1, 7.1]],
        ),
        (
            {"bootstrap_truncated": True}, PAID,
            [[-0.05, 1.9, 0], [-0.2, 0, 0.1]], [[1.85, 1.9, 0], [6.9, 7.1, 7.1]],
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


@pytest.mark.parametrize("bootstrap", [False, True])
def test_discounted_credit_is_that_of_the_definitions(bootstrap):
    changes = {"gamma": 0.9, "lam": 0.6, "kl_coef": 0.5, "bootstrap_truncated": bootstrap}
    rollout = rollout_by_hand()
    mask, values = rollout.mask.tolist(), rollout.values.tolist()
    scores = [2.0, 0.0 if bootstrap else 3.0]
    rewards = slow.shape_rewards(scores, rollout.kl.tolist(), mask, 0.5)
    end = rollout.bootstrap.tolist() if bootstrap else None
    raw = slow.gae(rewards, values, mask, 0.9, 0.6, end)
    returns = tensor(raw) + torch.where(rollout.mask, rollout.values, 0.0)
    for whiten in (False, True):
        trainer = tiny.trainer(whiten_advantages=whiten, **changes)
        _, advantages, got, whitened = trainer.credit(rollout)
        expected = slow.whiten(raw, mask) if whiten else raw
        assert_close(advantages, tensor(raw), rtol=1e-5, atol=1e-5)
        assert_close(whitened, tensor(expected), rtol=1e-5, atol=1e-5)
        assert_close(got, returns, rtol=1e-5, atol=1e-5)  # from the raw advantages


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


# ---- controllers


@pytest.mark.parametrize("estimator", ["k1", "k3", "exact"])
def test_the_controller_gets_the_summed_k1_of_a_response_once_a_rollout(estimator):
    fed = []
    trainer = tiny.trainer(
        policy=tiny.shallow(3), reference=tiny.shallow(7), score=tiny.spread,
        kl_coef=0.05, kl_target=0.2, kl_horizon=20, kl_estimator=estimator,
    )  # fmt: skip
    update = trainer.kl_controller.update
    trainer.kl_controller.update = lambda kl, n: (fed.append((kl, n)), update(kl, n))
    rollout = trainer.collect(PROMPTS)
    k1 = torch.where(rollout.mask, rollout.log_probs - rollout.ref_log_probs, 0.0)
    trainer.update(rollout)
    assert len(fed) == 1
    assert_close(fed[0][0], (k1.sum() / 6).item())
    assert fed[0][1] == 6
    assert k1.sum() / 6 > 0.24  # far above the target: the largest correction, .2 * 6 / 20
    assert_close(trainer.kl_coef, 0.05 * 1.06)


@pytest.mark.parametrize(
    ("changes", "beta", "c3"),
    [
        ({"kl_coef": 0.5}, 0.5 * 1.06, 0.0),
        ({"kl_coef": 0.5, "kl_loss_coef": 0.3}, 0.5 * 1.06, 0.3),
        ({"kl_coef": 0.0, "kl_loss_coef": 0.3}, 0.0, 0.3 * 1.06),
        ({"kl_coef": 0.5, "kl_target": None}, 0.5, 0.0),
        ({"kl_coef": 0.0, "kl_loss_coef": 0.3, "kl_target": None}, 0.0, 0.3),
        ({"kl_coef": 0.0, "kl_target": None}, 0.0, 0.0),
    ],
)
def test_the_controller_drives_beta_or_else_c3(changes, beta, c3):
    options = {"kl_target": 0.2, "kl_horizon": 20} | changes
    trainer = tiny.trainer(
        policy=tiny.shallow(3), reference=tiny.shallow(7), score=tiny.spread, **options
    )
    first = trainer.step(PROMPTS)
    assert (first["kl_coef"], first["kl_loss_coef"]) == (
        options["kl_coef"], options.get("kl_loss_coef", 0.0),
    )  # fmt: skip
    assert_close((trainer.kl_coef, trainer.kl_loss_coef), (beta, c3))
    second = trainer.step(PROMPTS)
    assert_close((second["kl_coef"], second["kl_loss_coef"]), (beta, c3))


@pytest.mark.parametrize(("share", "factor"), [(0.5, 2.0), (1.0, 1.0), (2.0, 0.5)])
def test_the_penalty_is_driven_by_how_far_the_whole_update_went(share, factor):
    # The target changes nothing but the controller: so the same update is judged three times.
    options = {"policy_loss": "penalty", "score": tiny.spread, **FAST}
    trainer = tiny.trainer(**options)
    rollout = trainer.collect(PROMPTS)
    trainer.update(rollout)
    logits = evaluate(trainer.policy, rollout.responses)[0]
    new = token_log_probs(logits, rollout.responses.ids).detach()
    moved = kl_k3(rollout.log_probs, new)[rollout.mask].mean().item()
    assert moved > 1e-4
    trainer = tiny.trainer(penalty_target=moved * share, **options)
    trainer.step(PROMPTS)
    assert trainer.penalty_controller.coef == factor
    assert trainer.history[0]["penalty_coef"] == 1.0


def test_an_update_stops_before_the_step_that_would_go_on_too_far():
    # The first minibatch has moved nowhere, and the second more than 1e-9.
    stopped = tiny.trainer(score=tiny.spread, target_kl_stop=1e-9, epochs=4)
    once = tiny.trainer(score=tiny.spread, epochs=1)
    assert stopped.step(PROMPTS)["optimizer_steps"] == 1
    assert once.step(PROMPTS)["optimizer_steps"] == 1
    assert difference(stopped, once) == 0
    free = tiny.trainer(score=tiny.spread, target_kl_stop=100.0, epochs=4)
    assert free.step(PROMPTS)["optimizer_steps"] == 4


# ---- what is not finite


def assert_unchanged(trainer, before):
    now = trainer.policy.state_dict()
    for name, x in before.items():
        assert_close(now[name], x, rtol=0, atol=0, equal_nan=True)
    assert trainer.history == []


def test_a_nan_in_the_policy_stops_before_the_step_and_is_named():
    policy = tiny.shallow()
    policy.value_head.weight.data[0, 0] = math.nan
    trainer = tiny.trainer(policy=policy)
    before = tiny.weights(policy)
    with pytest.raises(
        FloatingPointError, match=r"policy_loss = nan, value_loss = nan.* in step 1"
    ):
        trainer.step(PROMPTS)
    assert_unchanged(trainer, before)


def test_a_value_loss_that_overflows_is_named():
    trainer = tiny.trainer(score=lambda r: tiny.spread(r) * 1e30)
    before = tiny.weights(trainer.policy)
    with pytest.raises(FloatingPointError, match=r"^PPOTrainer.update: value_loss = inf, loss = "):
        trainer.step(PROMPTS)
    assert_unchanged(trainer, before)


@pytest.mark.parametrize("limit", [1.0, None])
def test_a_gradient_that_overflows_is_named(limit):
    trainer = tiny.trainer(score=tiny.spread, max_grad_norm=limit)
    trainer.policy.value_head.weight.register_hook(lambda g: g * math.inf)
    before = tiny.weights(trainer.policy)
    with pytest.raises(FloatingPointError, match=r"^PPOTrainer.update: grad_norm = (inf|nan) in"):
        trainer.step(PROMPTS)
    assert_unchanged(trainer, before)
    assert all(p.grad is None for p in trainer.policy.parameters())


def test_a_score_that_is_not_finite_is_the_judges_fault():
    with pytest.raises(ValueError, match=r"^score: the score of row 0 must be finite"):
        tiny.trainer(score=lambda r: tiny.spread(r) * math.inf).step(PROMPTS)


# ---- train, callbacks, trackers


def test_training_learns_to_say_good():
    changes = {"rollout_size": 16, "minibatch_size": 16, "learning_rate": 0.01, "epochs": 4}
    scores = [s["score"] for s in run_good(12, **changes).history]
    assert sum(scores[-3:]) / 3 > sum(scores[:3]) / 3 + 2


def run_good(n_steps, **changes):
    trainer = tiny.trainer(**changes)
    trainer.train(PROMPTS, n_steps, progress=False)
    return trainer


def test_the_textbook_sketch_learns_to_say_good():
    changes = {"rollout_size": 32, "minibatch_size": 32, "learning_rate": 0.01, "epochs": 4}
    scores = [s["score"] for s in run_good(20, make=PPOConfig.textbook, **changes).history]
    assert sum(scores[-3:]) / 3 > sum(scores[:3]) / 3 + 1


def test_the_same_seed_gives_the_same_run_and_another_another():
    one, same, other = (run(seed=seed) for seed in (0, 0, 1))
    assert one.history == same.history != other.history
    assert weights_hash(one.policy) == weights_hash(same.policy)


def test_train_goes_through_all_prompts_before_it_repeats_one():
    seen = []

    def judge(prompts, responses):
        seen.extend(prompts)
        return [0.0] * len(prompts)

    trainer = tiny.trainer(score=text_score(tiny.tokenizer(), judge), rollout_size=4,
                           minibatch_size=4, epochs=1)  # fmt: skip
    trainer.train(PROMPTS, 3, progress=False)
    assert sorted(seen[:6]) == sorted(seen[6:]) == sorted(PROMPTS)
    assert seen[:6] != seen[6:]


def test_the_number_of_steps_is_the_total():
    trainer = run(2)
    assert len(run(3, trainer=trainer).history) == 3
    assert len(run(3, trainer=trainer).history) == 3


@pytest.mark.parametrize(("prompts", "came"), [([], "[]"), ("a b c", "'a'")])
def test_prompts_are_a_list_of_texts(prompts, came):
    with refuses("encode_prompts: texts", came):
        tiny.trainer().train(prompts, 1, progress=False)
    with pytest.raises(ValueError, match=r"^encode_prompts: texts must be a list"):
        tiny.trainer().step(prompts)


def test_a_prompt_longer_than_the_context_is_refused():
    with refuses("generate: prompt_ids", "a prompt of 43 tokens"):
        tiny.trainer().step(["a", "b " * 43])


def test_callbacks_see_every_step_and_one_that_returns_true_ends_the_training():
    seen, also = [], []

    def stop(trainer, stats):
        seen.append((trainer, stats))
        return stats["step"] == 2

    trainer = tiny.trainer(callbacks=[stop, lambda trainer, stats: also.append(stats["step"])])
    history = trainer.train(PROMPTS, 5, progress=False)
    assert [stats for _, stats in seen] == history
    assert all(t is trainer for t, _ in seen)
    assert len(history) == 2
    assert also == [1, 2]  # the other one is called all the same


def test_progress_is_shown_unless_it_is_not_wanted(capsys, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    tiny.trainer().train(PROMPTS, 1)
    monkeypatch.delenv("TQDM_DISABLE")
    run(1)
    assert "PPO" not in capsys.readouterr().err
    tiny.trainer().train(PROMPTS, 1)
    shown = capsys.readouterr().err
    for word in ("PPO: 100%", "score=", "kl=", "entropy=", "clip_fraction=", "value_loss="):
        assert word in shown


@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard.*")
def test_tensorboard_holds_the_statistics_of_every_step(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = tiny.trainer(score=tiny.spread, log_with="tensorboard", log_dir=tmp_path)
    history = trainer.train(PROMPTS, 3, progress=False)
    events = EventAccumulator(str(tmp_path / "minippo")).Reload()
    for name in ("score", "kl", "entropy", "value_loss"):
        logged = [(e.step, e.value) for e in events.Scalars(name)]
        assert [step for step, _ in logged] == [1, 2, 3]
        assert_close([v for _, v in logged], [stats[name] for stats in history], rtol=1e-6, atol=0)


def test_a_tracker_that_is_not_installed_is_our_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("minippo.processes.get_available_trackers", lambda: ["tensorboard"])
    with refuses("PPOTrainer: log_with", "wandb"):
        tiny.trainer(log_with="wandb")
    with pytest.raises(ValueError, match=r"\(here: tensorboard\)"):
        tiny.trainer(log_with="no-such-tracker")


def test_after_an_update_the_policy_is_in_eval_mode_again():
    trainer = run(1)
    assert not trainer.policy.training
    assert isinstance(trainer.policy, nn.Module)


# ---- what is checked, and how often


def test_a_rollout_is_checked_once_however_many_minibatches_it_is_cut_into(monkeypatch):
    calls, check = [], _validate._check_tensor
    monkeypatch.setattr(_validate, "_check_tensor", lambda *a: (calls.append(a[:2]), check(*a)))
    counts = []
    for size in (6, 1):
        trainer = tiny.trainer(minibatch_size=size, epochs=3, micro_batch_size=1)
        rollout = trainer.collect(PROMPTS)
        calls.clear()
        trainer.update(rollout)
        counts.append(len(calls))
    assert counts[0] == counts[1]


def test_what_does_not_fit_is_refused_at_the_door(without_hook):
    trainer = tiny.trainer()
    rollout = trainer.collect(PROMPTS)
    with refuses("shape_rewards: kl", "float32 [6, 6]"):  # three scores, six rows
        trainer.update(dataclasses.replace(rollout, scores=torch.zeros(3)))
    with pytest.raises(ValueError, match=r"^gae: lam must"):  # and afterwards as before
        gae(torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1).bool(), lam=2.0)
