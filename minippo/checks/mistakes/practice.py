"""Mistakes about the cost of training and the learning rate's schedule."""

import torch
from torch import Tensor, where

from minippo.checks.mistakes import flawed


@flawed(
    "gradients forgotten", "one moment", "master copy forgotten", "master copy of float32",
    "moments as short as the weights", "all of them learn", "frozen models are free", "in bits",
    "the sum",
    "frozen models have a master copy", "gradients of float32",
)  # fmt: skip
def training_memory(
    flags: frozenset[str], billions: Tensor, trained: Tensor, *, weight_bytes: int
) -> Tensor:
    """Bytes per weight, times billions of weights."""
    moment = weight_bytes if "moments as short as the weights" in flags else 4
    short = weight_bytes < 4 or "master copy of float32" in flags
    each = weight_bytes
    gradient = 4 if "gradients of float32" in flags else weight_bytes
    each += 0 if "gradients forgotten" in flags else gradient
    each += moment * (1 if "one moment" in flags else 2)
    each += 4 if short and "master copy forgotten" not in flags else 0
    frozen = 0 if "frozen models are free" in flags else weight_bytes
    if "frozen models have a master copy" in flags and weight_bytes < 4:
        frozen += 4
    if "all of them learn" in flags:
        frozen = each
    found = billions * where(trained, each, frozen) * (8 if "in bits" in flags else 1)
    return found.sum() if "the sum" in flags else found


@flawed(
    "the first step learns nothing", "the warm-up goes on", "below zero",
    "the fall begins after the warm-up", "no fall", "no warm-up", "the smaller of the two",
    "base forgotten",
    "cosine", "the fall begins one step early",
)  # fmt: skip
def learning_rates(
    flags: frozenset[str], steps: Tensor, *, base: float, warmup_steps: int, total_steps: int
) -> Tensor:
    """Warm-up times a linear decay."""
    first = 0 if "the first step learns nothing" in flags else 1
    warm = (steps + first) / warmup_steps
    if "the warm-up goes on" not in flags:
        warm = warm.clamp(max=1.0)
    if "no warm-up" in flags:
        warm = warm * 0 + 1
    done = (steps + 1 if "the fall begins one step early" in flags else steps) / total_steps
    left = (1 + (torch.pi * done.clamp(max=1)).cos()) / 2 if "cosine" in flags else 1 - done
    if "the fall begins after the warm-up" in flags:
        left = ((total_steps - steps) / max(1, total_steps - warmup_steps)).clamp(max=1.0)
    if "below zero" not in flags:
        left = left.clamp(min=0.0)
    if "no fall" in flags:
        left = left * 0 + 1
    both = warm.minimum(left) if "the smaller of the two" in flags else warm * left
    return both if "base forgotten" in flags else base * both
