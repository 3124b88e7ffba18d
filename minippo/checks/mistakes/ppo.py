"""Mistakes about the whole loss and the whole update, and about where a response ends."""

from typing import Any

import torch
from torch import Tensor, maximum, minimum, nn, where

from minippo.checks.mistakes import flawed


@flawed("EOS left out", "tokens that are not EOS", "up to the last EOS", "cut-off responses lost")
def response_mask(flags: frozenset[str], ids: Tensor, eos_token_id: int) -> Tensor:
    """True up to and including the first EOS."""
    is_eos = ids == eos_token_id
    seen = is_eos.long().cumsum(1)
    mask = (seen - is_eos.long()) == 0
    if "EOS left out" in flags:
        mask = seen == 0
    if "tokens that are not EOS" in flags:
        mask = ~is_eos
    if "up to the last EOS" in flags:
        later = is_eos.flip(1).long().cumsum(1).flip(1)
        mask = (later > 0) | ~is_eos.any(1, keepdim=True)
    if "cut-off responses lost" in flags:
        mask = mask & is_eos.any(1, keepdim=True)
    return mask


@flawed(
    "policy loss not negated", "entropy punished", "entropy of the sampled tokens",
    "entropy summed", "value loss subtracted", "c1 forgotten", "half forgotten",
    "values of the rollout", "values not clipped", "ratio to the reference", "ratio detached",
    "one ratio a response", "no clip", "clip range hard-coded", "values clipped by clip_range",
    "maximum instead of minimum", "temperature forgotten", "temperature forgotten in the log-probs",
    "temperature forgotten in the entropy", "padding counted", "mean over padding",
    "sum instead of mean", "mean of the responses' means", "whitened in the minibatch",
    "KL rewarded", "k1 in the loss", "the printed sketch's KL",
)  # fmt: skip
def ppo_loss(
    flags: frozenset[str], policy: nn.Module, batch: Any, advantages: Tensor, returns: Tensor,
    config: Any, *, kl_loss_coef: float = 0.0,
) -> Tensor:  # fmt: skip
    """Token level: clipped surrogate + c1 * value loss - c2 * entropy + c3 * k2."""
    r, mask = batch.responses, batch.mask
    logits, values = policy(r.tokens, r.attention_mask, keep=mask.shape[1] + 1)
    plain = "mean over padding" in flags

    def at(where_forgotten: str) -> Tensor:
        forgotten = {"temperature forgotten", f"temperature forgotten in the {where_forgotten}"}
        t = 1.0 if forgotten & flags else config.temperature
        return (logits[:, :-1] / t).log_softmax(-1)

    log_probs = at("log-probs").gather(-1, r.ids.unsqueeze(-1)).squeeze(-1)
    log_probs, log_p = log_probs if plain else where(mask, log_probs, 0.0), at("entropy")

    def mean(x: Tensor) -> Tensor:
        kept = x if plain else where(mask, x, 0.0)
        if "mean of the responses' means" in flags:
            return (kept.sum(1) / mask.sum(1)).mean()
        if "sum instead of mean" in flags:
            return kept.sum()
        return kept.sum() / (mask.numel() if plain or "padding counted" in flags else mask.sum())

    if "whitened in the minibatch" in flags:
        real = advantages[mask]
        advantages = (advantages - real.mean()) / (real.var(correction=0) + 1e-8).sqrt()
    policy_loss = mean(_surrogate(flags, log_probs, batch, advantages, config))
    value_loss = mean(_value_loss(flags, values[:, :-1], batch, returns, config))
    entropies = -(log_p.exp() * log_p).sum(-1)
    if "entropy of the sampled tokens" in flags:
        entropies = -log_probs.exp() * log_probs
    entropy = where(mask, entropies, 0.0).sum() if "entropy summed" in flags else mean(entropies)
    d = log_probs - batch.ref_log_probs
    kl = mean(d if "k1 in the loss" in flags else d**2 / 2)
    if "the printed sketch's KL" in flags:
        kl = mean(-batch.ref_log_probs.exp() * d)

    c1 = 1.0 if "c1 forgotten" in flags else config.value_coef
    loss = -policy_loss if "policy loss not negated" in flags else policy_loss
    loss = loss + (-c1 if "value loss subtracted" in flags else c1) * value_loss
    loss = loss + config.entropy_coef * (entropy if "entropy punished" in flags else -entropy)
    return loss + kl_loss_coef * (-kl if "KL rewarded" in flags else kl)


def _surrogate(
    flags: frozenset[str], log_probs: Tensor, batch: Any, advantages: Tensor, config: Any
) -> Tensor:
    log_probs = log_probs.detach() if "ratio detached" in flags else log_probs
    old = batch.ref_log_probs if "ratio to the reference" in flags else batch.log_probs
    difference = log_probs - old
    if "one ratio a response" in flags:
        difference = difference.sum(1, keepdim=True)
    ratio = difference.exp().expand_as(advantages)
    reach = 0.2 if "clip range hard-coded" in flags else config.clip_range
    clipped = ratio if "no clip" in flags else ratio.clamp(1 - reach, 1 + reach)
    a, b = ratio * advantages, clipped * advantages
    return -(maximum(a, b) if "maximum instead of minimum" in flags else minimum(a, b))


