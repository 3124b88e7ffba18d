"""Solutions the package itself does not need. They are checked like a student's."""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, where

from minippo import entropy, masked_mean, probability_ratio, reinforce_loss, sft_loss, value_loss
from minippo.responses import response_mask

__all__ = [
    "accumulated_loss", "best_of_n_mean", "combined_loss", "distinct_n", "distinct_responses",
    "entropy_bonus", "first_ratio_error", "fit_values", "learn", "learning_rates",
    "mean_minus_variance", "optimal_policy", "ppo_epochs", "response_mask", "sample_tokens",
    "sequence_ratio", "sft_epoch", "training_memory",
]  # fmt: skip


def sample_tokens(
    probabilities: Float[Tensor, "batch vocab"], darts: Float[Tensor, " batch"]
) -> Int[Tensor, " batch"]:
    """Return the token on whose stretch of [0, 1) each dart lands: inverse-CDF sampling.

    The darts are scaled to the sum, because rounding may leave it below 1.
    """
    ends = probabilities.cpu().double().cumsum(-1)
    return (ends <= darts.cpu().unsqueeze(-1) * ends[:, -1:]).sum(-1)


def mean_minus_variance(
    scores: Float[Tensor, "members batch"], *, coef: float
) -> Float[Tensor, " batch"]:
    """A pessimistic ensemble's score: disagreement between its members lowers it.

    Mean over the members minus coef times their population variance (Coste et al. 2023).
    """
    return scores.mean(0) - coef * scores.var(0, correction=0)


def calibration(
    difference: Float[Tensor, " pairs"],
    first_won: Float[Tensor, " pairs"],
    edges: Float[Tensor, " edges"],
) -> Float[Tensor, "3 bins"]:
    """Per bin of how sure a reward model is: how sure, how often right, its share of the pairs."""
    sure = difference.abs().sigmoid()
    right = 0.5 + difference.sign() * (first_won - 0.5)
    inside = torch.bucketize(sure, edges) == torch.arange(len(edges) + 1).unsqueeze(1)
    n = inside.sum(1)
    sums = torch.stack([(inside * x).sum(1) for x in (sure, right)])
    return torch.cat([sums / n.clamp(min=1), n[None] / len(sure)])


def sequence_ratio(
    log_probs: Float[Tensor, "batch time"],
    old_log_probs: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, " batch"]:
    """p(response) / p_old(response): the exponential of the log-ratios' sum over real tokens.

    Subtract first: a long response is so unlikely that float32 can represent neither p.
    """
    log_ratio = log_probs.float() - old_log_probs.detach().float()
    return where(mask, log_ratio, 0.0).sum(1).exp()


def effective_sample_size(log_ratios: Float[Tensor, " responses"]) -> Float[Tensor, ""]:
    """(sum of w)^2 / sum of w^2: how many equally weighted responses would say as much.

    w = exp(log-ratio), one per response. Only proportions count, so that shares do as well, and a
    softmax makes them without overflow. Source: Kong 1992.
    """
    return 1 / log_ratios.float().softmax(0).square().sum()


def entropy_bonus(
    logits: Float[Tensor, "batch time vocab"], mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, ""]:
    """Mean over the real tokens of the entropy over the whole vocabulary, in nats."""
    return masked_mean(entropy(logits), mask)


def combined_loss(
    policy_loss: Float[Tensor, ""], value_loss: Float[Tensor, ""], entropy: Float[Tensor, ""],
    kl: Float[Tensor, ""], *, c1: float, c2: float, c3: float,
) -> Float[Tensor, ""]:  # fmt: skip
    """The loss that PPO for language models minimises: a sum of four terms.

    Schulman et al. 2017, eq. 9, with the sign turned, plus the KL to the reference.
    """
    return policy_loss + c1 * value_loss - c2 * entropy + c3 * kl


def optimal_policy(
    ref_log_probs: Float[Tensor, " n"], rewards: Float[Tensor, " n"], *, beta: float
) -> Float[Tensor, " n"]:
    """Return log pi* of n responses; pi* is proportional to pi_ref * exp(reward / beta).

    No policy has a larger mean reward minus beta * KL(policy || reference).
    """
    return (ref_log_probs + rewards / beta).log_softmax(-1)


def token_truth(scores: Float[Tensor, "places n"]) -> Float[Tensor, "3 time"]:
    """What each token was worth: values before it, their standard errors, and its credit.

    Row t of `scores` holds the scores of n continuations sampled after t tokens of one response.
    """
    values, n = scores.mean(1), scores.shape[1]
    errors = scores.std(1) / n**0.5
    return torch.stack([values[:-1], errors[:-1], values.diff()])


def best_of_n_mean(
    proxy: Float[Tensor, " responses"], gold: Float[Tensor, " responses"], n: int
) -> Float[Tensor, ""]:
    """Mean gold reward of the best of n by proxy, over all ways to draw n of these responses.

    The i-th lowest is the best of C(i - 1, n - 1) of the C(N, n) draws. Source: Nakano et al.
    2021 (arXiv:2112.09332), app. I.
    """
    draws = math.comb(len(proxy), n)
    weights = [math.comb(i, n - 1) / draws for i in range(len(proxy))]
    return gold[proxy.argsort()] @ torch.tensor(weights, dtype=gold.dtype)


