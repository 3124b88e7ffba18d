"""One step by hand, controllers, what is not finite, and what `train` does."""

import dataclasses
import math
import sys

import pytest
import torch
from torch import nn, tensor
from torch.testing import assert_close

from minippo import _validate, gae
from minippo.kl import kl_k3
from minippo.log_probs import token_log_probs
from minippo.ppo import PPOConfig
from minippo.rollout import evaluate, text_score
from minippo.trainer import PPOTrainer, weights_hash
from tests import tiny
from tests.shapes import refuses
from tests.tiny import FAST, PROMPTS

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


def test_a_warm_up_moves_the_value_head_alone():
    trainer = tiny.trainer(score=tiny.spread, critic_warmup=2, **FAST)
    trunk, head = (
        tiny.weights(part) for part in (trainer.policy.language_model, value_head(trainer))
    )
    for _ in range(2):
        trainer.step(PROMPTS)
        assert all(
            torch.equal(x, trunk[n]) for n, x in tiny.weights(trainer.policy.language_model).items()
        )
    assert not torch.equal(value_head(trainer).weight, head["weight"])
    # Its norm is that of the head's gradient alone, or clipping would slow the head down.
    one_step = FAST | {"minibatch_size": 6, "epochs": 1}
    alone, both = (tiny.run(1, critic_warmup=n, **one_step).history[0] for n in (1, 0))
    assert alone["grad_norm"] < both["grad_norm"]
    trainer.step(PROMPTS)
    assert any(
        not torch.equal(x, trunk[n]) for n, x in tiny.weights(trainer.policy.language_model).items()
    )


def value_head(trainer):
    return trainer.policy.value_head


def test_without_a_limit_the_gradient_is_not_scaled():
    free, wide, narrow = (tiny.run(1, epochs=1, max_grad_norm=x) for x in (None, 1e3, 1e-4))
    assert len({trainer.history[0]["grad_norm"] for trainer in (free, wide, narrow)}) == 1
    assert tiny.difference(free, wide) == 0
    assert tiny.difference(free, narrow) > 1e-5


def test_an_update_does_not_read_the_last_token_of_a_response():
    # The first update is measured after it. Micro-batches would each have a length of their own.
    trainer, lengths = tiny.run(1, epochs=1, micro_batch_size=6), []
    rollout = trainer.collect(PROMPTS)
    trainer.policy.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    trainer.update(rollout)
    assert max(lengths) == rollout.responses.trim().tokens.shape[1] - 1


# ---- controllers


@tiny.another_reference
@pytest.mark.parametrize("estimator", ["k1", "k3", "exact"])
def test_the_controller_gets_the_summed_k1_of_a_response_once_per_rollout(estimator):
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


@tiny.another_reference
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
    # The target changes nothing but the controller: so the same update is measured three times.
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
    assert tiny.difference(stopped, once) == 0
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


def test_a_score_that_is_not_finite_is_blamed_on_the_score_function():
    with pytest.raises(ValueError, match=r"^score: the score of row 0 must be finite"):
        tiny.trainer(score=lambda r: tiny.spread(r) * math.inf).step(PROMPTS)


# ---- train, callbacks, trackers


@tiny.too_fast
def test_the_defaults_learn_to_say_good():
    changes = {"rollout_size": 16, "minibatch_size": 16, "learning_rate": 0.01, "epochs": 4}
    scores = [s["score"] for s in run_good(12, **changes).history]
    assert sum(scores[-3:]) / 3 > sum(scores[:3]) / 3 + 2


def run_good(n_steps, **changes):
    trainer = tiny.trainer(**changes)
    trainer.train(PROMPTS, n_steps, progress=False)
    return trainer


@tiny.too_fast
def test_the_textbook_sketch_learns_to_say_good():
    changes = {"rollout_size": 32, "minibatch_size": 32, "learning_rate": 0.01, "epochs": 4}
    scores = [s["score"] for s in run_good(20, make=PPOConfig.textbook, **changes).history]
    assert sum(scores[-3:]) / 3 > sum(scores[:3]) / 3 + 1


def test_the_same_seed_gives_the_same_run_and_another_seed_another():
    one, same, other = (tiny.run(seed=seed) for seed in (0, 0, 1))
    assert one.history == same.history != other.history
    assert weights_hash(one.policy) == weights_hash(same.policy)


def test_train_goes_through_all_prompts_before_it_repeats_one():
    seen = []

    def rule(prompts, responses):
        seen.extend(prompts)
        return [0.0] * len(prompts)

    trainer = tiny.trainer(score=text_score(tiny.tokenizer(), rule), rollout_size=4,
                           minibatch_size=4, epochs=1)  # fmt: skip
    trainer.train(PROMPTS, 3, progress=False)
    assert sorted(seen[:6]) == sorted(seen[6:]) == sorted(PROMPTS)
    assert seen[:6] != seen[6:]


def test_n_steps_of_train_is_the_total_over_all_calls():
    trainer = tiny.run(2)
    assert len(tiny.run(3, trainer=trainer).history) == 3
    assert len(tiny.run(3, trainer=trainer).history) == 3


@pytest.mark.parametrize(("prompts", "came"), [([], "[]"), ("a b c", "'a b c'")])
def test_the_trainers_prompts_are_a_list_of_texts(prompts, came):
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


def test_train_shows_its_progress_unless_it_is_switched_off(capsys, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    tiny.trainer().train(PROMPTS, 1)
    monkeypatch.delenv("TQDM_DISABLE")
    tiny.run(1)
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
    trainer = tiny.run(1)
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


def test_a_rollout_that_does_not_fit_is_refused_at_the_door(without_hook):
    trainer = tiny.trainer()
    rollout = trainer.collect(PROMPTS)
    with refuses("shape_rewards: kl", "float32 [6, 6]"):  # three scores, six rows
        trainer.update(dataclasses.replace(rollout, scores=torch.zeros(3)))
    with pytest.raises(ValueError, match=r"^gae: lam must"):  # and afterwards as before
        gae(torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1).bool(), lam=2.0)


def test_each_minibatch_begins_without_the_gradient_of_the_one_before():
    seen = []

    class Watching(PPOTrainer):
        def accumulate(self, rollout, credit, rows):
            seen.append([p.grad for p in self.policy.parameters() if p.grad is not None])
            return super().accumulate(rollout, credit, rows)

    trainer = tiny.trainer(kind=Watching, minibatch_size=2)
    trainer.update(trainer.collect(PROMPTS))
    assert seen == [[]] * 6  # three minibatches, two epochs
    assert all(p.grad is None for p in trainer.policy.parameters())
