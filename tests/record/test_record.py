"""Recorded runs: they change nothing, say what was, and are read back, or refused, whole."""

import bz2
import json
import math
import random

import build_data
import pytest
import torch

from minippo import entropy, token_log_probs
from minippo.data import SHIPPED_RUNS
from minippo.models import frozen_copy
from minippo.record import PER_TOKEN, Recorder, load_run
from minippo.rollout import decode, encode_prompts, evaluate, generate
from tests import tiny
from tests.shapes import refuses

HELD_OUT = ["a d", "b f c"]


@pytest.fixture
def run(tmp_path):
    """Three steps of a tiny trainer, recorded from step 0."""
    recorder = Recorder(tmp_path / "one.json", HELD_OUT)
    trainer = tiny.trainer(callbacks=[recorder])
    recorder.record(trainer)
    trainer.train(tiny.PROMPTS, 3, progress=False)
    return trainer, load_run(tmp_path / "one.json")


def test_recording_changes_nothing_of_the_training(tmp_path):
    def noisy(responses):  # a score that draws random numbers of both kinds
        return torch.rand(len(responses)) + random.random()

    ends = []
    for callbacks in ([], [Recorder(tmp_path / "run.json", HELD_OUT)]):
        torch.manual_seed(0)
        random.seed(0)
        trainer = tiny.trainer(score=noisy, callbacks=callbacks)
        trainer.train(tiny.PROMPTS, 3, progress=False)
        ends.append((tiny.weights(trainer.policy), trainer.history, torch.rand(1)))
    (plain, history, drawn), (recorded, also, drawn_also) = ends
    assert all(torch.equal(plain[name], recorded[name]) for name in plain)
    assert history == also
    assert drawn == drawn_also


def test_a_recorded_run_is_read_back(run):
    trainer, run = run
    assert run.name == "one"
    assert run.config["seed"] == trainer.config.seed
    assert run.config["max_new_tokens"] == 6
    for mine, theirs in zip(run.history, trainer.history, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3, nan_ok=True)
    assert run.prompts == HELD_OUT
    places = [(record["step"], record["prompt"]) for record in run.records]
    assert places == [(step, prompt) for step in range(4) for prompt in HELD_OUT]


def test_the_last_record_is_what_the_policy_now_does(run):
    trainer, run = run
    tokenizer, policy, reference = trainer.tokenizer, trainer.policy, trainer.reference
    ids, mask = encode_prompts(tokenizer, HELD_OUT)
    uniforms = torch.rand(2, 6, generator=torch.Generator().manual_seed(0))
    r = generate(policy, ids, mask, max_new_tokens=6, eos_token_id=tiny.EOS, uniforms=uniforms)
    with torch.no_grad():
        logits, ref_logits = evaluate(policy, r)[0], evaluate(reference, r)[0]
    log_p, log_q = (token_log_probs(z, r.ids) for z in (logits, ref_logits))
    for i, record in enumerate(run.records[-2:]):
        n = int(r.mask[i].sum())
        words = [tiny.WORDS[token] for token in r.ids[i, :n]]
        assert record["tokens"] == words
        assert record["score"] == words.count("good")
        assert record["kl"] == pytest.approx((log_p - log_q)[i, :n].tolist(), abs=1e-3)
        assert record["entropy"] == pytest.approx(entropy(logits)[i, :n].tolist(), abs=1e-3)
    assert (
        " ".join(t for t in run.records[-2]["tokens"] if t != tiny.WORDS[0])
        == decode(tokenizer, r)[1][0].strip()
    )


