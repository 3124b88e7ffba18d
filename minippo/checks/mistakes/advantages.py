"""Mistakes about credit."""

import torch
from torch import Tensor, stack, where, zeros_like

from minippo.checks.mistakes import flawed
from minippo.checks.mistakes.masking import LEAK

OFF_BY_ONE = "off by one at EOS"
GAMMA = "gamma forgotten"
NO_BASELINE = "value not subtracted"
SWAPPED = "values swapped"
UNMASKED = "padding not zero"
NO_MASK = "mask not used"
NO_BOOTSTRAP = "bootstrap ignored"
BOOTSTRAP_LATE = "bootstrap in the last column"
ROLLED = "rolled round"
ROLLED_RAW = "rolled round with the padding"
NO_NEXT = "next value forgotten"
SAME_VALUE = "V_t instead of V_(t+1)"
SIGN = "sign turned"


def _earlier(mask: Tensor) -> Tensor:
    """Each row's run of ones, one shorter: True where the next token is real."""
    return torch.cat([mask[:, 1:], zeros_like(mask[:, :1])], 1)


def _masked(flags: frozenset[str], x: Tensor, mask: Tensor) -> Tensor:
    return x * mask if LEAK in flags else where(mask, x, 0.0)


def _later(mask: Tensor) -> Tensor:
    """Each row's run of ones, one longer where there is room."""
    return torch.cat([mask[:, :1], mask[:, :-1]], 1)


def _next_values(flags: frozenset[str], values: Tensor, mask: Tensor, end: Tensor | None) -> Tensor:
    """V of the next state: 0, or the bootstrap, after the last real token."""
    if SAME_VALUE in flags:
        return values
    clean = values if {OFF_BY_ONE, ROLLED_RAW} & flags else _masked(flags, values, mask)
    first = clean[:, :1] if {ROLLED, ROLLED_RAW} & flags else zeros_like(clean[:, :1])
    following = torch.cat([clean[:, 1:], first], 1)
    if end is None or NO_BOOTSTRAP in flags:
        return following
    width = mask.shape[1]
    ends = mask.sum(1, keepdim=True)
    ends = torch.full_like(ends, width) if BOOTSTRAP_LATE in flags else ends
    return where(torch.arange(width) == ends - 1, end.unsqueeze(1), following)


def _td_errors(
    flags: frozenset[str], rewards: Tensor, values: Tensor, mask: Tensor, gamma: float,
    bootstrap: Tensor | None,
) -> Tensor:  # fmt: skip
    following = _next_values(flags, values, mask, bootstrap)
    following = following if GAMMA in flags else gamma * following
    if NO_NEXT in flags:
        following = zeros_like(following)
    if SWAPPED in flags:
        return rewards + values - following
    return rewards + following - values