def distinct_n(
    tokens: Int[Tensor, "batch time"], mask: Bool[Tensor, "batch time"], n: int
) -> Float[Tensor, ""]:
    """Different n-grams over all n-grams of the batch's real tokens; 0 where there are none.

    1 means no n-gram is repeated, within a response or across responses.
    """
    texts = [row[real].tolist() for row, real in zip(tokens, mask, strict=True)]
    grams = [tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)]
    return torch.tensor(len(set(grams)) / max(len(grams), 1))


def distinct_responses(
    tokens: Int[Tensor, "batch time"], mask: Bool[Tensor, "batch time"], group: int
) -> Float[Tensor, " prompts"]:
    """How many of each prompt's `group` responses differ; rows in a row answer one prompt."""
    texts = [tuple(row[real].tolist()) for row, real in zip(tokens, mask, strict=True)]
    starts = range(0, len(texts), group)
    return torch.tensor([float(len(set(texts[i : i + group]))) for i in starts])


def training_memory(
    billions: Float[Tensor, " models"], trained: Bool[Tensor, " models"], *, weight_bytes: int
) -> Float[Tensor, " models"]:
    """Memory of models in gigabytes without activations: weights, gradients, Adam's state.

    A frozen model is only its weights. A trained one adds a gradient per weight and Adam's two
    moments in float32; if the weights are shorter, also a float32 master copy.
    """
    master = 4 if weight_bytes < 4 else 0
    learning = 2 * weight_bytes + 8 + master
    return billions * where(trained, learning, weight_bytes)


def learn(
    sample: Callable[[], tuple[Any, Float[Tensor, " answers"]]],
    score: Callable[[Any], Float[Tensor, " answers"]], optimizer: torch.optim.Optimizer, *,
    steps: int, baseline: float = 0.0,
) -> list[float]:  # fmt: skip
    """REINFORCE with a baseline: returns the mean score of each step (Williams 1992).

    `sample()` writes answers with the policy as it is now, and gives their log-probs.
    """
    curve = []
    for _ in range(steps):
        answers, log_probs = sample()
        scores = score(answers)
        loss = reinforce_loss(log_probs, scores - baseline).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(float(scores.mean()))
    return curve


def learning_rates(
    steps: Float[Tensor, " n"], *, base: float, warmup_steps: int, total_steps: int
) -> Float[Tensor, " n"]:
    """Learning rate at steps 0, 1, 2, ...: a linear warm-up times a linear decay to 0.

    The first step already learns: its share of the warm-up is 1 / warmup_steps.
    """
    warm = ((steps + 1) / warmup_steps).clamp(max=1.0)
    left = (1 - steps / total_steps).clamp(min=0.0)
    return base * warm * left


def accumulated_loss(
    losses: Float[Tensor, "micro batch time"], mask: Bool[Tensor, "micro batch time"]
) -> Float[Tensor, ""]:
    """A minibatch's mean over its real tokens, summed over its micro-batches.

    Each sum is divided by the tokens of the *whole* minibatch, so that each may be freed right
    after its backward pass.
    """
    n_tokens = mask.sum()
    shares = [where(m, x, 0.0).sum() / n_tokens for x, m in zip(losses, mask, strict=True)]
    return sum(shares[1:], start=shares[0])


def first_ratio_error(
    log_probs: Float[Tensor, "batch time"],
    old_log_probs: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, ""]:
    """Largest |ratio - 1| over real tokens: 0 before the first step of an update."""
    ratio = probability_ratio(where(mask, log_probs, 0.0), where(mask, old_log_probs, 0.0))
    return (ratio - 1).abs().max()


def ppo_epochs(
    new_log_probs: Callable[[Tensor], Tensor], loss: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer, old_log_probs: Float[Tensor, "batch time"],
    advantages: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"], *, epochs: int,
    minibatch_size: int,
) -> None:  # fmt: skip
    """Several passes over the same responses, in shuffled minibatches, a step for each.

    `new_log_probs(rows)` measures these rows now; `loss(ratio, advantages)` is one per token.
    """
    for _ in range(epochs):
        for rows in torch.randperm(len(mask)).split(minibatch_size):
            ratio = probability_ratio(new_log_probs(rows), old_log_probs[rows])
            mean = masked_mean(loss(ratio, advantages[rows]), mask[rows])
            optimizer.zero_grad()
            mean.backward()
            optimizer.step()


def fit_values(
    values_of: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer,
    returns: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"],
    *, epochs: int, minibatch_size: int,
) -> list[float]:  # fmt: skip
    """Pull values towards returns; the loss before each step. `values_of(rows)` measures now."""
    losses = []
    for _ in range(epochs):
        for rows in torch.randperm(len(mask)).split(minibatch_size):
            loss = masked_mean(value_loss(values_of(rows), returns[rows]), mask[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


def sft_epoch(
    logits_of: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer,
    tokens: Int[Tensor, "batch time"], mask: Bool[Tensor, "batch time"], *, minibatch_size: int,
) -> float:  # fmt: skip
    """One pass over demonstrations, a step for each minibatch; return the mean of their losses."""
    losses = []
    for rows in torch.randperm(len(mask)).split(minibatch_size):
        loss = sft_loss(logits_of(rows), tokens[rows], mask[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)