def test_the_ratio_is_to_the_policy_at_the_previous_record(tmp_path):
    recorder = Recorder(tmp_path / "run.json", HELD_OUT, every=2)
    trainer = tiny.trainer(callbacks=[recorder])
    trainer.train(tiny.PROMPTS, 2, progress=False)
    assert all(record["ratio"] == [1.0] * len(record["tokens"]) for record in recorder.records)
    trainer.train(tiny.PROMPTS, 4, progress=False)
    before = frozen_copy(trainer.policy)
    trainer.train(tiny.PROMPTS, 6, progress=False)
    ids, mask = encode_prompts(trainer.tokenizer, HELD_OUT)
    uniforms = torch.rand(2, 6, generator=torch.Generator().manual_seed(0))
    r = generate(
        trainer.policy, ids, mask, max_new_tokens=6, eos_token_id=tiny.EOS, uniforms=uniforms
    )
    with torch.no_grad():
        new, old = (token_log_probs(evaluate(p, r)[0], r.ids) for p in (trainer.policy, before))
    records = load_run(tmp_path / "run.json").records
    assert [record["step"] for record in records] == [2, 2, 4, 4, 6, 6]
    for i, record in enumerate(records[4:]):
        expected = (new - old).exp()[i][r.mask[i]].tolist()
        assert record["ratio"] == pytest.approx(expected, abs=1e-3)
        assert max(abs(x - 1) for x in expected) > 0.01  # the policy did move


def test_advantages_are_in_units_of_the_reward(tmp_path):
    """With lam = 1 the advantage is the reward still to come, less the value, which is 3."""
    recorder = Recorder(tmp_path / "run.json", HELD_OUT)
    trainer = tiny.trainer(lam=1.0, score=lambda r: torch.full((len(r),), 5.0))
    trainer.policy.value_head.bias.data.fill_(3.0)
    recorder.record(trainer)
    for record in recorder.records:  # the KL is 0 at first
        assert record["advantage"] == pytest.approx([2.0] * len(record["tokens"]))


def test_at_the_sequence_level_each_token_has_the_responses_advantage(tmp_path):
    recorder = Recorder(tmp_path / "run.json", HELD_OUT)
    trainer = tiny.trainer(advantage_level="sequence", score=lambda r: torch.full((len(r),), 5.0))
    trainer.policy.value_head.bias.data.fill_(3.0)
    recorder.record(trainer)
    for record in recorder.records:
        assert record["advantage"] == pytest.approx([2.0] * len(record["tokens"]))


def test_texts_change_only_with_the_policy(tmp_path):
    recorder = Recorder(tmp_path / "run.json", HELD_OUT)
    trainer = tiny.trainer(callbacks=[recorder], learning_rate=0.0)
    trainer.train(tiny.PROMPTS, 3, progress=False)
    for prompt in HELD_OUT:
        texts = [r["tokens"] for r in recorder.records if r["prompt"] == prompt]
        assert len(texts) == 3
        assert texts[0] == texts[1] == texts[2]


def test_statistics_are_written_at_every_step_and_need_no_prompts(tmp_path):
    path, lengths = tmp_path / "new" / "run.json", []
    recorder = Recorder(path, every=2)
    read = [recorder, lambda trainer, stats: lengths.append(len(load_run(path).history))]
    tiny.trainer(callbacks=read).train(tiny.PROMPTS, 3, progress=False)
    assert lengths == [1, 2, 3]
    assert load_run(path).records == []
    assert [file.name for file in path.parent.iterdir()] == ["run.json"]


def test_a_recorded_number_that_is_not_finite_comes_back_as_nan(tmp_path):
    """A constant score has no explained variance."""
    recorder = Recorder(tmp_path / "run.json")
    trainer = tiny.trainer(callbacks=[recorder], score=lambda r: torch.zeros(len(r)), kl_coef=0.0)
    trainer.train(tiny.PROMPTS, 1, progress=False)
    assert math.isnan(trainer.history[0]["explained_variance"])
    assert math.isnan(load_run(tmp_path / "run.json").history[0]["explained_variance"])
    assert "NaN" not in (tmp_path / "run.json").read_text(encoding="utf-8")


