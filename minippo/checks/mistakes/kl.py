"""Mistakes about the KL divergence and the controllers of its coefficient."""

import math
from typing import Any

import torch
from torch import Tensor, where

from minippo.checks.engine.observe import is_a_stub
from minippo.checks.mistakes import flawed
from minippo.checks.mistakes.log_probs import CUT, HALF, _cut, _wide

SIGN = "sign turned"
ABSOLUTE = "absolute value"
CLAMPED = "clamped at zero"
SKETCH = "the printed sketch"


@flawed(
    SIGN, ABSOLUTE, CLAMPED, SKETCH, "probabilities subtracted", "ratio without its logarithm", CUT,
)  # fmt: skip
def kl_k1(flags: frozenset[str], log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """log p - log q."""
    k = log_probs - ref_log_probs
    if "probabilities subtracted" in flags:
        k = log_probs.exp() - ref_log_probs.exp()
    k = k.exp() if "ratio without its logarithm" in flags else k
    k = -k if SIGN in flags else k
    k = k.abs() if ABSOLUTE in flags else k
    k = k.clamp(min=0) if CLAMPED in flags else k
    k = -ref_log_probs.exp() * k if SKETCH in flags else k
    return _cut(k, flags)


@flawed("half forgotten", "square forgotten", "square of the probabilities' difference", CUT)
def kl_k2(flags: frozenset[str], log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """(log p - log q)^2 / 2."""
    d = log_probs - ref_log_probs
    if "square of the probabilities' difference" in flags:
        d = log_probs.exp() - ref_log_probs.exp()
    k = d if "square forgotten" in flags else d**2
    return _cut(k if "half forgotten" in flags else k / 2, flags)


@flawed(
    "upside down", "one forgotten", "log added", "k1 instead", "k2 instead", "sign turned",
    "log-probs divided", "ratio detached", "clamped at 10", SKETCH, CUT,
)  # fmt: skip
def kl_k3(flags: frozenset[str], log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """r - 1 - log r with r = q / p."""
    d = ref_log_probs - log_probs
    k1, k2 = -d, d**2 / 2
    d = -d if "upside down" in flags else d
    d = (ref_log_probs / log_probs).log() if "log-probs divided" in flags else d
    ratio = d.exp().detach() if "ratio detached" in flags else d.exp()
    k = ratio - (0.0 if "one forgotten" in flags else 1.0)
    k = k + d if "log added" in flags else k - d
    k = k.clamp(-10, 10) if "clamped at 10" in flags else k
    k = k1 if "k1 instead" in flags else k2 if "k2 instead" in flags else k
    k = -ref_log_probs.exp() * k1 if SKETCH in flags else k
    return _cut(-k if "sign turned" in flags else k, flags)


@flawed(
    "the other direction", "weights of the reference", "mean over the vocabulary",
    "temperature forgotten", "0 times infinity is NaN", "infinity lost", SIGN, "no gradient",
    "log of softmax", "in bits", HALF,
    "temperature on the policy alone",
)  # fmt: skip
def exact_kl(
    flags: frozenset[str], logits: Tensor, ref_logits: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """Sum of p (log p - log q)."""
    t = 1.0 if "temperature forgotten" in flags else temperature
    other = 1.0 if "temperature on the policy alone" in flags else t
    log_p, log_q = (
        z.softmax(-1).log() if "log of softmax" in flags else z.log_softmax(-1)
        for z in (_wide(logits, flags) / t, _wide(ref_logits, flags) / other)
    )
    if "the other direction" in flags:
        log_p, log_q = log_q, log_p
    weights = log_q.exp() if "weights of the reference" in flags else log_p.exp()
    difference = (log_p - log_q) / (math.log(2) if "in bits" in flags else 1.0)
    if "0 times infinity is NaN" not in flags:
        difference = where(weights > 0, difference, 0.0)
    weights = weights.detach() if "no gradient" in flags else weights
    terms = weights * difference
    total = terms.mean(-1) if "mean over the vocabulary" in flags else terms.sum(-1)
    if not {"0 times infinity is NaN", "infinity lost"} & flags:
        ruled_out = (log_q == -math.inf) & (log_p > -math.inf)
        total = total.masked_fill(ruled_out.any(-1), math.inf)
    return -total if SIGN in flags else total


class _Controller:
    def __init__(self, flags: frozenset[str], coef: float, **rest: Any) -> None:
        self.flags, self.coef, self.rest = flags, coef, rest
        self.first = coef

    def update(self, kl: float, n_episodes: int) -> None:
        target, horizon = self.rest["target"], self.rest["horizon"]
        error = kl - target if "error not relative" in self.flags else kl / target - 1
        if "error not clipped" not in self.flags:
            error = min(max(error, -0.2), 0.2)
        error = -error if "wrong way" in self.flags else error
        n = 1 if "episodes not counted" in self.flags else n_episodes
        change = error * n / horizon
        if "0.1 for n / horizon" in self.flags:
            change = 0.1 * error
        if "never moves" in self.flags:
            change = 0.0
        if "starts over" in self.flags:
            self.coef = self.first
        self.coef = self.coef + change if "added" in self.flags else self.coef * (1 + change)


@flawed(
    "wrong way", "error not clipped", "added", "episodes not counted", "error not relative",
    "starts over", "0.1 for n / horizon", "never moves",
)  # fmt: skip
def AdaptiveKL(flags: frozenset[str], coef: float, **rest: Any) -> _Controller:  # noqa: N802
    """coef *= 1 + clip(kl / target - 1, +-0.2) * n / horizon."""
    return _Controller(flags, coef, **rest)


def coefficients(make: Any, inputs: dict[str, Any]) -> Any:
    """Return the coefficient after each of a list of updates."""
    if is_a_stub(getattr(make, "update", None)):
        return ...
    settings = {name: inputs[name] for name in ("target", "horizon") if name in inputs}
    controller = make(inputs["coef"], **settings)
    found = []
    for kl in inputs["kls"].tolist():
        controller.update(kl, inputs["n_episodes"])
        found.append(float(controller.coef))
    return torch.tensor(found)
