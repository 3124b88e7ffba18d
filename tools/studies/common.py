"""Code shared by the studies: PPO in the shipped world, gold reward, rows on file.

A study is a file of rows, one JSON object per line, one per run of an experiment: its "case" (what
was varied, and the seed) and its results. A case that has a row is not run again, so a study that
was stopped continues where it was.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from minippo import world
from minippo.data import load_prompts, read_jsonl, write_jsonl
from minippo.models import PolicyWithValue, frozen_copy, load_policy
from minippo.ppo import PPOConfig
from minippo.rollout import Score, collect, decode, encode_prompts, load_score
from minippo.trainer import Callback, PPOTrainer

Row = dict[str, Any]
SEEDS = range(5)


def make_rows(path: Path, cases: Iterable[Mapping[str, Any]], run: Callable[..., Row]) -> None:
    """Append {"case": case, **run(**case)} for each case that has no row yet."""
    rows = read_jsonl(path) if path.exists() else []
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"new-{path.name}")
    for case in cases:
        if dict(case) in [row["case"] for row in rows]:
            continue
        start = time.perf_counter()
        rows.append(rounded({"case": dict(case), **run(**case)}))
        write_jsonl(unfinished, rows)
        unfinished.replace(path)
        print(path.stem, dict(case), f"{time.perf_counter() - start:.0f} s", flush=True)


def ppo(
    config: PPOConfig,
    n_steps: int,
    *,
    score: Score | str = "tiny-gpt2-reward",
    prompts: Sequence[str] | None = None,
    callbacks: Sequence[Callback] = (),
    kind: type[PPOTrainer] = PPOTrainer,
) -> PPOTrainer:
    """Train the shipped SFT model by `n_steps` of PPO; return the trainer with its history."""
    policy, tokenizer = load_policy("tiny-gpt2-sft")
    judge = load_score(score, tokenizer) if isinstance(score, str) else score
    trainer = kind(policy, frozen_copy(policy), judge, tokenizer, config, callbacks=callbacks)
    trainer.train(prompts or load_prompts("prompts-train"), n_steps)
    return trainer


def curves(trainer: PPOTrainer, *names: str) -> dict[str, list[float]]:
    """Return some statistics of every step."""
    return {name: [stats[name] for stats in trainer.history] for name in names}


def judged(
    policy: PolicyWithValue,
    reference: PolicyWithValue,
    tokenizer: Any,
    score: Score,
    *,
    prompts: Sequence[str] = world.PROMPTS_HELD_OUT,
    samples: int = 4,
    max_new_tokens: int = 40,
    seed: int = 12345,
) -> dict[str, float]:
    """Return means over `samples` responses per held-out prompt, with fixed random numbers.

    gold and its parts, proxy (what `score` says), kl to `reference` (nats per response, k1), length
    (tokens), ended (share with an EOS), distinct (share of distinct texts), distinct_2 (share
    of distinct word pairs), repeated (share of words that occurred earlier in their text).
    """
    repeated = [prompt for prompt in prompts for _ in range(samples)]
    ids, mask = encode_prompts(tokenizer, repeated)
    uniforms = torch.rand(len(ids), max_new_tokens, generator=torch.Generator().manual_seed(seed))
    rollout = collect(
        policy.eval(),
        reference,
        score,
        ids,
        mask,
        max_new_tokens=max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        uniforms=uniforms,
        chunk_size=64,
    )
    texts = decode(tokenizer, rollout.responses)[1]
    parts = [world.gold_parts(p, t) for p, t in zip(repeated, texts, strict=True)]
    kl = torch.where(rollout.mask, rollout.log_probs - rollout.ref_log_probs, 0.0).sum(1)
    return {
        "gold": _mean(sum(p.values()) for p in parts),
        **{name: _mean(p[name] for p in parts) for name in parts[0]},
        "proxy": float(rollout.total_scores.mean()),
        "kl": float(kl.mean()),
        "length": float(rollout.mask.sum(1).float().mean()),
        "ended": float((~rollout.truncated).float().mean()),
        **diversity(texts),
    }


def diversity(texts: Sequence[str]) -> dict[str, float]:
    """Measure how much texts differ from each other, and how much they repeat themselves."""
    words = [text.split() for text in texts]
    pairs = Counter(pair for text in words for pair in pairwise(text))
    return {
        "distinct": len(set(texts)) / len(texts),
        "distinct_2": len(pairs) / max(sum(pairs.values()), 1),
        "repeated": _mean(1 - len(set(text)) / max(len(text), 1) for text in words),
    }


def rounded(x: Any) -> Any:
    """Round numbers to four digits in lists and dictionaries; non-finite ones become None."""
    if isinstance(x, float):
        return float(f"{x:.4g}") if math.isfinite(x) else None
    if isinstance(x, Mapping):
        return {key: rounded(value) for key, value in x.items()}
    return [rounded(value) for value in x] if isinstance(x, list | tuple) else x


def _mean(numbers: Iterable[float]) -> float:
    collected = list(numbers)
    return sum(collected) / len(collected)
