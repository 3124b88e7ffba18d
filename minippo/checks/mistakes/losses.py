"""Mistakes about the losses."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, maximum, minimum, where
from torch.nn.functional import softplus

from minippo.checks.mistakes import ATTACHED, flawed
from minippo.checks.mistakes.log_probs import CUT, HALF, _cut, _wide

OBJECTIVE = "sign turned"


def _data(x: Tensor, flags: frozenset[str]) -> Tensor:
    return x if ATTACHED in flags else x.detach()


@flawed(
    "chosen and rejected swapped", "difference turned round", "minus forgotten", "overflows",
    "probability instead of its logarithm", "each score by itself", "hinge", "margin added", CUT,
    HALF,
)  # fmt: skip
def bradley_terry_loss(
    flags: frozenset[str], chosen: Tensor, rejected: Tensor, *, margin: float = 0.0
) -> Tensor:
    """-log sigmoid(chosen - rejected - margin)."""
    chosen, rejected = _wide(chosen, flags), _wide(rejected, flags)
    if "chosen and rejected swapped" in flags:
        chosen, rejected = rejected, chosen
    d = chosen - rejected - (-margin if "margin added" in flags else margin)
    d = -d if "difference turned round" in flags else d
    loss = -softplus(-d) if "minus forgotten" in flags else softplus(-d)
    if "overflows" in flags:
        loss = -d.sigmoid().log()
    if "probability instead of its logarithm" in flags:
        loss = (-d).sigmoid()
    if "each score by itself" in flags:
        loss = softplus(-chosen) + softplus(rejected)
    if "hinge" in flags:
        loss = (1 - d).clamp(min=0)
    return _cut(loss, flags)


@flawed(
    "log-ratio instead of ratio", "upside down", "quotient of log-probs", "each through exp",
    "clamped", ATTACHED, CUT, HALF,
    "always 1",
)  # fmt: skip
def probability_ratio(flags: frozenset[str], log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    """exp(log p - log p_old)."""
    new, old = _wide(log_probs, flags), _wide(_data(old_log_probs, flags), flags)
    difference = old - new if "upside down" in flags else new - old
    if "clamped" in flags:
        difference = difference.clamp(-1.0, 1.0)
    ratio = difference if "log-ratio instead of ratio" in flags else difference.exp()
    if "always 1" in flags:
        ratio = (new - new.detach()).exp()
    if "each through exp" in flags:
        ratio = new.exp() / old.exp()
    return _cut(new / old if "quotient of log-probs" in flags else ratio, flags)


@flawed(
    "maximum instead of minimum", OBJECTIVE, "no clip", "clipped above only", "clipped below only",
    "clipped in log space", "clip without minimum", "minimum before the advantage",
    "product clipped", "band around zero", ATTACHED, "gradient cut",
    "clip range hard-coded",
)  # fmt: skip
def clipped_surrogate(
    flags: frozenset[str], ratio: Tensor, advantages: Tensor, clip_range: float, *,
    dual_clip: float | None = None,
) -> Tensor:  # fmt: skip
    """-min(r * A, clip(r) * A)."""
    clip_range = 0.2 if "clip range hard-coded" in flags else clip_range
    r, low, high, advantages = ratio, 1 - clip_range, 1 + clip_range, _data(advantages, flags)
    if "band around zero" in flags:
        low, high = -clip_range, clip_range
    if "clipped above only" in flags:
        clipped = r.clamp(max=high)
    elif "clipped below only" in flags:
        clipped = r.clamp(min=low)
    elif "clipped in log space" in flags:
        clipped = r.log().clamp(-clip_range, clip_range).exp()
    else:
        clipped = r if "no clip" in flags else r.clamp(low, high)
    a, b = r * advantages, clipped * advantages
    if "product clipped" in flags:
        b = a.clamp(low, high)
    objective = maximum(a, b) if "maximum instead of minimum" in flags else minimum(a, b)
    if "clip without minimum" in flags:
        objective = b
    if "minimum before the advantage" in flags:
        objective = minimum(r, clipped) * advantages
    if dual_clip is not None:
        objective = where(advantages < 0, maximum(objective, dual_clip * advantages), objective)
    return _cut(objective if "sign turned" in flags else -objective, flags)


@flawed(
    "both sides counted", "signs swapped", "above only", "edges counted", "turned round",
    "zero advantage counted", "ties counted", "brackets missing",
)  # fmt: skip
def clip_is_active(
    flags: frozenset[str], ratio: Tensor, advantages: Tensor, clip_range: float, *,
    dual_clip: float | None = None,
) -> Tensor:  # fmt: skip
    """True where clipping makes the gradient zero."""
    low, high = 1 - clip_range, 1 + clip_range
    edges = "edges counted" in flags
    above, below = (ratio >= high, ratio <= low) if edges else (ratio > high, ratio < low)
    positive, negative = advantages > 0, advantages < 0
    if "zero advantage counted" in flags:
        positive, negative = advantages >= 0, advantages <= 0
    if "signs swapped" in flags:
        positive, negative = negative, positive
    active = above & positive | below & negative
    if "both sides counted" in flags:
        active = above | below
    if "above only" in flags:
        active = above & positive
    if "brackets missing" in flags:  # `a > 0 & b` is `a > (0 & b)`
        active = advantages != 0
    if "ties counted" in flags:
        active = ratio.clamp(low, high) * advantages <= ratio * advantages
    if dual_clip is not None:
        active = active | (advantages < 0) & (ratio > dual_clip)
    return ~active if "turned round" in flags else active


@flawed(
    OBJECTIVE, "KL rewarded", "coefficient on the advantage", "coefficient forgotten",
    "KL detached", ATTACHED,
)  # fmt: skip
def penalty_surrogate(
    flags: frozenset[str], ratio: Tensor, advantages: Tensor, kl: Tensor, *, coef: float
) -> Tensor:
    """-(r * A - coef * KL)."""
    gain = ratio * _data(advantages, flags)
    if "coefficient on the advantage" in flags:
        gain, coef = coef * gain, 1.0
    if "coefficient forgotten" in flags:
        coef = 1.0
    kl = kl.detach() if "KL detached" in flags else kl
    objective = gain + coef * kl if "KL rewarded" in flags else gain - coef * kl
    return objective if "sign turned" in flags else -objective


@flawed(
    "half forgotten", "sign turned", "absolute error", "square forgotten",
    "minimum instead of maximum", "clipped error alone", "clipped around zero", "clip ignored",
    ATTACHED, "gradient cut",
    "clipped around one", "Huber",
)  # fmt: skip
def value_loss(
    flags: frozenset[str], values: Tensor, returns: Tensor, *, old_values: Tensor | None = None,
    clip_range: float | None = None,
) -> Tensor:  # fmt: skip
    """0.5 * max of the two squared errors."""
    returns = _data(returns, flags)

    def error(v: Tensor) -> Tensor:
        if "absolute error" in flags:
            return (v - returns).abs()
        if "Huber" in flags:
            return 2 * torch.nn.functional.huber_loss(v, returns, reduction="none")
        return v - returns if "square forgotten" in flags else (v - returns) ** 2

    loss = error(values)
    if old_values is not None and clip_range is not None and "clip ignored" not in flags:
        centre = _data(old_values, flags) * ("clipped around zero" not in flags)
        centre = torch.ones_like(centre) if "clipped around one" in flags else centre
        clipped = error(centre + (values - centre).clamp(-clip_range, clip_range))
        least = "minimum instead of maximum" in flags
        loss = minimum(loss, clipped) if least else maximum(loss, clipped)
        loss = clipped if "clipped error alone" in flags else loss
    loss = loss if "half forgotten" in flags else 0.5 * loss
    return _cut(-loss if "sign turned" in flags else loss, flags)


@flawed(OBJECTIVE, ATTACHED, "probability instead of its logarithm", "advantage forgotten", CUT)
def reinforce_loss(flags: frozenset[str], log_probs: Tensor, advantages: Tensor) -> Tensor:
    """-A * log p, with A constant."""
    advantages = _data(advantages, flags)
    if "advantage forgotten" in flags:
        advantages = torch.ones_like(advantages)
    p = log_probs.exp() if "probability instead of its logarithm" in flags else log_probs
    objective = advantages * p
    return _cut(objective if "sign turned" in flags else -objective, flags)


@flawed(
    "sampled once", "baseline forgotten", "sum instead of mean", "gradients pile up",
    "step forgotten", "sign turned", "advantages returned",
)  # fmt: skip
def learn(
    flags: frozenset[str], sample: Callable[[], tuple[Any, Tensor]],
    score: Callable[[Any], Tensor], optimizer: torch.optim.Optimizer, *, steps: int,
    baseline: float = 0.0,
) -> list[float]:  # fmt: skip
    """REINFORCE: sample, score, loss, backward, step."""
    curve, first = list[float](), sample() if "sampled once" in flags else None
    for _ in range(steps):
        answers, log_probs = first or sample()
        scores = score(answers)
        advantages = scores if "baseline forgotten" in flags else scores - baseline
        losses = log_probs * (advantages if "sign turned" in flags else -advantages)
        if "gradients pile up" not in flags:
            optimizer.zero_grad()
        loss = losses.sum() if "sum instead of mean" in flags else losses.mean()
        loss.backward(retain_graph=first is not None)
        if "step forgotten" not in flags:
            optimizer.step()
        curve.append(float((advantages if "advantages returned" in flags else scores).mean()))
    return curve


@flawed(
    "padding counted", "shifted twice", "sum instead of mean", "mean of the rows' means",
    "EOS left out", "sign turned", "masked too late",
    "mask multiplied",
    "divided by all tokens",
)  # fmt: skip
def sft_loss(flags: frozenset[str], logits: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """-mean of log p over the real tokens."""
    if "EOS left out" in flags:
        mask = mask.scatter(1, mask.sum(1, keepdim=True) - 1, False)
    if "shifted twice" in flags:
        logits, tokens, mask = logits[:, :-1], tokens[:, 1:], mask[:, 1:]
    if not {"masked too late", "padding counted", "mask multiplied"} & flags:
        logits = where(mask.unsqueeze(-1), logits, 0.0)
    log_p = logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    kept = log_p if "padding counted" in flags else where(mask, log_p, 0.0)
    kept = log_p * mask if "mask multiplied" in flags else kept
    everything = {"padding counted", "divided by all tokens"} & flags
    count: Tensor | int = mask.numel() if everything else mask.sum()
    mean = kept.sum() / (1 if "sum instead of mean" in flags else count)
    if "mean of the rows' means" in flags:
        mean = (kept.sum(1) / mask.sum(1)).mean()
    return mean if "sign turned" in flags else -mean