def test_a_kill_while_recording_leaves_the_last_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    recorder = Recorder(path)
    trainer = tiny.trainer(callbacks=[recorder])
    trainer.train(tiny.PROMPTS, 1, progress=False)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("minippo.record.recorder.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(tiny.PROMPTS, 2, progress=False)
    assert len(load_run(path).history) == 1


def test_the_response_at_a_step_is_the_latest_before_it(run):
    _, run = run
    assert run.response(HELD_OUT[1], 2) is run.records[5]
    sparse = type(run)("x", {}, run.history, run.records[4:])  # the first record is of step 2
    assert sparse.response(HELD_OUT[0], 1) is None
    assert sparse.response(HELD_OUT[0], 9) is run.records[6]


def broken(tmp_path, change):
    """The path of a run's file after a change of its content."""
    path = tmp_path / "run.json"
    recorder = Recorder(path, HELD_OUT[:1])
    recorder.record(tiny.trainer())
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


BROKEN = [
    (lambda run: run.update(format="x"), "written by a Recorder, got other"),
    (lambda run: run.update(version=2), "be of version 1, which minippo .* reads, got 2"),
    (lambda run: run.pop("history"), "every part of a run, got KeyError 'history'"),
    (lambda run: run["records"][0].pop("kl"), "every part of a run, got KeyError 'kl'"),
    (lambda run: run["records"][0]["kl"].pop(), "every part .* number of tokens in a record"),
    (lambda run: run.update(history={"a": [1], "b": []}), "every part of a run, got ValueError"),
    (lambda run: run.update(records=3), "every part of a run, got TypeError"),
    (lambda run: run["records"][0].update(score="high"), "every part of a run, got ValueError"),
]


@pytest.mark.usefixtures("without_hook")
@pytest.mark.parametrize(("change", "message"), BROKEN)
def test_a_broken_file_of_a_run_is_refused_with_the_reason(tmp_path, change, message):
    with pytest.raises(ValueError, match=f"^load_run: .*{message}"):
        load_run(broken(tmp_path, change))


def test_a_truncated_or_missing_file_of_a_run_is_refused(tmp_path):
    path = broken(tmp_path, lambda run: None)
    load_run(path)  # nothing was changed
    path.write_text(path.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    with pytest.raises(ValueError, match=r"^load_run: run.json must be the whole JSON of a run"):
        load_run(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="whole JSON"):
        load_run(path)
    path.write_text("[1]", encoding="utf-8")
    with pytest.raises(ValueError, match="written by a Recorder"):
        load_run(path)
    with refuses("load_run: source", "none.json"):
        load_run("none.json")


def test_wrong_arguments_of_a_recorder_are_refused(tmp_path):
    with refuses("Recorder: prompts", "'a b'"):
        Recorder(tmp_path / "run.json", "a b")
    with pytest.raises(ValueError, match="Recorder: every must"):
        Recorder(tmp_path / "run.json", every=0)


@pytest.mark.parametrize("name", SHIPPED_RUNS)
def test_shipped_runs_are_whole(name):
    run = load_run(name)
    assert run.name == name
    assert [stats["step"] for stats in run.history] == list(range(1, len(run.history) + 1))
    assert len(run.prompts) == 7
    assert {record["step"] for record in run.records} >= {0, len(run.history)}
    for record in run.records:
        numbers = [x for key in PER_TOKEN for x in record[key]] + [record["score"]]
        assert all(map(math.isfinite, numbers))


def test_shipped_runs_are_what_they_are_called():
    healthy, drifting = load_run("healthy").history, load_run("no-kl").history
    assert healthy[-1]["score"] > healthy[0]["score"] + 0.5
    assert healthy[-1]["kl"] < 15
    assert drifting[-1]["kl"] > 3 * healthy[-1]["kl"]
    assert load_run("no-kl").config["kl_coef"] == 0
    rates = [load_run(name).config["learning_rate"] for name in ("high-lr", "healthy")]
    assert rates == [0.003, 0.0003]


def test_the_build_makes_the_runs_that_are_missing(tmp_path, monkeypatch):
    assert tuple(build_data.RUNS) == SHIPPED_RUNS
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "healthy.json.bz2").write_bytes(bz2.compress(b"there"))
    (tmp_path / "manifest.json").write_text(
        '{"files": {}, "seeds": 1, "figures": 2}', encoding="utf-8"
    )
    made = []
    monkeypatch.setattr(build_data, "record_run", lambda name, path: made.append((name, path)))
    build_data.build_runs(tmp_path)
    assert made == [(name, tmp_path / "runs" / f"{name}.json.bz2") for name in SHIPPED_RUNS[1:]]
    manifest = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    assert list(manifest.pop("files")) == ["runs/healthy.json.bz2"]
    assert manifest == {"seeds": 1, "figures": 2}
