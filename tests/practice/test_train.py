"""`minippo train`, as a person meets it: what it writes, its exit code and what it says."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from minippo import cli
from minippo.data import write_jsonl
from minippo.models import load_policy
from minippo.practice import samples
from minippo.rollout import respond
from tests import tiny
from tests.soak import until

SMALL = (
    "--rollout_size 6 --minibatch_size 3 --max_new_tokens 5 --learning_rate 0.001 --save_every 2"
).split()


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder with a tiny model, prompts and a reward, and the current folder of the test."""
    tiny.language_model().save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": p} for p in tiny.PROMPTS])
    (tmp_path / "judge.py").write_text(
        "def good(prompts, responses):\n    return [r.split().count('good') for r in responses]\n"
        "def broken(prompts, responses):\n    return [1 / 0 for r in responses]\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(*more: str, output: str = "run", reward: str = "judge.py:good") -> list[str]:
    given = ["--model", "model", "--prompts", "prompts.jsonl", "--reward", reward]
    return ["train", *given, "--output", output, *SMALL, *more]


def test_train_writes_a_model_and_resume_goes_on_to_the_same_end(work, capsys):
    assert cli.main(train("--n_steps", "4")) == 0
    assert cli.main(train("--n_steps", "2", output="half")) == 0
    assert cli.main(train("--n_steps", "4", "--resume", output="half")) == 0
    histories = [
        json.loads((work / d / "trainer.json").read_text(encoding="utf-8"))["history"]
        for d in ("run", "half")
    ]
    assert histories[0] == histories[1]
    assert len(histories[0]) == 4
    whole, half = (load_file(work / d / "model.safetensors") for d in ("run", "half"))
    assert all(whole[name].equal(half[name]) for name in whole)


def test_train_shows_what_it_learns_and_says_where_it_is_and_what_to_type_next(work, capsys):
    assert cli.main(train("--n_steps", "5")) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "PPO on model: 5 steps of 6 responses, learning rate 0.001"
    assert said[1] == "a prompt and its answers: a b"
    answers = dict(line[7:].split(": ", 1) for line in said if line.startswith("  step "))
    assert list(answers) == ["0", "2", "4"]  # --save_every 2
    untrained = respond(tiny.policy(), tiny.tokenizer(), ["a b"], max_new_tokens=5)
    assert answers["0"] == untrained[0].strip()
    assert said[-3:-1] == ["checkpoint after step 5: run", "to use it: load_policy('run')"]
    assert said[-1] == "to continue: repeat the command with --resume and a larger --n_steps"
    policy, tokenizer = load_policy("run")
    assert len(respond(policy, tokenizer, ["a b"])) == 1
    assert cli.main(train("--n_steps", "6", "--resume")) == 0
    assert "checkpoint after step 6: run" in capsys.readouterr().out


def test_a_printed_sample_is_one_line_of_300_characters_at_most(monkeypatch, capsys):
    long = "a " * 20 + "\n" + "b " * 300
    monkeypatch.setattr(samples, "answer", lambda trainer, prompt: long)
    samples.sampler(tiny.trainer(), "c\nd", 1)
    prompt, answer = capsys.readouterr().out.splitlines()
    assert prompt == "a prompt and its answers: c d"
    assert answer == f"  step 0: {'a ' * 20}{'b ' * 129}…"  # 40 + 258 + 1; with a "b" more 301


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--prompts", "none.jsonl"], "load_prompts: source must be an existing file"),
        (["--reward", "judge.py:bad"], "--reward must name a function of judge.py, got bad"),
        (["--reward", "gone.py:good"], "--reward must name an existing file, got gone.py"),
        (["--lam", "1.5"], "PPOConfig: lam must lie in [0, 1], got 1.5"),
        (["--max_new_tokens", "60"], "max_new_tokens=60 in 48 positions"),
        (["--n_steps", "3", "--total_steps", "2"], "n_steps must be at most total_steps=2"),
        (["--resume"], "--output must hold a checkpoint for --resume, got run"),
        (["--log_with", "wandb"], "log_with must be installed and known to accelerate"),
    ],
)
def test_a_wrong_argument_of_train_gets_one_line_and_exit_code_1(work, capsys, change, says):
    code = cli.main(train("--n_steps", "1", *change))
    said = capsys.readouterr().err
    assert code == 1
    assert says in said
    assert "Traceback" not in said
    assert not (work / "run").exists()


def test_a_score_function_that_raises_is_shown_with_its_own_traceback_and_the_texts(work):
    with pytest.raises(ZeroDivisionError) as error:
        cli.main(train("--n_steps", "1", reward="judge.py:broken"))
    assert "raised by the score function on prompt" in error.value.__notes__[0]


def test_a_checkpoint_is_not_overwritten_by_a_new_run(work, capsys):
    assert cli.main(train("--n_steps", "1")) == 0
    assert cli.main(train("--n_steps", "1")) == 1
    assert "--output must be a new folder (or pass --resume)" in capsys.readouterr().err


def test_an_optional_number_can_be_switched_off_and_a_flag_on(work):
    off = ["--value_clip_range", "None", "--max-grad-norm", "none", "--whiten_advantages", "False"]
    assert cli.main(train("--n_steps", "1", "--gradient_checkpointing", *off)) == 0
    made = json.loads((work / "run" / "trainer.json").read_text(encoding="utf-8"))["config"]
    assert made["value_clip_range"] is None
    assert made["max_grad_norm"] is None
    assert made["gradient_checkpointing"] is True
    assert made["whiten_advantages"] is False


@pytest.mark.slow
def test_ctrl_c_saves_a_step_boundary_and_says_how_to_resume(work):
    command = [sys.executable, "-m", "minippo", *train("--n_steps", "5000")]
    settings = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, cwd=work, env=settings, stderr=subprocess.PIPE, text=True)
    until((work / "run.previous").exists)  # two steps are done and saved
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 130
    done = len(json.loads((work / "run" / "trainer.json").read_text(encoding="utf-8"))["history"])
    assert f"stopped after step {done}; to continue, repeat the command with --resume" in said
