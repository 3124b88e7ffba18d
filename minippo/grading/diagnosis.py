"""Broken PPO runs to diagnose: a tiny task and six bugs, three of them drawn per student.

The task: four prompts, a vocabulary of five tokens, up to eight tokens per response; one token
earns reward. The policy is a table, so a run takes a third of a second and its curves show little
but the bug.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, where

from minippo import entropy, explained_variance, monte_carlo_returns, shape_rewards, token_log_probs
from minippo._validate import fail
from minippo.checks.mistakes import CATALOGUE
from minippo.checks.ppo import TablePolicy
from minippo.plots import COLOURS
from minippo.ppo import PPOConfig
from minippo.responses import Responses, Rollout, response_mask

Update = Callable[..., Any]
PROMPTS, TIME, VOCAB, EOS, PAID, EACH = 4, 8, 5, 4, 1, 16
CONFIG = PPOConfig(
    rollout_size=PROMPTS * EACH, minibatch_size=PROMPTS * EACH, epochs=4, kl_coef=0.2,
    max_grad_norm=0.5, value_clip_range=None,
)  # fmt: skip
BUGS = (
    "KL not paid",
    "KL rewarded",
    "gradients pile up",
    "one epoch only",
    "returns from whitened advantages",
    "score on every token",
)


def suspect(bug: str) -> Update:
    """Return a `ppo_update` with this bug, to experiment with."""
    if bug not in BUGS:
        fail("suspect", "bug", f"be one of {', '.join(BUGS)}", repr(bug))
    return CATALOGUE["ppo_update"].version([bug])


def drawn(student: str) -> list[str]:
    """Return a student's three bugs, in the order of the runs."""
    return random.Random(f"diagnosis {student}").sample(BUGS, 3)


def broken_runs(student: str) -> list[list[dict[str, float]]]:
    """Return the curves of a student's three runs."""
    return [toy_run(suspect(bug), seed=i) for i, bug in enumerate(drawn(student))]


def toy_run(update: Update, *, seed: int = 0, steps: int = 30) -> list[dict[str, float]]:
    """Train the table with `update(policy, optimizer, rollout, config)` and return the curves.

    Each step has score, kl and entropy (nats), length (tokens), value_loss and
    explained_variance, all measured here, not by the update.
    """
    generator = torch.Generator().manual_seed(seed)
    first = 0.5 * torch.randn(PROMPTS, TIME, VOCAB, generator=generator)
    policy = TablePolicy(first.clone(), torch.zeros(PROMPTS, TIME), learn=True)
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.1)
    history = []
    for step in range(steps):
        rollout, stats = _rollout(policy, first, generator)
        history.append({"step": float(step + 1)} | stats)
        update(policy, optimizer, rollout, CONFIG)
    return history


@torch.no_grad()
def _rollout(
    policy: TablePolicy, first: Tensor, generator: torch.Generator
) -> tuple[Rollout, dict[str, float]]:
    rows = torch.arange(PROMPTS).repeat_interleave(EACH)
    logits, values = policy.logits[rows], policy.values[rows]
    flat = logits.softmax(-1).reshape(-1, VOCAB)
    ids = torch.multinomial(flat, 1, generator=generator).reshape(len(rows), TIME)
    mask = response_mask(ids, EOS)
    log_probs, ref_log_probs = (
        where(mask, token_log_probs(z, ids), 0.0) for z in (logits, first[rows])
    )
    # Twice the share of the rewarded token: a score between 0 and 2 at any length.
    scores = 2 * ((ids == PAID) & mask).sum(1) / mask.sum(1)
    kl, values = log_probs - ref_log_probs, where(mask, values, 0.0)
    rewards = shape_rewards(scores, kl, mask, kl_coef=CONFIG.kl_coef)
    returns = monte_carlo_returns(rewards, mask)
    stats = {
        "score": scores.mean(),
        "kl": kl.sum(1).mean(),
        "entropy": entropy(logits)[mask].mean(),
        "length": mask.sum(1).float().mean(),
        "value_loss": 0.5 * (values - returns)[mask].square().mean(),
        "explained_variance": explained_variance(values, returns, mask),
    }
    responses = Responses(rows.unsqueeze(1), torch.ones(len(rows), 1).bool(), ids, mask)
    truncated = ~(ids == EOS).any(1)
    rollout = Rollout(
        responses, log_probs, ref_log_probs, values, scores, kl, truncated, torch.zeros(len(rows))
    )
    return rollout, {name: float(x) for name, x in stats.items()}


def figure(
    runs: Sequence[Sequence[dict[str, float]]], healthy: Sequence[dict[str, float]]
) -> Figure:
    """Plot one column of curves per run, with a healthy run in grey behind it.

    What to see: which curve leaves the healthy one first, in which direction, and which do not.
    """
    names = {
        "score": ("score", "reward"),
        "kl": ("KL to reference\n(nats/response)", "kl"),
        "entropy": ("entropy\n(nats/token)", "entropy"),
        "length": ("length\n(tokens)", "policy"),
        "value_loss": ("value loss", "value"),
        "explained_variance": ("explained\nvariance", "value"),
    }
    made = Figure(figsize=(9, 10), layout="constrained")
    made.suptitle("dashed grey: a healthy run")
    grid = made.subplots(len(names), len(runs), sharex=True, squeeze=False)
    for row, (name, (label, colour)) in zip(grid, names.items(), strict=True):
        row[0].set_ylabel(label)
        for axes, run in zip(row, runs, strict=True):
            for history, style in (
                (healthy, {"color": COLOURS["reference"], "ls": "--"}),
                (run, {"color": COLOURS[colour]}),
            ):
                axes.plot([h["step"] for h in history], [h[name] for h in history], **style)
            axes.grid(alpha=0.3)
    for i, (top, bottom) in enumerate(zip(grid[0], grid[-1], strict=True)):
        top.set_title(f"run {i + 1}")
        bottom.set_xlabel("PPO step")
    return made
