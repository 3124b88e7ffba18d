"""Models on another device than the inputs were made on: a stand-in for a GPU without float64."""

import json
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from studies import common
from torch import tensor
from torch.testing import assert_close

from minippo import world
from minippo.course import demo
from minippo.models import frozen_copy, load_policy
from minippo.ppo import PPOConfig
from minippo.practice import train
from minippo.record import Recorder, load_run
from minippo.reward_model import train_reward_model
from minippo.rollout import (
    _inverse_cdf,
    collect,
    encode,
    encode_prompts,
    evaluate,
    load_score,
    respond,
    score_with,
)
from minippo.sft import FitConfig, train_sft
from minippo.trainer import PPOTrainer
from minippo.widgets import Dashboard
from minippo.widgets.own_text import OwnText
from tests import standin, tiny

SWITCHES = {
    "default": {},
    "bf16": {"mixed_precision": "bf16"},
    "penalty": {"policy_loss": "penalty", "micro_batch_size": 2},
    "sketch": {"make": PPOConfig.textbook},
    "exact": {
        "kl_estimator": "exact", "kl_loss_coef": 0.1, "kl_loss_estimator": "exact",
        "lam_alpha": 1.0, "dual_clip": 3.0, "reference_update_every": 1,
    },
}  # fmt: skip


@pytest.fixture
def device():
    with standin.accelerator() as away:
        yield away


def test_the_stand_in_refuses_what_a_gpu_refuses(device):
    away = torch.ones(2, device=device)
    assert (away + 1).device == device
    assert (away + tensor(1.0)).tolist() == [2.0, 2.0]  # one number may stay on the CPU
    with pytest.raises(RuntimeError, match="same device"):
        away + torch.ones(2)
    with pytest.raises(TypeError, match="float64"):
        away.double()
    with pytest.raises(RuntimeError):
        away.numpy()


@tiny.too_fast
@pytest.mark.parametrize("name", SWITCHES)
def test_training_on_another_device_is_training_on_the_cpu(name):
    options = {"score": tiny.spread, "learning_rate": 0.01, "minibatch_size": 3} | SWITCHES[name]
    here = tiny.trainer(**options)
    here.train(tiny.PROMPTS, 2, progress=False)
    with standin.accelerator() as device:
        there = tiny.trainer(**options)
        there.train(tiny.PROMPTS, 2, progress=False)
        assert {p.device for p in there.policy.parameters()} == {device}
    loose = 0.05 if name == "bf16" else 1e-3
    for one, other in zip(there.history, here.history, strict=True):
        assert one["score"] == other["score"]  # the same texts
        for statistic in ("kl", "loss", "grad_norm", "entropy"):
            assert one[statistic] == pytest.approx(other[statistic], rel=loose, abs=1e-4)


def test_a_run_of_another_device_resumes_on_the_cpu(tmp_path):
    options = {"score": tiny.spread, "learning_rate": 0.01}
    with standin.accelerator():
        trainer = tiny.trainer(**options)
        trainer.train(tiny.PROMPTS, 1, progress=False)
        trainer.save(tmp_path / "run")
        again = tiny.trainer(**options)
        again.resume(tmp_path / "run")
        again.train(tiny.PROMPTS, 2, progress=False)
    here = tiny.trainer(**options)
    here.resume(tmp_path / "run")
    here.train(tiny.PROMPTS, 2, progress=False)
    assert here.history[1]["loss"] == pytest.approx(again.history[1]["loss"], rel=1e-4)


def test_inputs_are_moved_to_the_policys_device_and_measurements_back(device):
    here = tiny.policy()
    there = frozen_copy(here).to(device)
    responses = encode(tiny.tokenizer(), ["a b", "c"], ["d e f", "good"])
    for one, other in zip(evaluate(there, responses), evaluate(here, responses), strict=True):
        assert one.device.type == "cpu"
        assert_close(one, other)
    assert respond(there, tiny.tokenizer(), ["a b", "c"]) == respond(
        here, tiny.tokenizer(), ["a b", "c"]
    )
    options = {"max_new_tokens": 6, "eos_token_id": tiny.EOS, "uniforms": torch.rand(2, 6)}
    prompts = encode_prompts(tiny.tokenizer(), ["a b", "c"])
    one, other = (collect(p, p, tiny.spread, *prompts, **options) for p in (there, here))
    assert one.scores.device == device
    assert_close(one.log_probs.cpu(), other.log_probs)


