"""What real life does to a run: kills, full disks, failing scores, strange texts, long runs."""

import contextlib
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from minippo import cli
from minippo.data import write_jsonl
from minippo.models import frozen_copy, load_policy
from minippo.ppo import PPOConfig
from minippo.rollout import encode_prompts, text_score
from minippo.trainer import PPOTrainer, weights_hash
from tests import tiny
from tests.shapes import refuses
from tests.soak import soak
from tests.test_checkpoint import make, saved, steps, train  # noqa: F401  (a fixture)
from tests.tiny import PROMPTS

ROOT = Path(__file__).parents[2]


def python(*arguments, timeout):
    settings = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="lives are forked")
def test_a_run_killed_again_and_again_ends_as_if_it_never_had_been(tmp_path):
    kills = soak(4, 20)
    found = python(ROOT / "tests/lives.py", tmp_path, kills, 0, timeout=500)
    print(found)
    assert found["kills"] == kills
    assert found["died by themselves"] == 0  # no life found a checkpoint that it could not read
    assert found["reached"] == sorted(found["reached"])  # nothing saved was lost
    assert found["reached"][-1] >= 2
    assert found["exit codes"] == [0, 0]
    assert found["same weights"]
    assert found["same history"]


# ---- disks


@contextlib.contextmanager
def files_of_at_most(size):
    """As on a disk that is full after so many bytes of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 100, 4_000, 15_000, 40_000])
def test_a_full_disk_leaves_the_previous_checkpoint(saved, size):  # noqa: F811
    # The five stop at the first file, at transformers' weights, and at ours.
    trainer = train(make(), 3)
    with files_of_at_most(size), pytest.raises(OSError, match=r"File too large|No space left"):
        trainer.save(saved)
    assert sorted(p.name for p in saved.parent.iterdir()) == ["run", "run.previous"]
    assert steps(saved) == 2
    trainer.save(saved)
    assert steps(saved) == 3


def test_a_small_disk_that_fills_up_leaves_a_checkpoint(tmp_path):
    mounted = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(tmp_path)]
    if not shutil.which("mount") or subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("no right to mount a disk of 400 kB")
    try:
        trainer = train(make(), 1)
        trainer.save(tmp_path / "run")
        fills = tmp_path / "fills"
        with contextlib.suppress(OSError), fills.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        with pytest.raises(OSError, match="No space left"):
            train(trainer, 2).save(tmp_path / "run")
        assert steps(tmp_path / "run") == 1
        fills.unlink()
        trainer.save(tmp_path / "run")
        assert steps(tmp_path / "run") == 2
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@contextlib.contextmanager
def no_right_to_write(folder):
    """A folder that this process may not write; root may everywhere, and so is somebody else."""
    folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)  # nobody
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)


@pytest.fixture
def open_folder():
    """One that everybody may enter, as pytest's own are not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_a_folder_that_may_not_be_written_keeps_its_checkpoint(open_folder):
    trainer = train(make(), 1)
    trainer.save(open_folder / "run")
    train(trainer, 2)
    with no_right_to_write(open_folder), pytest.raises(OSError, match="Permission denied"):
        trainer.save(open_folder / "run")
    assert [p.name for p in open_folder.iterdir()] == ["run"]
    assert steps(open_folder / "run") == 1
    trainer.save(open_folder / "run")
    assert steps(open_folder / "run") == 2


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder to run `minippo train` in."""
    tiny.language_model(n_layer=1).save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": p} for p in PROMPTS])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*more, output="run"):
    sizes = "--rollout_size 6 --minibatch_size 3 --max_new_tokens 5 --learning_rate 0.003"
    given = "--model model --prompts prompts.jsonl --reward judge.py:judge --save_every 1"
    return ["train", *sizes.split(), *given.split(), "--output", str(output), *more]


JUDGE = """
from pathlib import Path
def judge(prompts, responses):
    calls = Path("calls.txt")
    calls.write_text((calls.read_text() if calls.exists() else "") + "x")
    if len(calls.read_text()) == FAILS:
        HOW
    return [len(r) for r in responses]
