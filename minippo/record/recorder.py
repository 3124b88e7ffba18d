"""A trainer callback that writes a run to one JSON file."""

import json
import math
import os
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minippo import __version__, entropy, probability_ratio, token_log_probs
from minippo._validate import check_number, fail
from minippo.record.run import FORMAT, VERSION


class Recorder:
    """A callback that writes the run to one file, complete after every step.

    The held-out prompts are answered with the same random numbers every time, so a text changes
    only when the policy does. Their responses are not trained on, and recording does not affect
    training. Recorded per token:

    - ratio: its probability now over that under the policy *at the previous record*; 1 at first.
      With `every=1` that is the effect of one PPO step. (A copy of the policy is kept.)
    - advantage: as the trainer computes it, not whitened, in units of the reward;
    - kl: KL to the reference by the configuration's estimator, in nats; k1 may be negative;
    - entropy: that of the distribution the token was drawn from, in nats.

    Args:
        path: The output file, which is overwritten; name it .json.
        prompts: Held-out prompts; may be empty.
        every: Steps between two records of the responses; statistics are recorded at every step.
        seed: Seed of the random numbers.

    Call `record(trainer)` before `train` to add the untrained policy's responses as step 0.
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
        """Record a finished step."""
        if len(trainer.history) % self.every == 0:
            self.record(trainer)
        elif trainer.accelerator.is_main_process:
            self._write(trainer)

    def record(self, trainer: Any) -> None:
        """Answer the prompts now and write the file."""
        if not trainer.accelerator.is_main_process:
            return
        step = len(trainer.history)
        if self.prompts and all(record["step"] != step for record in self.records):
            python, training = random.getstate(), trainer.policy.training
            with torch.random.fork_rng(), torch.no_grad(), trainer.autocast():
                self._answer(trainer, step)  # a score function may also draw random numbers
            random.setstate(python)
            trainer.policy.train(training)
        self._write(trainer)

    def _answer(self, trainer: Any, step: int) -> None:
        # Imported here so that reading a recorded run does not load transformers.
        from minippo.models import frozen_copy
        from minippo.rollout import collect, evaluate
        from minippo.texts import encode_prompts

        config, tokenizer, policy = trainer.config, trainer.tokenizer, trainer.policy.eval()
        generator = torch.Generator().manual_seed(self.seed)
        uniforms = torch.rand(len(self.prompts), config.max_new_tokens, generator=generator)
        rollout = collect(
            policy,
            trainer.reference,
            trainer.score,
            *encode_prompts(tokenizer, self.prompts),
            max_new_tokens=config.max_new_tokens,
            eos_token_id=tokenizer.eos_token_id,
            temperature=config.temperature,
            uniforms=uniforms,
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
        os.replace(made, self.path)  # if killed, the previous file stays whole


def _raw_advantages(trainer: Any, rollout: Any) -> Tensor:
    """Advantages before whitening; at the sequence level, the response's at each of its tokens."""
    advantages: Tensor = trainer.credit(rollout).advantages
    wide = rollout.values.shape
    return advantages if advantages.dim() == 2 else advantages.unsqueeze(1).expand(wide)


def _rounded(numbers: Sequence[float]) -> list[float | None]:
    return [round(x, 3) if math.isfinite(x) else None for x in numbers]


def _significant(x: float) -> float | None:
    return float(f"{x:.4g}") if math.isfinite(x) else None
