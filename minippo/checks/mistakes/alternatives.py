"""Mistakes about DPO, GRPO and RLOO."""

import math

import torch
from torch import Tensor, zeros_like
from torch.nn.functional import softplus

from minippo.checks.mistakes import flawed
from minippo.checks.mistakes.log_probs import CUT, _cut


@flawed(
    "reference forgotten", "beta forgotten", "beta outside", "chosen and rejected swapped",
    "reference swapped", "log of sigmoid", "sigmoid forgotten", "minus forgotten", CUT,
    "IPO",
)  # fmt: skip
def dpo_loss(
    flags: frozenset[str], policy_chosen: Tensor, policy_rejected: Tensor, ref_chosen: Tensor,
    ref_rejected: Tensor, *, beta: float,
) -> Tensor:  # fmt: skip
    """-log sigmoid(beta * ((pc - rc) - (pr - rr)))."""
    if "reference forgotten" in flags:
        ref_chosen, ref_rejected = zeros_like(ref_chosen), zeros_like(ref_rejected)
    if "reference swapped" in flags:
        ref_chosen, ref_rejected = ref_rejected, ref_chosen
    d = (policy_chosen - ref_chosen) - (policy_rejected - ref_rejected)
    d = -d if "chosen and rejected swapped" in flags else d
    inside = 1.0 if {"beta forgotten", "beta outside"} & flags else beta
    loss = softplus(-inside * d)
    if "log of sigmoid" in flags:
        loss = -(inside * d).sigmoid().log()
    if "IPO" in flags:
        loss = (d - 1 / (2 * beta)) ** 2
    loss = -inside * d if "sigmoid forgotten" in flags else loss
    loss = -loss if "minus forgotten" in flags else loss
    return _cut(beta * loss if "beta outside" in flags else loss, flags)


@flawed(
    "Bessel's correction", "one group for all", "mean kept", "scale forgotten", "switch ignored",
    "axes swapped", "variance instead of its root", "0 / 0 is NaN", "1e-4 added to the deviation",
    "leave-one-out",
)  # fmt: skip
def group_advantages(flags: frozenset[str], scores: Tensor, *, normalize: bool = True) -> Tensor:
    """(score - mean) / sqrt(variance + 1e-8), per group."""
    dims = (0, 1) if "one group for all" in flags else (0,) if "axes swapped" in flags else (1,)
    centred = scores - scores.mean(dims, keepdim=True)
    squares = (centred**2).sum(dims, keepdim=True)
    n = math.prod(scores.shape[dim] for dim in dims) - ("Bessel's correction" in flags)
    variance = squares / torch.tensor(float(n))
    kept = scores if "mean kept" in flags else centred
    if "leave-one-out" in flags:
        kept = centred * scores.shape[1] / (scores.shape[1] - 1)
    if "scale forgotten" in flags or not (normalize or "switch ignored" in flags):
        return kept
    outside = "1e-4 added to the deviation" in flags
    variance = variance + (0.0 if outside or "0 / 0 is NaN" in flags else 1e-8)
    scale = variance if "variance instead of its root" in flags else variance.sqrt()
    return kept / (scale + 1e-4 if outside else scale)


@flawed(
    "own score counted", "divided by k", "normalised", "sign turned", "one group for all",
    "baseline returned", "axes swapped", "GRPO's advantages", "GRPO's advantages, with 1e-4",
)  # fmt: skip
def leave_one_out_advantages(flags: frozenset[str], scores: Tensor) -> Tensor:
    """score - mean of the others."""
    dims = (0, 1) if "one group for all" in flags else (0,) if "axes swapped" in flags else (1,)
    n = math.prod(scores.shape[dim] for dim in dims)
    total = scores.sum(dims, keepdim=True)
    if {"GRPO's advantages", "GRPO's advantages, with 1e-4"} & flags:
        eps = 1e-4 if "GRPO's advantages, with 1e-4" in flags else 1e-8
        return (scores - scores.mean(1, keepdim=True)) / (scores.std(1, keepdim=True) + eps)
    others = (total - scores) / (n if "divided by k" in flags else n - 1)
    if "own score counted" in flags:
        others = (total / n).expand_as(scores)
    advantages = others if "baseline returned" in flags else scores - others
    if "normalised" in flags:
        advantages = advantages / (scores.var(1, correction=0, keepdim=True) + 1e-8).sqrt()
    return -advantages if "sign turned" in flags else advantages
