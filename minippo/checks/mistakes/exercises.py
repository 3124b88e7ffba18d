"""Mistakes about exercises whose solutions minippo does not use itself."""

from collections.abc import Callable

import torch
from torch import Tensor, where

from minippo import sft_loss
from minippo.checks.mistakes import ATTACHED, flawed
from minippo.checks.mistakes.log_probs import CUT, EPSILON, HALF, _cut, _wide
from minippo.checks.mistakes.losses import _data
from minippo.checks.mistakes.masking import LEAK


@flawed(
    "standard deviation for the variance", "Bessel's correction", "one variance for the batch",
    "axes swapped", "variance added", "coefficient forgotten", "the least score",
)  # fmt: skip
def mean_minus_variance(flags: frozenset[str], scores: Tensor, *, coef: float) -> Tensor:
    """mean - coef * variance over the members."""
    dim = 1 if "axes swapped" in flags else 0
    n = scores.shape[dim]
    mean = scores.mean(dim, keepdim=True)
    spread = ((scores - mean) ** 2).sum(dim) / (n - ("Bessel's correction" in flags))
    mean = mean.squeeze(dim)
    if "one variance for the batch" in flags:
        spread = scores.var(correction=0).expand_as(mean)
    if "standard deviation for the variance" in flags:
        spread = spread.sqrt()
    coef = 1.0 if "coefficient forgotten" in flags else coef
    if "the least score" in flags:
        return scores.amin(dim)
    return mean + coef * spread if "variance added" in flags else mean - coef * spread


@flawed(
    "sure of the first", "won for right", "majority for the share", "ties forgotten",
    "pairs for the share", "scores for probabilities", "empty bins are NaN",
)  # fmt: skip
def calibration(
    flags: frozenset[str], difference: Tensor, first_won: Tensor, edges: Tensor
) -> Tensor:
    """Means of how sure and how often right, and the share of the pairs, per bin."""
    sure = difference if "sure of the first" in flags else difference.abs()
    sure = sure if "scores for probabilities" in flags else sure.sigmoid()
    won = first_won.round() if "majority for the share" in flags else first_won
    right = where(difference > 0, won, 1 - won)
    right = first_won if "won for right" in flags else right
    right = right if "ties forgotten" in flags else where(difference == 0, 0.5, right)
    inside = torch.bucketize(sure, edges) == torch.arange(len(edges) + 1).unsqueeze(1)
    n = inside.sum(1)
    divisor = n if "empty bins are NaN" in flags else n.clamp(min=1)
    share = n / (1 if "pairs for the share" in flags else len(sure))
    return torch.stack([(inside * sure).sum(1) / divisor, (inside * right).sum(1) / divisor, share])


@flawed(
    "mean of the token ratios", "sum of the token ratios", "mean instead of sum", "padding counted",
    "padding makes it 0", LEAK, "upside down", "each sum through exp", "masked too late",
    "log-ratio instead of ratio", HALF, CUT, ATTACHED,
)  # fmt: skip
def sequence_ratio(
    flags: frozenset[str], log_probs: Tensor, old_log_probs: Tensor, mask: Tensor
) -> Tensor:
    """exp of the sum of log-ratios over the real tokens."""
    new, old = _wide(log_probs, flags), _wide(_data(old_log_probs, flags), flags)
    new, old = (old, new) if "upside down" in flags else (new, old)
    counted = torch.ones_like(mask) if "padding counted" in flags else mask
    length = counted.sum(1)

    def kept(x: Tensor, padding: float = 0.0) -> Tensor:
        return x * counted if LEAK in flags else where(counted, x, padding)

    difference = new - old if "masked too late" in flags else kept(new - old)
    log_ratio = kept(difference).sum(1)
    if "mean instead of sum" in flags:
        log_ratio = log_ratio / length
    ratio = log_ratio if "log-ratio instead of ratio" in flags else log_ratio.exp()
    if "masked too late" in flags:
        ratio = kept(difference.exp(), 1.0).prod(1)
    if "each sum through exp" in flags:
        ratio = kept(new).sum(1).exp() / kept(old).sum(1).exp()
    if {"mean of the token ratios", "sum of the token ratios"} & flags:
        n: Tensor | int = 1 if "sum of the token ratios" in flags else length
        ratio = kept(difference.exp()).sum(1) / n
    if "padding makes it 0" in flags:
        ratio = kept(difference.exp()).prod(1)
    return _cut(ratio, flags)