def _value_loss(
    flags: frozenset[str], values: Tensor, batch: Any, returns: Tensor, config: Any
) -> Tensor:
    values = batch.values if "values of the rollout" in flags else values
    error = (values - returns) ** 2
    if config.value_clip_range is not None and "values not clipped" not in flags:
        by_clip_range = "values clipped by clip_range" in flags
        reach = config.clip_range if by_clip_range else config.value_clip_range
        clipped = batch.values + (values - batch.values).clamp(-reach, reach)
        error = maximum(error, (clipped - returns) ** 2)
    return error if "half forgotten" in flags else 0.5 * error


@flawed(
    "ratio always 1", "gradients pile up", "not whitened", "returns from whitened advantages",
    "rewards for returns", "whitened over padding", "Bessel's correction",
    "gradients cleared before the step", "gradients clipped one by one", "value head not clipped",
    "gradients not clipped", "KL not paid", "KL paid at the end", "KL rewarded",
    "score on every token", "one epoch only", "advantages anew in every epoch", "lambda ignored",
    "policy loss not negated", "ratio to the reference", "no clip",
    "values of the rollout", "values not clipped", "value loss subtracted", "c1 forgotten",
    "padding counted", "mean over padding", "sum instead of mean",
)  # fmt: skip
def ppo_update(
    flags: frozenset[str], policy: Any, optimizer: Any, rollout: Any, config: Any
) -> None:
    """Rewards, advantages and returns once; then epochs, each over the whole rollout."""
    advantages, returns = _credit(flags, rollout, rollout.values, config)
    batch = rollout
    for epoch in range(1 if "one epoch only" in flags else config.epochs):
        if "ratio always 1" in flags and epoch:
            batch = _remeasured(policy, rollout)
        if "advantages anew in every epoch" in flags and epoch:
            fresh = policy(rollout.responses.tokens, None, keep=rollout.mask.shape[1] + 1)[1]
            values = where(rollout.mask, fresh[:, :-1].detach(), 0.0)
            advantages, returns = _credit(flags, rollout, values, config)
        if "gradients pile up" not in flags:
            optimizer.zero_grad()
        ppo_loss(flags, policy, batch, advantages, returns, config).backward()
        clipped = list(policy.parameters())
        if "value head not clipped" in flags:
            clipped = [p for name, p in policy.named_parameters() if "value" not in name]
        if "gradients clipped one by one" in flags:
            nn.utils.clip_grad_value_(clipped, config.max_grad_norm)
        elif "gradients not clipped" not in flags:
            nn.utils.clip_grad_norm_(clipped, config.max_grad_norm)
        if "gradients cleared before the step" in flags:
            optimizer.zero_grad()
        optimizer.step()


def _credit(
    flags: frozenset[str], rollout: Any, values: Tensor, config: Any
) -> tuple[Tensor, Tensor]:
    mask = rollout.mask
    last = torch.arange(mask.shape[1]) == mask.sum(1, keepdim=True) - 1
    price = 0.0 if "KL not paid" in flags else config.kl_coef
    price = -price if "KL rewarded" in flags else price
    paid = mask if "score on every token" in flags else last
    kl = where(mask, rollout.kl, 0.0)
    if "KL paid at the end" in flags:
        kl = where(last, kl.sum(1, keepdim=True), 0.0)
    rewards = -price * kl + where(paid, rollout.scores.unsqueeze(1), 0.0)
    lam = 1.0 if "lambda ignored" in flags else config.lam
    after, columns = torch.zeros(len(mask)), list[Tensor]()
    for t in reversed(range(mask.shape[1])):
        following = values[:, t + 1] * mask[:, t + 1] if t + 1 < mask.shape[1] else 0.0
        delta = rewards[:, t] + config.gamma * following - values[:, t]
        after = where(mask[:, t], delta + config.gamma * lam * after, 0.0)
        columns.insert(0, after)
    advantages = torch.stack(columns, 1)
    returns = rewards if "rewards for returns" in flags else advantages + values
    real = advantages if "whitened over padding" in flags else advantages[mask]
    if "not whitened" not in flags:
        bessel = int("Bessel's correction" in flags)
        white = (advantages - real.mean()) / (real.var(correction=bessel) + 1e-8).sqrt()
        advantages = where(mask, white, 0.0)
    return (
        advantages,
        advantages + values if "returns from whitened advantages" in flags else returns,
    )


def _remeasured(policy: Any, rollout: Any) -> Any:
    """Return the rollout with log-probs under the current policy."""
    r, kind = rollout.responses, type(rollout)
    logits = policy(r.tokens, None, keep=rollout.mask.shape[1] + 1)[0].detach()
    log_p = logits[:, :-1].log_softmax(-1).gather(-1, r.ids.unsqueeze(-1)).squeeze(-1)
    fields = {name: getattr(rollout, name) for name in rollout.__dataclass_fields__}
    return kind(**(fields | {"log_probs": where(rollout.mask, log_p, 0.0)}))
