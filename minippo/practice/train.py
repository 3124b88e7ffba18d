"""The command `minippo train`, which the command line in `minippo.cli` calls."""

import argparse
import importlib
import importlib.util
import re
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from minippo._validate import fail
from minippo.assumptions import check_run
from minippo.checkpoint import is_checkpoint
from minippo.data import load_prompts
from minippo.models import frozen_copy, load_policy
from minippo.ppo import PPOConfig
from minippo.practice.options import add_options, take
from minippo.practice.samples import sampler
from minippo.scores import Score, load_score, text_score
from minippo.trainer import PPOTrainer, Stats


@dataclass
class TrainArguments:
    """The options of `minippo train` beside those of PPOConfig."""

    # ---- what to train ----
    prompts: str
    """A file (.jsonl, .csv, .parquet, .txt), prompts-train, or a hub data set (owner/name);
    NAME:column for a column other than prompt."""
    reward: str
    """A reward model's name or folder (a classifier: NAME#label), or module:function or
    file.py:function, where function(prompts, responses) returns a list of numbers."""
    output: str
    """Checkpoint folder; must be new unless --resume is given."""
    model: str = "tiny-gpt2-sft"
    """A shipped name, a folder, or a hub model."""
    n_steps: int = 100
    """PPO steps in total, including those before a resume."""
    save_every: int = 10
    """Steps between checkpoints, and between the answers to the first prompt that are printed."""
    resume: bool = False
    """Continue from the checkpoint in --output."""
    log_with: str | None = None
    """Tracker: tensorboard, wandb, ..."""


def quiet() -> None:
    """Silence the messages of transformers below errors, and its progress bars."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def train_options(arguments: Sequence[str]) -> tuple[TrainArguments, PPOConfig]:
    """Parse the options of `minippo train`: every field of PPOConfig is one."""
    parser = argparse.ArgumentParser(
        prog="minippo train",
        description="PPO with your model, prompts and reward, also under `accelerate launch`.",
    )
    add_options(parser, TrainArguments)
    add_options(parser, PPOConfig)
    options = parser.parse_args(arguments)
    return take(options, TrainArguments), take(options, PPOConfig)


def main(options: argparse.Namespace) -> int:
    """Run `minippo train`, whose options are all in `options.rest`."""
    return train(*train_options(options.rest))


def train(options: TrainArguments, config: PPOConfig) -> int:
    """Run `minippo train` with its parsed options and return the exit code."""
    quiet()
    folder = Path(options.output)
    found = is_checkpoint(folder)
    if found and not options.resume:
        fail("train", "--output", "be a new folder (or pass --resume)", f"a checkpoint, {folder}")
    if options.resume and not found:
        fail("train", "--output", "hold a checkpoint for --resume", str(folder))
    prompts = load_prompts(options.prompts)
    policy, tokenizer = load_policy(options.model)
    trainer = PPOTrainer(
        policy,
        frozen_copy(policy),
        find_score(options.reward, tokenizer),
        tokenizer,
        config,
        log_with=options.log_with,
        log_dir=folder.with_name(f"{folder.name}.logs"),
    )
    if options.resume:
        trainer.resume(folder)
    check_run(trainer, prompts, options.n_steps)  # a refused run leaves no folder behind
    trainer.save(folder)  # before the first step, so that an unwritable folder fails now
    say = trainer.accelerator.print  # once, whatever the number of processes
    say(f"PPO on {options.model}: {options.n_steps} steps of {config.rollout_size} responses, "
        f"learning rate {trainer.learning_rate:.2g}")  # fmt: skip
    with _Stopper() as stopper:
        samples = sampler(trainer, prompts[0], options.save_every)
        trainer.callbacks += [_saver(folder, options.save_every), _reporter, samples, stopper]
        trainer.train(prompts, options.n_steps)
    trainer.save(folder)
    done = len(trainer.history)
    say(f"checkpoint after step {done}: {folder}\nto use it: load_policy({options.output!r})")
    if stopper.asked:
        print(f"stopped after step {done}; to continue, repeat the command with --resume",
              file=sys.stderr)  # fmt: skip
        return 130
    say("to continue: repeat the command with --resume and a larger --n_steps")
    return 0


def find_score(reward: str, tokenizer: PreTrainedTokenizerBase) -> Score:
    """Find the score: a reward model's name or folder, module:function or file.py:function."""
    if not (match := re.fullmatch(r"(.+):([A-Za-z_]\w*)", reward)):
        return load_score(reward, tokenizer)
    where, name = match.groups()
    if where.endswith(".py"):
        if not Path(where).is_file():
            fail("train", "--reward", "name an existing file", where)
        spec = importlib.util.spec_from_file_location(Path(where).stem, where)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(where)
    if not callable(function := getattr(module, name, None)):
        fail("train", "--reward", f"name a function of {where}", name)
    return text_score(tokenizer, function)


class _Stopper:
    """The first Ctrl-C ends training after the current step; the second ends it at once."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "_Stopper":
        self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _ask(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print("\nstopping after this step (Ctrl-C again to stop at once)", file=sys.stderr)

    def __call__(self, trainer: PPOTrainer, stats: Stats) -> bool:
        return self.asked


def _saver(folder: Path, every: int) -> Callable[[PPOTrainer, Stats], None]:
    def save(trainer: PPOTrainer, stats: Stats) -> None:
        if len(trainer.history) % every == 0:
            trainer.save(folder)

    return save


def _reporter(trainer: PPOTrainer, stats: Stats) -> None:
    """Print one line per step, for logs that cannot show a bar."""
    if trainer.accelerator.is_main_process:
        names = ("step", "score", "kl", "entropy", "clip_fraction", "value_loss")
        tqdm.write("  ".join(f"{name} {stats[name]:.4g}" for name in names))
