"""Runs on file: a callback of the trainer writes one, `load_run` reads it.

One JSON file a run: the statistics of each step, and for a few held-out prompts, at chosen steps,
the response with what PPO sees at each of its tokens.
"""

import json
import math
import os
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minippo import __version__, entropy, probability_ratio, token_log_probs
from minippo._validate import check_number, fail
from minippo.data import SHIPPED_RUNS, read, shipped

FORMAT, VERSION = "minippo run", 1
PER_TOKEN = ("ratio", "advantage", "kl", "entropy")


@dataclass(frozen=True)
class Run:
    """A recorded run.

    Attributes:
        name: the file's, without its ending.
        config: the trainer's configuration, as plain values; "seed" is among them.
        history: the statistics of each step, as `PPOTrainer.history`.
        records: of each recorded step and each prompt {"step", "prompt", "tokens": [str], "score"},
            and for each token "ratio", "advantage", "kl" and "entropy"; see `Recorder`.
    """

    name: str
    config: dict[str, Any]
    history: list[dict[str, float]]
    records: list[dict[str, Any]]

    @property
    def prompts(self) -> list[str]:
        """The held-out prompts, in their order."""
        return list(dict.fromkeys(record["prompt"] for record in self.records))

    def response(self, prompt: str, step: int) -> dict[str, Any] | None:
        """The latest record of a prompt at or before a step; None if there is none so early."""
        found = [r for r in self.records if r["prompt"] == prompt and r["step"] <= step]
        return max(found, key=lambda record: record["step"], default=None)


class Recorder:
    """A callback that writes the run to one file, whole after every step.

    The held-out prompts are answered with the same random numbers every time, so that a text
    changes only when the policy does. Their responses are not trained on, and recording changes
    nothing of the training. At each token are recorded:

    - ratio: its probability now over that under the policy *at the previous record*; 1 at first.
      With `every=1` that is what one PPO step did to it. (A copy of the policy is kept.)
    - advantage: as the trainer computes it, not whitened, in units of the reward;
    - kl: to the reference by the configuration's estimator, in nats; k1 may be negative;
    - entropy: of the distribution that it was drawn from, in nats.

    Args:
        path: of the file, which is overwritten; name it .json.
        prompts: held out; none is allowed.
        every: steps between two records of the responses; statistics are of every step.
        seed: of the random numbers.

    `record(trainer)` before `train` adds what the untrained policy answers, as step 0.
    """

    def __init__(
        self, path: str | Path, prompts: Sequence[str] = (), *, every: int = 1, seed: int = 0
    ) -> None:
        check_number("Recorder", 1, every=every)
        if isinstance(prompts, str):
            fail("Recorder", "prompts", "be a list of texts", repr(prompts)[:60])
        self.path, self.prompts, self.every, self.seed = Path(path), list(prompts), every, seed
        self.records: list[dict[str, Any]] = []
        self._previous: Any = None  # the policy at the previous record

    def __call__(self, trainer: Any, stats: dict[str, float]) -> None:
        """After a step."""
        if len(trainer.history) % self.every == 0:
            self.record(trainer)
        elif trainer.accelerator.is_main_process:
            self._write(trainer)

    def record(self, trainer: Any) -> None:
        """Answer the prompts now, and write the file."""
        if not trainer.accelerator.is_main_process:
            return
        step = len(trainer.history)
        if self.prompts and all(record["step"] != step for record in self.records):
            python, training = random.getstate(), trainer.policy.training
            with torch.random.fork_rng(), torch.no_grad(), trainer.autocast():
                self._answer(trainer, step)  # a score function may draw random numbers, too
            random.setstate(python)
            trainer.policy.train(training)
        self._write(trainer)

    def _answer(self, trainer: Any, step: int) -> None:
        # Here, since transformers takes seconds, which who only reads a run need not wait for.
        from minippo.models import frozen_copy
        from minippo.rollout import collect, encode_prompts, evaluate

        config, tokenizer, policy = trainer.config, trainer.tokenizer, trainer.policy.eval()
        device = trainer.accelerator.device
        generator = torch.Generator().manual_seed(self.seed)
        uniforms = torch.rand(len(self.prompts), config.max_new_tokens, generator=generator)
        ids, mask = encode_prompts(tokenizer, self.prompts)
        rollout = collect(
            policy,
            trainer.reference,
            trainer.score,
            ids.to(device),
            mask.to(device),
            max_new_tokens=config.max_new_tokens,
            eos_token_id=tokenizer.eos_token_id,
            temperature=config.temperature,
            uniforms=uniforms.to(device),
            kl_estimator=config.kl_estimator,
        )
        responses = rollout.responses
        old = evaluate(self._previous or policy, responses)[0]
        old_log_probs = token_log_probs(old, responses.ids, temperature=config.temperature)
        per_token = {
            "ratio": probability_ratio(rollout.log_probs, old_log_probs),
            "advantage": _raw_advantages(trainer, rollout),
            "kl": rollout.kl,
            "entropy": entropy(evaluate(policy, responses)[0], temperature=config.temperature),
        }
        for i, (prompt, real) in enumerate(zip(self.prompts, responses.mask, strict=True)):
            tokens = [tokenizer.decode([token]) for token in responses.ids[i][real].tolist()]
            numbers = {name: _rounded(x[i][real].tolist()) for name, x in per_token.items()}
            record = {"step": step, "prompt": prompt, "tokens": tokens, **numbers}
            self.records.append(record | {"score": _rounded([float(rollout.total_scores[i])])[0]})
        self._previous = frozen_copy(policy)

    def _write(self, trainer: Any) -> None:
        run = {
            "format": FORMAT,
            "version": VERSION,
            "minippo": __version__,
            "config": asdict(trainer.config),
            "history": {
                name: [_significant(stats[name]) for stats in trainer.history]
                for name in (trainer.history or [{}])[0]
            },
            "records": self.records,
        }
        made = self.path.with_name(f"{self.path.name}.unfinished")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        made.write_text(json.dumps(run, ensure_ascii=False, allow_nan=False), encoding="utf-8")
        os.replace(made, self.path)  # a kill leaves the last file whole


