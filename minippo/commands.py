"""What `minippo demo` and `minippo train` do; the command line that calls them is `minippo.cli`."""

import argparse
import importlib
import importlib.util
import json
import re
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from minippo import kl_k1, plots, world
from minippo._validate import fail
from minippo.data import DATA, load_prompts
from minippo.models import PolicyWithValue, frozen_copy, load_policy
from minippo.options import add_options, take
from minippo.ppo import PPOConfig
from minippo.rollout import Rollout, Score, collect, decode, encode_prompts, load_score, text_score
from minippo.trainer import STATE, PPOTrainer, Stats

STEPS = 18  # of the demo
# lam = 1 is Monte Carlo: the value head of so small a model is too weak to bootstrap from.
DEMO = PPOConfig(lam=1.0, total_steps=STEPS)


@dataclass
class TrainArguments:
    """What `minippo train` trains on."""

    # ---- what to train, on what ----
    prompts: str
    """A file (.jsonl, .csv, .parquet, .txt), prompts-train, or a hub data set (owner/name); another
    column than prompt: NAME:column."""
    reward: str
    """A reward model's name or folder (of a classifier: NAME#label), or module:function or
    file.py:function of a function(prompts, responses) that returns a list of numbers."""
    output: str
    """The folder of the checkpoint: new, or with --resume."""
    model: str = "tiny-gpt2-sft"
    """A shipped name, a folder, or a hub model."""
    n_steps: int = 100
    """PPO steps in all, resumed ones included."""
    save_every: int = 10
    """Steps between checkpoints."""
    resume: bool = False
    """Go on from the checkpoint in --output."""
    log_with: str | None = None
    """tensorboard, wandb, ..."""


def _quiet() -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()


# ---- demo --------------------------------------------------------------------------------------


@torch.no_grad()
def examine(
    policy: PolicyWithValue,
    reference: PolicyWithValue,
    tokenizer: PreTrainedTokenizerBase,
    score: Score,
    *,
    per_prompt: int = 7,
) -> tuple[list[tuple[str, str]], dict[str, float]]:
    """Answers to the held-out prompts, always with the same random numbers, and their figures."""
    prompts = [prompt for prompt in world.PROMPTS_HELD_OUT for _ in range(per_prompt)]
    uniforms = torch.rand(len(prompts), 40, generator=torch.Generator().manual_seed(0))
    ids, mask = encode_prompts(tokenizer, prompts)
    rollout: Rollout = collect(
        policy,
        reference,
        score,
        ids,
        mask,
        max_new_tokens=40,
        eos_token_id=tokenizer.eos_token_id,
        uniforms=uniforms,
        chunk_size=64,
    )
    texts = list(zip(prompts, decode(tokenizer, rollout.responses)[1], strict=True))
    kl = kl_k1(rollout.log_probs, rollout.ref_log_probs).sum(1)
    return texts, {
        "gold": sum(world.gold(p, r) for p, r in texts) / len(texts),
        "proxy": float(rollout.scores.mean()),
        "kl": float(kl.mean()),
    }


def demo(seed: int, output: Path) -> int:
    """Train the shipped model, print before and after, draw the run; the exit code."""
    _quiet()
    policy, tokenizer = load_policy("tiny-gpt2-sft")
    reference = frozen_copy(policy)
    score = load_score("tiny-gpt2-reward", tokenizer)
    before, first = examine(policy, reference, tokenizer, score)
    config = replace(DEMO, seed=seed)
    print(f"PPO on tiny-gpt2-sft, {STEPS} steps of {config.rollout_size} responses, judged by "
          "tiny-gpt2-reward alone.")  # fmt: skip
    trainer = PPOTrainer(policy, reference, score, tokenizer, config)
    trainer.train(load_prompts("prompts-train"), STEPS)
    after, last = examine(policy, reference, tokenizer, score)

    for i in range(0, len(before), len(before) // 6):
        print(f"\n{before[i][0]}\n  before:{before[i][1]}\n  after: {after[i][1]}")
    manifest = json.loads((DATA / "manifest.json").read_text(encoding="utf-8"))
    best = manifest["figures"]["best"]["gold"]
    share = (last["gold"] - first["gold"]) / (best - first["gold"])
    print(f"\n{f'{len(before)} responses to held-out prompts':38}{'before':>8}{'after':>8}")
    for name, label in (
        ("gold", f"gold reward (hidden; best {best:.2f})"),
        ("proxy", "proxy reward (what PPO was paid)"),
        ("kl", "KL to the first policy, nats/response"),
    ):
        print(f"{label:38}{first[name]:8.2f}{last[name]:8.2f}")
    print(f"gold rose by {share:.0%} of the way to the best")
    output.mkdir(parents=True, exist_ok=True)
    picture = output / "run.png"
    title = f"PPO on a 1 M GPT-2: gold reward {first['gold']:.2f} to {last['gold']:.2f}"
    picture.write_bytes(plots.png(plots.training_run(trainer.history, title=title)))
    print(f"picture: {picture}")
    return 0


# ---- train -------------------------------------------------------------------------------------


def train_options(arguments: Sequence[str]) -> tuple[TrainArguments, PPOConfig]:
    """What the options of `minippo train` say: every field of PPOConfig is one."""
    parser = argparse.ArgumentParser(
        prog="minippo train",
        description="PPO with your model, prompts and reward, also under `accelerate launch`.",
    )
    add_options(parser, TrainArguments)
    add_options(parser, PPOConfig)
    options = parser.parse_args(arguments)
    return take(options, TrainArguments), take(options, PPOConfig)


def train(options: TrainArguments, config: PPOConfig) -> int:
    """What `minippo train` does once its options are understood; the exit code."""
    _quiet()
    folder = Path(options.output)
    found = (folder / STATE).exists() or folder.with_name(f"{folder.name}.previous").exists()
    if found and not options.resume:
        fail("train", "--output", "be a new folder (or say --resume)", f"a checkpoint, {folder}")
    if options.resume and not found:
        fail("train", "--output", "hold a checkpoint where you say --resume", str(folder))
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
    trainer.save(folder)  # before the first step: a folder that cannot be written is found now
    with _Stopper() as stopper:
        trainer.callbacks += [_saver(folder, options.save_every), _reporter, stopper]
        trainer.train(prompts, options.n_steps)
    trainer.save(folder)
    if stopper.asked:
        print(f"stopped after step {len(trainer.history)}; to go on: the same command with "
              "--resume", file=sys.stderr)  # fmt: skip
        return 130
    return 0


def find_score(reward: str, tokenizer: PreTrainedTokenizerBase) -> Score:
    """A reward model by name or folder, or module:function, or file.py:function."""
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
    """The first Ctrl-C ends training after the step that runs; the second ends it at once."""

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
        print("\nstopping after this step (Ctrl-C again: at once)", file=sys.stderr)

    def __call__(self, trainer: PPOTrainer, stats: Stats) -> bool:
        return self.asked


def _saver(folder: Path, every: int) -> Callable[[PPOTrainer, Stats], None]:
    def save(trainer: PPOTrainer, stats: Stats) -> None:
        if len(trainer.history) % every == 0:
            trainer.save(folder)

    return save


def _reporter(trainer: PPOTrainer, stats: Stats) -> None:
    """One line a step, for logs that cannot show a bar."""
    if trainer.accelerator.is_main_process:
        names = ("step", "score", "kl", "entropy", "clip_fraction", "value_loss")
        tqdm.write("  ".join(f"{name} {stats[name]:.4g}" for name in names))
