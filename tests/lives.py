"""What tests/whole/test_faults.py starts: a run that is killed at random moments and goes on.

`python tests/lives.py FOLDER KILLS SEED`: this process imports once and forks a child for each
life, which resumes, trains and saves after every step. It kills the child after a random time, as
often as it was told, lets the last one come to the end, and prints what it saw as JSON.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from minippo.trainer import STATE, PPOTrainer
from tests import tiny


def live(folder: Path, n_steps: int) -> None:
    """Go on where the last life ended."""
    torch.set_num_threads(1)
    trainer: PPOTrainer = tiny.trainer(score=tiny.spread, learning_rate=0.01, epochs=1)
    previous = folder.with_name(f"{folder.name}.previous")
    if (folder / STATE).exists() or (previous / STATE).exists():
        trainer.resume(folder)
    trainer.callbacks.append(lambda trainer, stats: trainer.save(folder))
    trainer.train(tiny.PROMPTS, n_steps, progress=False)


def fork(folder: Path, n_steps: int) -> int:
    """A child that lives; its process id."""
    if child := os.fork():
        return child
    try:
        live(folder, n_steps)
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)


def steps(folder: Path) -> int:
    """Steps in the checkpoint there, or in the one before it."""
    previous = folder.with_name(f"{folder.name}.previous")
    for state in (folder / STATE, previous / STATE):
        if state.exists():
            return len(json.loads(state.read_text(encoding="utf-8"))["history"])
    return 0


def main(output: str, kills: int, seed: int) -> None:
    folder, rng = Path(output), random.Random(seed)
    start = time.monotonic()
    assert os.waitpid(fork(folder / "warm", 8), 0)[1] == 0
    step = (time.monotonic() - start) / 8  # seconds, with the start of a child in it
    killed, within_save, reached, failed = 0, 0, [0], 0
    while killed < kills:
        child = fork(folder / "run", 10_000)
        time.sleep(rng.uniform(0.5, 10.0) * step)
        os.kill(child, signal.SIGKILL)
        failed += not os.WIFSIGNALED(os.waitpid(child, 0)[1])
        killed += 1
        within_save += (folder / "run.unfinished").exists() or not (folder / "run").exists()
        reached.append(steps(folder / "run"))
    n_steps = reached[-1] + 3
    ends = [os.waitpid(fork(folder / name, n_steps), 0)[1] for name in ("run", "whole")]
    run, whole = (load_file(folder / name / "trainer.safetensors") for name in ("run", "whole"))
    histories = [
        json.loads((folder / name / STATE).read_text(encoding="utf-8"))["history"]
        for name in ("run", "whole")
    ]
    found = {
        "kills": killed,
        "within a save": int(within_save),
        "died by themselves": failed,
        "reached": reached,
        "steps": n_steps,
        "exit codes": ends,
        "same weights": all(run[name].equal(whole[name]) for name in run | whole),
        "same history": json.dumps(histories[0]) == json.dumps(histories[1]),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