@flawed(
    "sign turned", "sum instead of mean", "padding counted", "mean of the rows' means",
    "p counted twice", "p squared", "in bits", LEAK, "0 log 0 is NaN", EPSILON, HALF, CUT,
    "divided by all tokens",
)  # fmt: skip
def entropy_bonus(flags: frozenset[str], logits: Tensor, mask: Tensor) -> Tensor:
    """Mean over the real tokens of -sum of p log p."""
    z = _wide(logits, flags)
    log_p, p = z.log_softmax(-1), z.softmax(-1)
    if "0 log 0 is NaN" not in flags:
        log_p = log_p.masked_fill(p == 0, 0.0)
    log_p = (p + 1e-8).log() if EPSILON in flags else log_p
    terms = -p * log_p * (p if "p counted twice" in flags else 1.0)
    entropies = 1 - (p * p).sum(-1) if "p squared" in flags else terms.sum(-1)
    counted = torch.ones_like(mask) if "padding counted" in flags else mask
    kept = entropies * counted if LEAK in flags else where(counted, entropies, 0.0)
    n = torch.ones_like(mask) if "divided by all tokens" in flags else counted
    mean = kept.sum() / (1 if "sum instead of mean" in flags else n.sum())
    if "mean of the rows' means" in flags:
        mean = (kept.sum(1) / counted.sum(1)).mean()
    mean = mean / torch.log(torch.tensor(2.0)) if "in bits" in flags else mean
    return _cut(-mean if "sign turned" in flags else mean, flags)


@flawed(
    "objective for loss", "policy loss not added", "value loss subtracted", "entropy punished",
    "KL rewarded", "c1 and c2 swapped", "c2 and c3 swapped", "coefficients forgotten", CUT,
)  # fmt: skip
def combined_loss(
    flags: frozenset[str], policy_loss: Tensor, value_loss: Tensor, entropy: Tensor, kl: Tensor, *,
    c1: float, c2: float, c3: float,
) -> Tensor:  # fmt: skip
    """policy_loss + c1 * value_loss - c2 * entropy + c3 * kl."""
    if "c1 and c2 swapped" in flags:
        c1, c2 = c2, c1
    if "c2 and c3 swapped" in flags:
        c2, c3 = c3, c2
    if "coefficients forgotten" in flags:
        c1 = c2 = c3 = 1.0
    loss = -policy_loss if "policy loss not added" in flags else policy_loss
    loss = loss + (-c1 if "value loss subtracted" in flags else c1) * value_loss
    loss = loss + (c2 if "entropy punished" in flags else -c2) * entropy
    loss = loss + (-c3 if "KL rewarded" in flags else c3) * kl
    return _cut(-loss if "objective for loss" in flags else loss, flags)


@flawed(
    "beta multiplies", "not normalised", "reference forgotten", "beta forgotten",
    "multiplied as probabilities", "greedy", "probabilities for log-probs", "reward subtracted",
    "reference divided, too",
)  # fmt: skip
def optimal_policy(
    flags: frozenset[str], ref_log_probs: Tensor, rewards: Tensor, *, beta: float
) -> Tensor:
    """log-softmax of log p_ref + r / beta."""
    gain = rewards * beta if "beta multiplies" in flags else rewards / beta
    gain = rewards if "beta forgotten" in flags else gain
    gain = -gain if "reward subtracted" in flags else gain
    ref = torch.zeros_like(gain) if "reference forgotten" in flags else ref_log_probs
    ref = ref / beta if "reference divided, too" in flags else ref
    log_p = ref + gain
    if "not normalised" not in flags:
        log_p = log_p.log_softmax(-1)
    if "multiplied as probabilities" in flags:
        p = ref.exp() * gain.exp()
        log_p = (p if "not normalised" in flags else p / p.sum()).log()
    if "greedy" in flags:
        log_p = torch.full_like(gain, -torch.inf).index_fill(0, gain.argmax(), 0.0)
    return log_p.exp() if "probabilities for log-probs" in flags else log_p