def load_run(source: str | Path) -> Run:
    """A run that ships with the package ("healthy"), or the file that a `Recorder` wrote.

    Numbers that were not finite come back as NaN.

    Raises:
        ValueError: no such file, or not a run, or a part of one, or of a later version.

    >>> run = load_run("healthy")
    >>> run.history[0]["step"], run.records[0]["step"]
    (1.0, 0)
    """
    path = shipped(str(source)) if source in SHIPPED_RUNS else Path(source)
    if not path.is_file():
        known = f"be a file or one of {', '.join(SHIPPED_RUNS)}"
        fail("load_run", "source", known, str(source))
    try:
        run = json.loads(read(path))
    except ValueError as error:  # also what is not UTF-8
        fail("load_run", path.name, "be the whole JSON of a run", f"{error}")
    if not isinstance(run, dict) or run.get("format") != FORMAT:
        fail("load_run", path.name, "be written by a Recorder", "other JSON")
    if run.get("version") != VERSION:
        must = f"be of version {VERSION}, which minippo {__version__} reads"
        fail("load_run", path.name, must, f"{run.get('version')} (minippo {run.get('minippo')})")
    try:
        return _parsed(Path(path.name.removesuffix(".xz")).stem, run)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        fail("load_run", path.name, "hold every part of a run", f"{type(error).__name__} {error}")


def _parsed(name: str, run: dict[str, Any]) -> Run:
    columns = {key: _floats(column) for key, column in run["history"].items()}
    history = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    records = []
    for record in run["records"]:
        floats = {key: _floats(record[key]) for key in PER_TOKEN}
        if {len(record["tokens"])} != {len(x) for x in floats.values()}:
            raise ValueError("number of tokens in a record")
        kept = {key: record[key] for key in ("step", "prompt", "tokens")}
        records.append(kept | floats | {"score": _floats([record["score"]])[0]})
    return Run(name, dict(run["config"]), history, records)


def _raw_advantages(trainer: Any, rollout: Any) -> Tensor:
    """Before whitening; at the sequence level the response's, at each of its tokens."""
    advantages: Tensor = trainer.credit(rollout).advantages
    wide = rollout.values.shape
    return advantages if advantages.dim() == 2 else advantages.unsqueeze(1).expand(wide)


def _rounded(numbers: Sequence[float]) -> list[float | None]:
    return [round(x, 3) if math.isfinite(x) else None for x in numbers]


def _significant(x: float) -> float | None:
    return float(f"{x:.4g}") if math.isfinite(x) else None


def _floats(numbers: Sequence[float | None]) -> list[float]:
    return [math.nan if x is None else float(x) for x in numbers]