def test_every_kind_of_score_takes_responses_from_either_side(device):
    judge, responses = tiny.reward_model(), encode(tiny.tokenizer(), ["a b"], ["good"])
    expected = score_with(judge)(responses)
    there = score_with(frozen_copy(judge).to(device))
    assert_close(there(responses), expected)
    assert_close(there(responses.to(device)).cpu(), expected)
    shipped = load_score("tiny-gpt2-reward")
    tokenizer = load_policy("tiny-gpt2-sft")[1]
    responses = encode(tokenizer, ["The soup"], [" was good."])
    assert_close(shipped(responses.to(device)).cpu(), load_score("tiny-gpt2-reward")(responses))


def test_a_model_on_another_device_learns_from_rows_of_the_cpu(device):
    responses = encode(tiny.tokenizer(), ["a b", "c"], ["d e f", "good"])
    policy = tiny.policy()
    losses = train_sft(policy, responses, FitConfig(epochs=3, warmup_steps=0))
    assert losses[-1] < losses[0]
    worse = encode(tiny.tokenizer(), ["a b", "c"], ["bad", "bad"])
    losses = train_reward_model(tiny.reward_model(), responses, worse, FitConfig(epochs=3))
    assert losses[-1] < losses[0]


def test_a_run_on_another_device_is_recorded_and_a_text_looked_at(device, tmp_path):
    recorder = Recorder(tmp_path / "run.json", ["a b"])
    trainer = tiny.trainer(callbacks=[recorder])
    recorder.record(trainer)
    trainer.train(tiny.PROMPTS, 1, progress=False)
    assert [record["step"] for record in load_run(tmp_path / "run.json").records] == [0, 1]
    assert OwnText(trainer.policy, tiny.tokenizer()).tokens("a b")


class AtOnce:
    """A thread that runs where it is started: the stand-in is known to this one alone."""

    def __init__(self, target, daemon):
        self.start = target

    def is_alive(self):
        return False


def test_a_dashboard_trains_on_another_device(device, monkeypatch):
    threads = SimpleNamespace(**(vars(threading) | {"Thread": AtOnce}))
    monkeypatch.setattr(sys.modules[Dashboard.__module__], "threading", threads)
    trainer = tiny.trainer()
    live = Dashboard(trainer, tiny.PROMPTS, 1)
    assert live.error is None
    assert len(trainer.history) == 1


def test_demo_train_and_the_studies_measure_run_on_another_device(
    device, tmp_path, monkeypatch, capsys
):
    few = replace(demo.DEMO, rollout_size=8, minibatch_size=8, max_new_tokens=4, epochs=1)
    monkeypatch.setattr(demo, "STEPS", 1)
    monkeypatch.setattr(demo, "DEMO", few)
    monkeypatch.setattr(world, "PROMPTS_HELD_OUT", world.PROMPTS_HELD_OUT[:6])
    assert demo.demo(0, tmp_path / "demo") == 0
    assert "gold rose by" in capsys.readouterr().out
    tiny.language_model().save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "judge.py").write_text("def good(p, r): return map(len, r)", encoding="utf-8")
    (tmp_path / "prompts.txt").write_text("a b\nc\n", encoding="utf-8")
    given = {
        "model": "model", "prompts": "prompts.txt", "reward": "judge.py:good", "output": "run",
        "n_steps": "1", "rollout_size": "2", "minibatch_size": "2", "max_new_tokens": "4",
    }  # fmt: skip
    monkeypatch.chdir(tmp_path)
    options = [text for name, value in given.items() for text in (f"--{name}", value)]
    assert train.train(*train.train_options(options)) == 0
    assert (
        len(json.loads((tmp_path / "run" / "trainer.json").read_text(encoding="utf-8"))["history"])
        == 1
    )
    policy, tokenizer = load_policy("tiny-gpt2-sft")
    score = load_score("tiny-gpt2-reward", tokenizer)
    trainer = PPOTrainer(policy, frozen_copy(policy), score, tokenizer, few)
    parts = common.judged(policy, trainer.reference, tokenizer, score, samples=1, max_new_tokens=4)
    assert parts["length"] > 0


@pytest.mark.parametrize(("u", "token"), [(0.0, 1), (0.3, 1), (0.6, 3), (1 - 2.0**-24, 3)])
def test_in_float32_too_no_token_of_probability_zero_is_chosen(device, u, token):
    logits = tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).to(device)
    assert _inverse_cdf(logits, tensor([u]).to(device)).item() == token


def test_in_float32_a_large_vocabulary_keeps_its_last_token(device):
    logits = torch.zeros(1, 50_257, device=device)
    u = tensor([1 - 2.0**-24]).to(device)
    assert _inverse_cdf(logits, u).item() == 50_256
