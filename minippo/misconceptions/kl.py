"""Mistakes about the KL divergence and what steers its coefficient."""

import math
from typing import Any

import torch
from torch import Tensor, where

from minippo.misconceptions import Misconception, flawed
from minippo.misconceptions.log_probs import CUT, HALF, _cut, _wide

SIGN = Misconception(
    "sign turned",
    "log q - log p was taken: the estimate has the wrong sign.",
    "The tokens come from p. Under p, which of the two log-probs is larger on average?",
    "Going far from the reference is paid, and not charged.",
    "rlhf-book's approx_kl1; trlX's mean_kl",
)
ABSOLUTE = Misconception(
    "absolute value",
    "|log p - log q| was taken: it is above the KL on average.",
    "May an estimate of something positive be negative now and then?",
    "For p = (0.2, 0.3, 0.5) and q = (0.5, 0.4, 0.1) its mean is 1.074 nats, and the KL is 0.535.",
    "NeMo Aligner",
)
CLAMPED = Misconception(
    "clamped at zero",
    "Negative values were set to 0: the estimate is above the KL on average.",
    "May an estimate of something positive be negative now and then?",
    "For p = (0.2, 0.3, 0.5) and q = (0.5, 0.4, 0.1) its mean is 0.805 nats, and the KL is 0.535.",
    "AlpacaFarm",
)
SKETCH = Misconception(
    "the printed sketch",
    "exp(log q) * (log q - log p) was taken on sampled tokens: the weight q belongs to a sum over "
    "the vocabulary, and the samples have the weight p already.",
    "Which distribution did the tokens come from, and how often is it counted?",
    "For p = (0.2, 0.3, 0.5) and q = (0.5, 0.4, 0.1) its mean is 0.0457: neither of the KLs.",
    "the usual printed sketch: mean(exp(ref) * (ref - policy))",
)


