"""Mistakes about averages over real tokens."""

import torch
from torch import Tensor, where

from minippo.checks.mistakes import flawed
from minippo.checks.mistakes.log_probs import CUT, HALF, _cut, _wide

LEAK = "mask multiplied"


@flawed(
    "padding counted", "mean of the rows' means", "sum instead of mean", "divided by the batch",
    "padding in the sum", LEAK, "mask turned round", HALF, CUT,
)  # fmt: skip
def masked_mean(flags: frozenset[str], x: Tensor, mask: Tensor) -> Tensor:
    """Sum over the real tokens, divided by their number."""
    x = _wide(x, flags)
    mask = ~mask if "mask turned round" in flags else mask
    kept = x * mask if LEAK in flags else where(mask, x, 0.0)
    kept = x if "padding in the sum" in flags else kept
    count: Tensor | int = mask.sum()
    if "padding counted" in flags:
        count = mask.numel()
    if "divided by the batch" in flags:
        count = len(mask)
    if "sum instead of mean" in flags:
        count = 1
    mean = kept.sum() / count
    if "mean of the rows' means" in flags:
        mean = (kept.sum(1) / mask.sum(1)).mean()
    return _cut(mean, flags)


@flawed(
    "Bessel's correction", "padding counted", "padding not zero", "mean kept",
    "variance instead of its root", "each row by itself", "scale forgotten", LEAK, HALF,
    "switch turned round",
)  # fmt: skip
def whiten(flags: frozenset[str], x: Tensor, mask: Tensor, *, keep_mean: bool = False) -> Tensor:
    """(x - mean) / sqrt(variance + 1e-8) over the real tokens; zero on padding."""
    x = _wide(x, flags)
    clean = x if LEAK in flags else where(mask, x, 0.0)
    counted = torch.ones_like(mask) if "padding counted" in flags else mask
    dims = (1,) if "each row by itself" in flags else (0, 1)

    def kept(y: Tensor) -> Tensor:
        return y * counted if LEAK in flags else where(counted, y, 0.0)

    n = counted.sum(dims, keepdim=True)
    mean = kept(clean).sum(dims, keepdim=True) / n
    squares = kept(clean - mean) ** 2
    bessel = int("Bessel's correction" in flags)  # a single token gives 0 / 0
    variance = squares.sum(dims, keepdim=True) / (n - bessel)
    scale = (variance + 1e-8) ** (-1.0 if "variance instead of its root" in flags else -0.5)
    if "scale forgotten" in flags:
        scale = torch.ones_like(scale)
    white = ((x if "padding not zero" in flags else clean) - mean) * scale
    if keep_mean != ("switch turned round" in flags) or "mean kept" in flags:
        white = white + mean
    return white if "padding not zero" in flags else where(mask, white, 0.0)
