"""The command line, as a person meets it: a process, its exit code and what it says."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from safetensors.torch import load_file

from minippo import cli, commands, world
from minippo.course import demo
from minippo.data import write_jsonl
from minippo.models import frozen_copy, load_policy
from minippo.options import documented
from minippo.ppo import PPOConfig
from minippo.rollout import load_score
from minippo.trainer import PPOTrainer
from tests import tiny
from tests.soak import soak, until

SMALL = (
    "--rollout_size 6 --minibatch_size 3 --max_new_tokens 5 --learning_rate 0.003 --save_every 2"
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


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--prompts", "none.jsonl"], "load_prompts: source must be an existing file"),
        (["--reward", "judge.py:bad"], "--reward must name a function of judge.py, got bad"),
        (["--reward", "gone.py:good"], "--reward must name an existing file, got gone.py"),
        (["--lam", "1.5"], "PPOConfig: lam must lie in [0, 1], got 1.5"),
        (["--max_new_tokens", "60"], "max_new_tokens=60 in 48 positions"),
        (["--resume"], "--output must hold a checkpoint for --resume, got run"),
        (["--log_with", "wandb"], "log_with must be installed and known to accelerate"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_and_the_exit_code_is_1(work, capsys, change, says):
    code = cli.main(train("--n_steps", "1", *change))
    said = capsys.readouterr().err
    assert code == 1
    assert says in said
    assert "Traceback" not in said


def test_a_judge_that_raises_is_shown_with_its_own_traceback_and_the_texts(work):
    with pytest.raises(ZeroDivisionError) as error:
        cli.main(train("--n_steps", "1", reward="judge.py:broken"))
    assert "raised by the score function on prompt" in error.value.__notes__[0]


def test_a_checkpoint_is_not_overwritten_by_a_new_run(work, capsys):
    assert cli.main(train("--n_steps", "1")) == 0
    assert cli.main(train("--n_steps", "1")) == 1
    assert "--output must be a new folder (or pass --resume)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("--version", 0),
        ("--help", 0),
        ("", 2),
        ("trane", 2),
        ("train --no", 2),
        ("grade x --no", 2),
    ],
)
def test_usage_has_the_usual_exit_codes(arguments, code, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments.split())
    assert stop.value.code == code


LIGHT = ["", "--version", "--help", "demo --help", "grade --help", "homework --help", "trane"]
HEAVY = ["torch", "transformers", "accelerate", "datasets", "matplotlib", "PIL", "numpy"]


def test_version_and_help_load_nothing_that_takes_seconds():
    program = f"""
import runpy, sys
for arguments in {LIGHT}:
    sys.argv[1:] = arguments.split()
    try:
        runpy.run_module("minippo", run_name="__main__")
    except SystemExit as stop:
        print("exit code", stop.code, [name for name in {HEAVY} if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    told = [line for line in done.stdout.splitlines() if line.startswith("exit code")]
    assert told == [f"exit code {code} []" for code in (2, 0, 0, 0, 0, 0, 2)]


def test_help_has_a_line_for_each_command_and_no_command_shows_it(capsys):
    with pytest.raises(SystemExit):
        cli.main([])
    lines = capsys.readouterr().err.splitlines()
    for command in ("demo", "train", "grade", "homework"):
        assert any(re.match(rf"    {command}  +\w+", line) for line in lines)


def test_help_explains_every_option_of_the_configuration_in_its_groups(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    said = capsys.readouterr().out
    titles = ["what to train", "credit", "loss", "KL to", "sampling", "batches", "optimizer"]
    places = [said.index(f"\n{title}") for title in titles]
    assert places == sorted(places)
    lam, clip_range = said.index("\n  --lam "), said.index("\n  --clip_range ")
    assert places[1] < lam < places[2] < clip_range < places[3]
    for kind in (commands.TrainArguments, PPOConfig):
        assert [name for _, name, _ in documented(kind)] == [f.name for f in fields(kind)]
    said = " ".join(said.split())
    assert "GAE's lambda; 0.95 (lm-human-preferences)" in said
    assert "epsilon; 0.2 (Schulman et al. 2017)" in said


def test_an_optional_number_can_be_switched_off_and_a_flag_on(work):
    off = ["--value_clip_range", "None", "--max-grad-norm", "none", "--whiten_advantages", "False"]
    assert cli.main(train("--n_steps", "1", "--gradient_checkpointing", *off)) == 0
    made = json.loads((work / "run" / "trainer.json").read_text(encoding="utf-8"))["config"]
    assert made["value_clip_range"] is None
    assert made["max_grad_norm"] is None
    assert made["gradient_checkpointing"] is True
    assert made["whiten_advantages"] is False


@pytest.mark.slow
def test_ctrl_c_saves_a_step_boundary_and_says_how_to_go_on(work):
    command = [sys.executable, "-m", "minippo", *train("--n_steps", "5000")]
    settings = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(command, cwd=work, env=settings, stderr=subprocess.PIPE, text=True)
    until((work / "run.previous").exists)  # two steps are done and saved
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 130
    done = len(json.loads((work / "run" / "trainer.json").read_text(encoding="utf-8"))["history"])
    assert f"stopped after step {done}; to continue, repeat the command with --resume" in said


# ---- the demo ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(soak(2, 5)))
def test_the_demo_goes_most_of_the_way_to_the_best_gold_reward(seed):
    from dataclasses import replace

    policy, tokenizer = load_policy("tiny-gpt2-sft")
    reference, score = frozen_copy(policy), load_score("tiny-gpt2-reward", tokenizer)
    before = demo.examine(policy, reference, tokenizer, score)[1]
    trainer = PPOTrainer(policy, reference, score, tokenizer, replace(demo.DEMO, seed=seed))
    trainer.train(list(world.PROMPTS_TRAIN), demo.STEPS, progress=False)
    texts, after = demo.examine(policy, reference, tokenizer, score)
    best = json.loads((demo.DATA / "manifest.json").read_text(encoding="utf-8"))["figures"]["best"][
        "gold"
    ]
    share = (after["gold"] - before["gold"]) / (best - before["gold"])
    print(f"seed {seed}: gold {before['gold']:.3f} to {after['gold']:.3f}, {share:.0%} of the way")
    print(f"   proxy {before['proxy']:.2f} to {after['proxy']:.2f}, KL {after['kl']:.2f}")
    assert len(texts) >= 300
    assert share >= 0.6
    assert after["kl"] < 12


@pytest.mark.slow
def test_the_demo_prints_its_table_and_draws_its_picture(tmp_path, capsys):
    assert cli.main(["demo", "--output", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "gold reward (hidden; best 1.50)" in said
    assert said.count("before:") == said.count("after: ") >= 6
    assert (tmp_path / "run.png").stat().st_size > 5_000


@pytest.mark.slow
def test_the_textbook_sketch_learns_on_the_shipped_world():
    policy, tokenizer = load_policy("tiny-gpt2-sft")
    score, config = load_score("tiny-gpt2-reward", tokenizer), PPOConfig.textbook(total_steps=8)
    trainer = PPOTrainer(policy, frozen_copy(policy), score, tokenizer, config)
    history = trainer.train(list(world.PROMPTS_TRAIN), 8, progress=False)
    assert history[-1]["score"] > history[0]["score"] + 0.4  # 10 steps gave 0.27 to 1.41