@flawed(
    "mean of the micro-batches' means", "mean of the responses' means", "means added up",
    "sum instead of mean", "padding counted", "the last micro-batch alone", LEAK, CUT,
)  # fmt: skip
def accumulated_loss(flags: frozenset[str], losses: Tensor, mask: Tensor) -> Tensor:
    """Sum over the real tokens of all micro-batches, divided by their number."""
    kept = losses * mask if LEAK in flags else where(mask, losses, 0.0)
    counted = torch.ones_like(mask) if "padding counted" in flags else mask
    if "the last micro-batch alone" in flags:
        return _cut(kept[-1].sum() / counted.sum(), flags)
    if "mean of the responses' means" in flags:
        return _cut((kept.sum(2) / counted.sum(2)).mean(), flags)
    means = kept.sum((1, 2)) / counted.sum((1, 2))
    if "mean of the micro-batches' means" in flags:
        return _cut(means.mean(), flags)
    if "means added up" in flags:
        return _cut(means.sum(), flags)
    n = 1 if "sum instead of mean" in flags else counted.sum()
    return _cut(kept.sum() / n, flags)


@flawed(
    "mean instead of maximum", "padding counted", "only upwards", "of the mean ratio",
    "log-ratio instead of ratio", "upside down", "the largest ratio", LEAK, HALF,
)  # fmt: skip
def first_ratio_error(
    flags: frozenset[str], log_probs: Tensor, old_log_probs: Tensor, mask: Tensor
) -> Tensor:
    """Largest |ratio - 1| over the real tokens."""
    new, old = _wide(log_probs, flags), _wide(old_log_probs, flags)
    difference = old - new if "upside down" in flags else new - old
    if LEAK not in flags and "padding counted" not in flags:
        difference = where(mask, difference, 0.0)
    counted = torch.ones_like(mask) if "padding counted" in flags else mask
    if "log-ratio instead of ratio" in flags:
        error = difference
    else:
        error = difference.exp() - (0 if "the largest ratio" in flags else 1)
    if "of the mean ratio" in flags:
        return ((error * counted).sum() / counted.sum()).abs()
    error = error if "only upwards" in flags else error.abs()
    if "mean instead of maximum" in flags:
        return where(counted, error, 0.0).sum() / counted.sum()
    return (error * mask).max() if LEAK in flags else error[counted].max()


@flawed(
    "log-ratios for ratios", "sum not squared", "share for number", "upside down",
    "exponential of the entropy", "exp overflows",
)  # fmt: skip
def effective_sample_size(flags: frozenset[str], log_ratios: Tensor) -> Tensor:
    """(sum of w)^2 / sum of w^2."""
    w = log_ratios.softmax(0)
    if "exp overflows" in flags or "sum not squared" in flags:
        w = log_ratios.exp()
    if "log-ratios for ratios" in flags:
        w = log_ratios
    found = w.sum() ** (1 if "sum not squared" in flags else 2) / w.square().sum()
    if "exponential of the entropy" in flags:
        found = torch.distributions.Categorical(logits=log_ratios).entropy().exp()
    found = found / (len(w) if "share for number" in flags else 1)
    return 1 / found if "upside down" in flags else found


@flawed(
    "sum for the mean", "standard deviation for the standard error", "population deviation",
    "variance of the mean", "credit of the token before", "step turned round",
    "mean over the places",
)  # fmt: skip
def token_truth(flags: frozenset[str], scores: Tensor) -> Tensor:
    """Means of the rows, their standard errors, and the steps between them."""
    dim = 0 if "mean over the places" in flags else 1
    n = scores.shape[dim]
    values = scores.sum(dim) if "sum for the mean" in flags else scores.mean(dim)
    errors = scores.std(dim, correction=0 if "population deviation" in flags else 1)
    if "standard deviation for the standard error" not in flags:
        errors = errors / n**0.5
    errors = errors.square() if "variance of the mean" in flags else errors
    steps = values[1:] - values[:-1]
    if "credit of the token before" in flags:
        steps = torch.cat([torch.zeros_like(steps[:1]), steps[:-1]])
    steps = -steps if "step turned round" in flags else steps
    return torch.stack([values[:-1], errors[:-1], steps])