@flawed(
    NO_MASK, OFF_BY_ONE, GAMMA, SWAPPED, NO_BASELINE, UNMASKED, NO_BOOTSTRAP, BOOTSTRAP_LATE,
    NO_NEXT, SAME_VALUE, ROLLED, ROLLED_RAW, SIGN, LEAK, "gamma on the reward, too",
)  # fmt: skip
def td_errors(
    flags: frozenset[str], rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float = 1.0,
    bootstrap: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """r_t + gamma * V_(t+1) - V_t."""
    mask = torch.ones_like(mask) if NO_MASK in flags else mask
    if LEAK in flags:
        rewards, values = rewards * mask, values * mask
    if "gamma on the reward, too" in flags:
        rewards = gamma * rewards
    deltas = _td_errors(flags, rewards, values, mask, gamma, bootstrap)
    deltas = deltas + values if NO_BASELINE in flags else deltas
    deltas = -deltas if SIGN in flags else deltas
    return deltas if UNMASKED in flags else _masked(flags, deltas, mask)


@flawed(
    NO_MASK, OFF_BY_ONE, GAMMA, SWAPPED, NO_BASELINE, UNMASKED, NO_BOOTSTRAP,
    "mask ignored on the way", "lambda forgotten", "lambda without gamma", "one step only",
    "forwards in time", "whitened", BOOTSTRAP_LATE, NO_NEXT, SAME_VALUE, ROLLED, ROLLED_RAW, SIGN,
    LEAK, "V_t missing in the TD error", "slot after EOS takes part", "EOS left out",
    "ends one token early", "last column skipped", "gamma and lambda exchanged",
    "lambda in the TD error, too", "1 - lambda for lambda", "factor 1 - lambda too many",
    "reward of the next token",
)  # fmt: skip
def gae(
    flags: frozenset[str], rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float = 1.0,
    lam: float = 0.95, bootstrap: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """A_t = delta_t + gamma * lam * A_(t+1)."""
    mask = torch.ones_like(mask) if NO_MASK in flags else mask
    deltas = _gae_errors(flags, rewards, values, mask, gamma, lam, bootstrap)
    decay = gamma if "lambda forgotten" in flags else gamma * lam
    decay = lam if "lambda without gamma" in flags else decay
    decay = gamma * (1 - lam) if "1 - lambda for lambda" in flags else decay
    decay = 0.0 if "one step only" in flags else decay
    flows = torch.ones_like(mask)  # everything after the last real token is already zero
    if "ends one token early" in flags:
        flows = _earlier(_earlier(mask))
    forwards = "forwards in time" in flags
    columns = list(range(deltas.shape[1]))
    after, found = zeros_like(deltas[:, 0]), {}
    for t in columns if forwards else columns[::-1]:
        found[t] = after = deltas[:, t] + decay * where(flows[:, t], after, 0.0)
    advantages = stack([found[t] for t in columns], 1)
    advantages = -advantages if SIGN in flags else advantages
    if "factor 1 - lambda too many" in flags:
        advantages = (1 - lam) * advantages
    if NO_BASELINE in flags:
        advantages = advantages + values
    if "whitened" in flags:
        mean, sd = advantages[mask].mean(), advantages[mask].var(correction=0).add(1e-8).sqrt()
        advantages = (advantages - mean) / sd
    if UNMASKED in flags:  # from the right, the loop has not touched the padding
        return advantages if forwards else where(mask, advantages, rewards - values)
    return _masked(flags, advantages, mask)


def _gae_errors(
    flags: frozenset[str], rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float,
    bootstrap: Tensor | None,
) -> Tensor:  # fmt: skip
    """The TD errors to be summed, zero on padding."""
    real = _earlier(mask) if "EOS left out" in flags else mask
    real = _later(real) if "slot after EOS takes part" in flags else real
    if LEAK in flags:
        rewards, values = rewards * real, values * real
    if "reward of the next token" in flags:
        paid = _masked(flags, rewards, real)
        rewards = torch.cat([paid[:, 1:], zeros_like(paid[:, :1])], 1)
    gamma = lam if "gamma and lambda exchanged" in flags else gamma
    gamma = gamma * lam if "lambda in the TD error, too" in flags else gamma
    deltas = _td_errors(flags, rewards, values, real, gamma, bootstrap)
    if "V_t missing in the TD error" in flags:
        deltas = deltas + values
    if "ends one token early" in flags:
        lost = _earlier(mask) & ~_earlier(_earlier(mask))  # the second-to-last token
        following = torch.cat([values[:, 1:], zeros_like(values[:, :1])], 1)
        deltas = where(lost, deltas - gamma * following, deltas)
    if "last column skipped" in flags:
        deltas = torch.cat([deltas[:, :-1], zeros_like(deltas[:, :1])], 1)
    return deltas if "mask ignored on the way" in flags else _masked(flags, deltas, real)


@flawed(
    "gamma forgotten", "discounted from the start", "sum of the past", "own reward left out",
    "the whole return for every token", "padding counted", "one gamma too many", LEAK,
    "left in reverse",
)  # fmt: skip
def monte_carlo_returns(
    flags: frozenset[str], rewards: Tensor, mask: Tensor, *, gamma: float = 1.0
) -> Tensor:
    """R_t = sum of gamma^k * r_(t+k) over real tokens."""
    time = rewards.shape[1]
    gamma = 1.0 if "gamma forgotten" in flags else gamma
    if LEAK in flags:
        rewards = rewards * mask
    elif "padding counted" not in flags:
        rewards = where(mask, rewards, 0.0)
    here, there = torch.arange(time).unsqueeze(1), torch.arange(time).unsqueeze(0)
    distance = there - here
    ahead = distance > 0 if "own reward left out" in flags else distance >= 0
    if "sum of the past" in flags:
        distance, ahead = -distance, distance <= 0
    power = there.expand_as(ahead) if "discounted from the start" in flags else distance
    power = power + 1 if "one gamma too many" in flags else power
    weights = where(ahead, torch.tensor(float(gamma)) ** power.clamp(min=0), 0.0)
    returns = stack([(rewards * row).sum(1) for row in weights], 1)
    if "the whole return for every token" in flags:
        returns = returns[:, :1].expand_as(returns)
    returns = _masked(flags, returns, mask)
    return returns.flip(1) if "left in reverse" in flags else returns


@flawed(
    "score on the last column", "score one slot late", "score on every token", "score spread",
    "KL rewarded", "coefficient forgotten", "coefficient on the score", "no KL on the last token",
    "KL paid at the end", "padding paid", LEAK, "score one token early", "score on the first token",
    "coefficient on both", "no KL at all", "mean KL on every token", "mean KL at the end",
    "negative KL cut off",
)  # fmt: skip
def shape_rewards(
    flags: frozenset[str], scores: Tensor, kl: Tensor, mask: Tensor, *, kl_coef: float
) -> Tensor:
    """-kl_coef * kl, plus the score on the last real token."""
    time = mask.shape[1]
    price = 1.0 if "coefficient forgotten" in flags else kl_coef
    if "coefficient on the score" in flags:
        price, scores = 1.0, kl_coef * scores
    if "coefficient on both" in flags:
        scores = kl_coef * scores
    price = 0.0 if "no KL at all" in flags else price
    price = -price if "KL rewarded" in flags else price
    lengths = mask.sum(1, keepdim=True)
    columns = torch.arange(time).unsqueeze(0)
    last = columns == lengths - 1
    paid = last
    if "score on the last column" in flags:
        paid = (columns == time - 1).expand_as(mask)
    if "score one slot late" in flags:
        paid = columns == lengths.clamp(max=time - 1)
    if "score one token early" in flags:
        paid = columns == (lengths - 2).clamp(min=0)
    if "score on the first token" in flags:
        paid = (columns == 0).expand_as(mask)
    if {"score on every token", "score spread"} & flags:
        paid = mask
    if "score spread" in flags:
        scores = scores / lengths.squeeze(1)
    kl = kl.clamp(min=0) if "negative KL cut off" in flags else kl
    clean = kl if "padding paid" in flags else where(mask, kl, 0.0)
    clean = kl * mask if LEAK in flags else clean
    clean = _kl_moved(flags, clean, mask, last)
    if "no KL on the last token" in flags:
        clean = where(last, 0.0, clean)
    return -price * clean + where(paid, scores.unsqueeze(1), 0.0)


def _kl_moved(flags: frozenset[str], kl: Tensor, mask: Tensor, last: Tensor) -> Tensor:
    """The KL charged to each token."""
    total = kl.sum(1, keepdim=True)
    mean = total / mask.sum(1, keepdim=True)
    if "KL paid at the end" in flags:
        return where(last, total, 0.0)
    if "mean KL at the end" in flags:
        return where(last, mean, 0.0)
    return where(mask, mean, 0.0) if "mean KL on every token" in flags else kl