@flawed(
    SIGN,
    ABSOLUTE,
    CLAMPED,
    SKETCH,
    Misconception(
        "probabilities subtracted",
        "p - q was taken, and not log p - log q.",
        "The inputs are logarithms already. What becomes of a ratio there?",
    ),
    Misconception(
        "ratio without its logarithm",
        "The ratio p / q itself was returned.",
        "What should come out where both policies agree?",
    ),
    CUT,
)
def kl_k1(flags: frozenset[str], log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """log p - log q."""
    k = log_probs - ref_log_probs
    if "probabilities subtracted" in flags:
        k = log_probs.exp() - ref_log_probs.exp()
    k = k.exp() if "ratio without its logarithm" in flags else k
    k = -k if SIGN.name in flags else k
    k = k.abs() if ABSOLUTE.name in flags else k
    k = k.clamp(min=0) if CLAMPED.name in flags else k
    k = -ref_log_probs.exp() * k if SKETCH.name in flags else k
    return _cut(k, flags)


@flawed(
    Misconception("half forgotten", "The factor 0.5 is missing.", "k2 is half a square."),
    Misconception(
        "square forgotten",
        "Half the difference was taken, and not half its square.",
        "May k2 be negative?",
    ),
    Misconception(
        "square of the probabilities' difference",
        "p - q was squared, and not log p - log q.",
        "What goes into k1?",
    ),
    CUT,
)
def kl_k2(flags: frozenset[str], log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """(log p - log q)^2 / 2."""
    d = log_probs - ref_log_probs
    if "square of the probabilities' difference" in flags:
        d = log_probs.exp() - ref_log_probs.exp()
    k = d if "square forgotten" in flags else d**2
    return _cut(k if "half forgotten" in flags else k / 2, flags)


@flawed(
    Misconception(
        "upside down",
        "The ratio p / q was used where q / p belongs.",
        "Under p, the mean of which ratio is 1?",
        "Its mean is another divergence, with heavy tails: 1.27 where the KL is 0.535.",
        "rlhf-book's approx_kl3; rlhf-book #489",
    ),
    Misconception(
        "one forgotten",
        "r - log r: the 1 is missing.",
        "What must the estimate be where both policies agree?",
    ),
    Misconception(
        "log added",
        "r - 1 + log r: the logarithm has the wrong sign.",
        "k3 is never negative. Is yours?",
    ),
    Misconception(
        "k1 instead",
        "log p - log q was returned: that is k1.",
        "Which of the three is never negative?",
        convention="Use k1: log p - log q.",
    ),
    Misconception(
        "k2 instead",
        "Half the squared difference was returned: that is k2.",
        "Which of the three is unbiased and never negative?",
        convention="Use k2: half the square of log p - log q.",
    ),
    Misconception(
        "sign turned",
        "The negative of k3 was returned.",
        "k3 is never negative.",
        "Going far from the reference is paid, and not charged.",
    ),
    Misconception(
        "log-probs divided",
        "The ratio was taken of the log-probs: log q / log p.",
        "The inputs are logarithms. What does a division become there?",
    ),
    Misconception(
        "ratio detached",
        "No gradient goes through q / p: what is left is the gradient of k1.",
        "Look for a detach, or a no_grad around the ratio.",
        "In a loss it does nothing on average: the mean of the gradient of log p is 0.",
    ),
    Misconception(
        "clamped at 10",
        "Values above 10 nats were cut off.",
        "What is the gradient where the policy has gone very far?",
        "What has gone furthest is the only thing that nothing pulls back.",
        "verl, OpenRLHF: a guard against overflow",
        "Clamp the estimate to [-10, 10].",
    ),
    SKETCH,
    CUT,
)
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
    k = -ref_log_probs.exp() * k1 if SKETCH.name in flags else k
    return _cut(-k if "sign turned" in flags else k, flags)


@flawed(
    Misconception(
        "the other direction",
        "KL(reference || policy) was computed.",
        "Whose probabilities are the weights, and whose logarithm comes first?",
        "It spreads the policy over all that the reference does, where RLHF's lets it choose.",
        convention="Compute KL(reference || policy).",
    ),
    Misconception(
        "weights of the reference",
        "log p - log q was weighted by q.",
        "The mean over what the policy does. Which weights are these?",
        "It is never above 0, and 0 only where nothing has changed: a penalty that pays.",
    ),
    Misconception(
        "mean over the vocabulary",
        "The terms were averaged over the vocabulary and not added up.",
        "An expectation is a sum of weights times values.",
        "The larger the vocabulary, the smaller the penalty.",
    ),
    Misconception(
        "temperature forgotten",
        "The logits were not divided by the temperature.",
        "Between which two distributions, those that sample or those at temperature 1?",
    ),
    Misconception(
        "0 times infinity is NaN",
        "A token that the policy has ruled out has p = 0 and log p = -inf; the product is NaN.",
        "What is the limit of p log p as p goes to 0?",
        "One forbidden token turns the whole loss into NaN.",
    ),
    Misconception(
        "no gradient",
        "The value is right and the gradient zero: the result is detached, or its weights p are.",
        "Which factors depend on the policy's logits?",
        "The penalty does nothing: the sum of p times the gradient of log p is 0.",
        "k1 in the loss does the same on average: open-instruct #534",
    ),
    Misconception(
        "log of softmax",
        "softmax first and the logarithm afterwards: small probabilities become 0, and log 0 is "
        "-inf.",
        "torch has one function for both steps, and it never leaves the log world.",
        "A token that is merely very unlikely makes the penalty infinite, or NaN.",
    ),
    Misconception(
        "in bits",
        "The logarithm has base 2.",
        "minippo measures in nats.",
        convention="Measure the KL in bits (base 2), not in nats.",
    ),
    HALF,
)
def exact_kl(
    flags: frozenset[str], logits: Tensor, ref_logits: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """Sum of p (log p - log q)."""
    t = 1.0 if "temperature forgotten" in flags else temperature
    log_p, log_q = (
        z.softmax(-1).log() if "log of softmax" in flags else z.log_softmax(-1)
        for z in (_wide(logits, flags) / t, _wide(ref_logits, flags) / t)
    )
    if "the other direction" in flags:
        log_p, log_q = log_q, log_p
    weights = log_q.exp() if "weights of the reference" in flags else log_p.exp()
    difference = (log_p - log_q) / (math.log(2) if "in bits" in flags else 1.0)
    if "0 times infinity is NaN" not in flags:
        difference = where(weights > 0, difference, 0.0)
    weights = weights.detach() if "no gradient" in flags else weights
    terms = weights * difference
    return terms.mean(-1) if "mean over the vocabulary" in flags else terms.sum(-1)


class _Controller:
    def __init__(self, flags: frozenset[str], coef: float, **rest: Any) -> None:
        self.flags, self.coef, self.rest = flags, coef, rest
        self.first = coef


class _AdaptiveKL(_Controller):
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
    Misconception(
        "wrong way",
        "The coefficient falls where the KL is above its target.",
        "The KL is too large. Should it cost more or less?",
        "The KL runs away from its target, faster and faster.",
    ),
    Misconception(
        "error not clipped",
        "The relative error was not clipped to +-0.2.",
        "What does one wild batch do to yours?",
        "One batch with a large KL multiplies the coefficient many times.",
    ),
    Misconception(
        "added",
        "The change was added to the coefficient, where it multiplies it.",
        "Is a step of 0.1 the same for a coefficient of 0.01 and of 10?",
        "The coefficient can reach 0 and below: the KL is then rewarded.",
        "a book's 'adaptive KL (Ziegler)' that adds alpha * (KL - target)",
    ),
    Misconception(
        "episodes not counted",
        "Every update moves by 1 / horizon, however many episodes it saw.",
        "In what is the horizon measured?",
        convention="The horizon counts updates, not episodes: n_episodes is ignored.",
    ),
    Misconception(
        "error not relative",
        "KL - target was used, and not KL / target - 1.",
        "Is being 1 nat off as much at a target of 2 as at a target of 20?",
    ),
    Misconception(
        "starts over",
        "Each update begins from the first coefficient, and not from the last one.",
        "After ten updates above the target, how high should the coefficient be?",
        "The coefficient stays within one step of where it began, however wrong that was.",
    ),
    Misconception(
        "0.1 for n / horizon",
        "The error was multiplied by the constant 0.1, as in the paper's text.",
        "Where do n_episodes and horizon enter?",
        source="alpaca_farm and RL4LMs: the paper's K_beta",
        convention="Multiply the clipped error by the constant 0.1, and not by n / horizon.",
    ),
    Misconception(
        "never moves",
        "The coefficient is the same after every update.",
        "Is the new number written into self.coef?",
    ),
)
def AdaptiveKL(flags: frozenset[str], coef: float, **rest: Any) -> _Controller:  # noqa: N802
    """coef *= 1 + clip(kl / target - 1, +-0.2) * n / horizon."""
    return _AdaptiveKL(flags, coef, **rest)


class _PenaltyKL(_Controller):
    def update(self, kl: float, n_episodes: int) -> None:
        target, flags = self.rest["target"], self.flags
        slack = 1.0 if "no slack" in flags else 2.0 if "1.5 and 2 swapped" in flags else 1.5
        step = 1.5 if "1.5 and 2 swapped" in flags else 2.0
        step = 1 / step if "wrong way" in flags else step
        low = 0.5 * target if "lowered below half the target" in flags else target / slack
        step = 1.0 if "never moves" in flags else step
        if kl > slack * target:
            self.coef *= step
        elif kl < low and "never lowered" not in flags:
            self.coef /= step


@flawed(
    Misconception(
        "wrong way",
        "The coefficient is halved where the KL is above its target.",
        "The KL is too large. Should it cost more or less?",
        "The KL runs away from its target, faster and faster.",
    ),
    Misconception(
        "no slack",
        "The coefficient moves on every update: the band from target / 1.5 to 1.5 target is gone.",
        "When is the KL near enough to its target?",
    ),
    Misconception(
        "1.5 and 2 swapped",
        "The thresholds are at 2 and the steps at 1.5.",
        "Which number decides when, and which decides how much?",
    ),
    Misconception(
        "never lowered",
        "The coefficient only rises.",
        "What happens when the policy stands still?",
        "After some wild batches the penalty is so high that nothing moves any more.",
    ),
    Misconception(
        "lowered below half the target",
        "The lower threshold is target / 2, as if 1.5 above meant 0.5 below.",
        "1.5 is a factor. What is as far below 1 as 1.5 is above it?",
    ),
    Misconception(
        "never moves",
        "The coefficient is the same after every update.",
        "Is the new number written into self.coef?",
    ),
)
def PenaltyKL(flags: frozenset[str], coef: float, **rest: Any) -> _Controller:  # noqa: N802
    """x 2 above 1.5 target, / 2 below target / 1.5."""
    return _PenaltyKL(flags, coef, **rest)


def coefficients(make: Any, inputs: dict[str, Any]) -> Any:
    """The coefficient after each of a list of updates."""
    code = getattr(getattr(make, "update", None), "__code__", None)
    if code is not None and not code.co_names:  # it touches nothing: still a stub
        raise NotImplementedError
    settings = {name: inputs[name] for name in ("target", "horizon") if name in inputs}
    controller = make(inputs["coef"], **settings)
    update = controller.update
    if not _names_something(update):
        return ...  # a stub
    found = []
    for kl in inputs["kls"].tolist():
        update(kl, inputs["n_episodes"])
        found.append(float(controller.coef))
    return torch.tensor(found)


def _names_something(function: Any) -> bool:
    """False where the body is `...` or `pass`: it reads no attribute and calls nothing."""
    code = getattr(function, "__code__", None)
    return code is None or bool(code.co_names)