@flawed(
    "log-probs measured once", "old log-probs measured again", "padding counted",
    "gradients pile up", "one epoch only", "whole batch in each step", "sum instead of mean",
    "advantages not given", "step forgotten", "log-ratio instead of ratio",
)  # fmt: skip
def ppo_epochs(
    flags: frozenset[str], new_log_probs: Callable[[Tensor], Tensor],
    loss: Callable[[Tensor, Tensor], Tensor], optimizer: torch.optim.Optimizer,
    old_log_probs: Tensor, advantages: Tensor, mask: Tensor, *, epochs: int, minibatch_size: int,
) -> list[float]:  # fmt: skip
    """Epochs over minibatches: ratio, loss, mean over real tokens, one step for each."""
    everything, found = torch.arange(len(mask)), list[float]()
    stale = new_log_probs(everything)
    counted = torch.ones_like(mask) if "padding counted" in flags else mask
    for _ in range(1 if "one epoch only" in flags else epochs):
        if "old log-probs measured again" in flags:
            old_log_probs = new_log_probs(everything).detach()
        for rows in everything.split(minibatch_size):
            rows = everything if "whole batch in each step" in flags else rows
            new = stale[rows] if "log-probs measured once" in flags else new_log_probs(rows)
            factor = advantages[rows]
            if "advantages not given" in flags:
                factor = torch.ones_like(factor)
            ratio = new - old_log_probs[rows]
            ratio = ratio if "log-ratio instead of ratio" in flags else ratio.exp()
            losses = loss(ratio, factor)
            total = where(counted[rows], losses, 0.0).sum()
            if "sum instead of mean" not in flags:
                total = total / counted[rows].sum()
            if "gradients pile up" not in flags:
                optimizer.zero_grad()
            total.backward(retain_graph="log-probs measured once" in flags)
            if "step forgotten" not in flags:
                optimizer.step()
            found.append(total.item())
    return found


@flawed(
    "step forgotten", "gradients pile up", "one epoch only", "whole batch in each step",
    "padding counted", "sum instead of mean", "half forgotten",
)  # fmt: skip
def fit_values(
    flags: frozenset[str], values_of: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer,
    returns: Tensor, mask: Tensor, *, epochs: int, minibatch_size: int,
) -> list[float]:  # fmt: skip
    """PPO's epochs with values for log-probs: half the mean square, one step for each."""
    half = 1.0 if "half forgotten" in flags else 0.5
    return ppo_epochs(
        flags | {"log-ratio instead of ratio"}, values_of, lambda v, g: half * (v - g) ** 2,
        optimizer, 0 * returns, returns, mask, epochs=epochs, minibatch_size=minibatch_size,
    )  # fmt: skip


@flawed(
    "logits measured once", "gradients pile up", "whole batch in each step", "step forgotten",
    "the last loss alone", "losses added up", "mask not used",
)  # fmt: skip
def sft_epoch(
    flags: frozenset[str], logits_of: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer,
    tokens: Tensor, mask: Tensor, *, minibatch_size: int,
) -> float:  # fmt: skip
    """One pass over the rows, a step for each minibatch; the mean of their losses."""
    once, everything, losses = "logits measured once" in flags, torch.arange(len(mask)), []
    stale, counted = logits_of(everything), mask | ("mask not used" in flags)
    for rows in everything.split(minibatch_size):
        rows = everything if "whole batch in each step" in flags else rows
        loss = sft_loss(stale[rows] if once else logits_of(rows), tokens[rows], counted[rows])
        if "gradients pile up" not in flags:
            optimizer.zero_grad()
        loss.backward(retain_graph=once)
        if "step forgotten" not in flags:
            optimizer.step()
        losses.append(loss.item())
    n = 1 if "losses added up" in flags else len(losses)
    return losses[-1] if "the last loss alone" in flags else sum(losses) / n