"""


def judge(*, fails, how="raise RuntimeError('the judge is not there')"):
    # Python takes a file of the same size and second for the one that it has compiled before.
    text = JUDGE.replace("FAILS", str(fails)).replace("HOW", how) + "#" * fails
    Path("judge.py").write_text(text, encoding="utf-8")
    Path("calls.txt").unlink(missing_ok=True)


def test_a_folder_that_cannot_be_written_is_found_before_the_first_step(work, capsys):
    judge(fails=1)  # the first step would say so
    (work / "file").write_text("in the way", encoding="utf-8")
    assert cli.main(command("--n_steps", "3", output=work / "file" / "run")) == 1
    said = capsys.readouterr().err
    assert "Not a directory" in said
    assert "Traceback" not in said


def test_a_full_disk_is_reported_in_one_line(work, capsys):
    judge(fails=0)
    with files_of_at_most(15_000):
        assert cli.main(command("--n_steps", "3")) == 1
    said = capsys.readouterr().err
    assert "PPOTrainer.save: run cannot be written" in said
    assert "Traceback" not in said


# ---- score functions, numbers, interruptions: the run stops clean and goes on


@pytest.mark.parametrize("how", ["raises", "nan", "interrupted"])
def test_a_score_function_that_fails_once_costs_a_resume_and_nothing_else(work, capsys, how):
    judge(fails=0)
    assert cli.main(command("--n_steps", "4", output="whole")) == 0
    if how == "raises":
        judge(fails=3)
        with pytest.raises(RuntimeError) as caught:  # its own error, whatever it is
            cli.main(command("--n_steps", "4"))
        assert "raised by the score function" in caught.value.__notes__[0]
    elif how == "nan":
        judge(fails=3, how="return [float('nan')] * len(responses)")
        assert cli.main(command("--n_steps", "4")) == 1
        assert "text_score: a score must be a finite number, got nan" in capsys.readouterr().err
    else:  # Ctrl-C twice: at once
        judge(fails=3, how="import os, signal; [os.kill(os.getpid(), signal.SIGINT)] * 2\n"
              "        os.kill(os.getpid(), signal.SIGINT)")  # fmt: skip
        assert cli.main(command("--n_steps", "4")) == 130
    assert steps_of("run") == 2
    judge(fails=0)
    assert cli.main(command("--n_steps", "4", "--resume")) == 0
    for name in ("model.safetensors", "trainer.safetensors"):
        assert Path("run", name).read_bytes() == Path("whole", name).read_bytes()


def steps_of(folder):
    return len(json.loads(Path(folder, "trainer.json").read_text(encoding="utf-8"))["history"])


def poison(x):
    with torch.no_grad():
        x.view(-1)[0] = math.nan


def spoil(trainer, what):
    """Make the coming step fail, as `what` says."""
    weight = trainer.policy.value_head.weight
    if what == "a weight is NaN":
        poison(weight)
    elif what == "a gradient is NaN":
        weight.register_hook(lambda g: g * math.nan)
    elif what == "a gradient is NaN in the second minibatch":
        calls = []
        weight.register_hook(lambda g: calls.append(1) or (g * math.nan if calls[1:] else g))
    elif what == "the loss overflows":
        judge = trainer.score
        trainer.score = lambda r: judge(r) * 1e30
    elif what == "the optimizer runs out of memory":
        trainer.optimizer.step = lambda *_: (_ for _ in ()).throw(MemoryError())
    else:  # Ctrl-C in the middle of an update, as a notebook's stop button
        calls, step = [], trainer.optimizer.step

        def interrupted(*args):
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return step(*args)

        trainer.optimizer.step = interrupted


FAULTS = {
    "a weight is NaN": FloatingPointError,
    "a gradient is NaN": FloatingPointError,
    "a gradient is NaN in the second minibatch": FloatingPointError,
    "the loss overflows": FloatingPointError,
    "the optimizer runs out of memory": MemoryError,
    "Ctrl-C in the middle of an update": KeyboardInterrupt,
}


@pytest.mark.parametrize("what", FAULTS)
def test_an_interrupted_step_is_not_saved_and_the_run_resumes_before_it(tmp_path, what):
    whole, run = train(make(), 4), train(make(), 2)
    run.save(tmp_path / "run")
    spoil(run, what)
    with pytest.raises(FAULTS[what]):
        train(run, 4)
    assert len(run.history) == 2
    with refuses("PPOTrainer.save: the trainer", "a step that did not end"):
        run.save(tmp_path / "run")  # what it holds is no step boundary
    assert steps(tmp_path / "run") == 2
    if FAULTS[what] is FloatingPointError:
        run = make()  # what was spoiled stays so
    else:
        del run.optimizer.step  # the same trainer, with gradients that were not used
    run.resume(tmp_path / "run")
    train(run, 4)
    assert json.dumps(run.history) == json.dumps(whole.history)
    assert weights_hash(run.policy) == weights_hash(whole.policy)
    run.save(tmp_path / "run")
    assert steps(tmp_path / "run") == 4


# ---- texts

STRANGE = {
    "emoji": "The soup 🙂👩‍👩‍👧‍👦 was",
    "right to left": "المطعم كان רע and",
    "null bytes": "The soup\x00\x00 was",
    "control characters": "\x1b[31mred\x07\r\n\t",
    "combining marks": "Z̷͑a̶͋l̵̆g̶̈o",
    "the end-of-text token": "The soup<|endoftext|> was",
    "a byte-order mark": "\ufeffThe soup",
    "blank": " ",
}


@tiny.too_fast
@pytest.mark.parametrize("prompt", STRANGE.values(), ids=STRANGE)
def test_strange_texts_can_be_prompts(prompt):
    policy, tokenizer = load_policy("tiny-gpt2-sft")
    seen = []

    def judged(prompts, responses):
        seen.extend(prompts)
        return [float(len(r)) for r in responses]

    config = PPOConfig(rollout_size=2, minibatch_size=2, max_new_tokens=4, epochs=1)
    trainer = PPOTrainer(
        policy, frozen_copy(policy), text_score(tokenizer, judged), tokenizer, config
    )
    stats = trainer.step([prompt, "The soup was"])
    unknown = [name for name, x in stats.items() if not math.isfinite(x)]
    assert unknown == []
    assert stats["first_ratio_error"] < 1e-5
    assert seen[0] == prompt.replace(
        "<|endoftext|>", ""
    )  # the score function gets what was written
    ids, mask = encode_prompts(tokenizer, [prompt])
    assert mask.all()
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == seen[0]


def test_a_prompt_of_ten_thousand_characters_is_refused_by_its_length():
    policy, tokenizer = load_policy("tiny-gpt2-sft")
    score = text_score(tokenizer, lambda prompts, responses: [0.0] * len(prompts))
    trainer = PPOTrainer(policy, frozen_copy(policy), score, tokenizer, PPOConfig())
    with pytest.raises(ValueError, match=r"^generate: prompt_ids must leave room .* of \d+ tokens"):
        trainer.step(["The soup was", "x" * 10_000])


@pytest.mark.parametrize("bad", ["half \ud83d", 3, None, b"bytes"])
@pytest.mark.usefixtures("without_hook")
def test_a_prompt_that_is_no_text_is_refused_by_its_number(bad):
    tokenizer = load_policy("tiny-gpt2-sft")[1]
    with refuses("encode_prompts: text 1", repr(bad)):
        encode_prompts(tokenizer, ["The soup", bad])


def test_prompts_and_answers_survive_files_as_they_are(tmp_path):
    from minippo.data import load_prompts

    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": p} for p in STRANGE.values()])
    assert load_prompts(tmp_path / "prompts.jsonl") == list(STRANGE.values())


# ---- long runs

LONG = """
import gc, json, os, sys
import torch
from tests import tiny
torch.set_num_threads(1)
def resident():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
trainer = tiny.trainer(score=tiny.spread, learning_rate=1e-4, epochs=1)
found = []
for n_steps in map(int, sys.argv[1:]):
    trainer.train(tiny.PROMPTS, n_steps, progress=False)
    found.append([resident(), len(gc.get_objects())])
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux for its memory")
def test_a_run_of_five_times_the_steps_needs_no_more_memory():
    few = soak(40, 200)
    memory, objects = zip(*python("-c", LONG, few, 5 * few, timeout=600), strict=True)
    growth = memory[1] / memory[0] - 1
    print(f"{memory[0]:.0f} MiB after {few} steps, {memory[1]:.0f} after {5 * few}: {growth:.1%}")
    assert growth < 0.05
    assert objects[1] - objects[0] < 5 * 4 * few  # the statistics of each step are kept, no more
