"""Mistakes about the whole loss and the whole update, and about where a response ends."""

from typing import Any

import torch
from torch import Tensor, maximum, minimum, nn, where

from minippo.misconceptions import Misconception, flawed


@flawed(
    Misconception(
        "EOS left out",
        "The mask ends before EOS.",
        "Did the model choose to stop?",
        "EOS gets no loss and no score: the model never learns to stop.",
        "LLaMA-Factory #2382",
    ),
    Misconception(
        "tokens that are not EOS",
        "Every token that is not EOS counts as real, also after the first EOS; EOS itself does "
        "not.",
        "Where is the first EOS, and may anything after it be real?",
        source="mask = ids != pad, where pad == eos: DeepSpeed-Chat, LLaMA-Factory #2382",
    ),
    Misconception(
        "up to the last EOS",
        "The response was taken to end at the last EOS and not at the first.",
        "Padding is EOS, too.",
    ),
    Misconception(
        "cut-off responses lost",
        "A response without EOS got no real tokens at all.",
        "What does it mean when there is no EOS?",
    ),
)
def response_mask(flags: frozenset[str], ids: Tensor, eos_token_id: int) -> Tensor:
    """True up to the first EOS and on it."""
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
    Misconception(
        "policy loss not negated",
        "The clipped objective was added to the loss with the wrong sign.",
        "Optimizers make losses small.",
        "The policy learns to do what scores badly.",
    ),
    Misconception(
        "entropy punished",
        "c2 * H was added to the loss: diversity costs.",
        "Should a bonus make the loss larger or smaller?",
        "The policy collapses sooner.",
    ),
    Misconception(
        "entropy of the sampled tokens",
        "-exp(log p) * log p was averaged over sampled tokens: that is no entropy.",
        "Entropy is a sum over the vocabulary. Over what did you sum?",
        "Its mean is the sum of -p^2 log p: it pulls sampled tokens towards p = 1/e.",
        "the usual printed sketch",
    ),
    Misconception(
        "entropy summed",
        "The entropies of the tokens were added up and not averaged.",
        "What happens to the bonus when the batch doubles?",
        "The bonus grows with batch and length, and drowns the rest.",
        "the usual printed sketch",
    ),
    Misconception(
        "value loss subtracted",
        "c1 times the value loss has the wrong sign.",
        "Should the values come nearer to the returns?",
        "The value head runs away to infinity.",
    ),
    Misconception(
        "c1 forgotten", "The value loss counts with the weight 1.", "What is config.value_coef for?"
    ),
    Misconception(
        "half forgotten",
        "The factor 0.5 of the value loss is missing.",
        "What is the value loss one away from the target?",
        source="Spinning Up, Stable-Baselines3: their convention",
    ),
    Misconception(
        "values of the rollout",
        "The value loss was taken of the values that were remembered, not of fresh ones.",
        "Which of the two depends on the weights?",
        "The value head learns nothing; the value loss stays the same over the epochs.",
        "the usual printed sketch",
    ),
    Misconception(
        "values not clipped",
        "config.value_clip_range was not used.",
        "Which keywords does value_loss take?",
    ),
    Misconception(
        "ratio to the reference",
        "The ratio was taken to the reference and not to the policy that sampled.",
        "Who wrote these tokens?",
        "The ratio is not 1 at the first minibatch of the second rollout.",
        "the usual printed sketch; trl #288",
    ),
    Misconception(
        "ratio detached",
        "The log-probs were detached, or come from the rollout: the policy learns nothing.",
        "Which forward pass do the log-probs come from?",
        "Only value head and entropy bonus move the weights.",
        "the usual printed sketch: log-probs computed once, outside the epochs",
    ),
    Misconception(
        "one ratio a response",
        "The log-probs were summed first: one ratio for the whole response, with each token's "
        "advantage.",
        "At which level do the advantages live here?",
    ),
    Misconception(
        "no clip",
        "The ratio was not clipped.",
        "What is the loss at ratio 3 and advantage 1, and at ratio 2?",
    ),
    Misconception(
        "maximum instead of minimum",
        "The hopeful one of the two objectives was taken.",
        "minimum of the objectives is maximum of the losses.",
        source="baselines #92, #452, #1156",
    ),
    Misconception(
        "temperature forgotten",
        "Log-probs and entropy were taken at temperature 1, though the tokens were sampled at "
        "another.",
        "Which distribution acted?",
        "The ratio is not 1 at the first minibatch.",
        "ARENA, rlhf-book, minimind, trlX, legacy TRL",
    ),
    Misconception(
        "padding counted",
        "The sums were divided by the number of all slots.",
        "How many real tokens are there?",
        "The more padding, the smaller the step.",
    ),
    Misconception(
        "mean of the responses' means",
        "Each response was averaged by itself, and then the responses.",
        "Does every real token weigh the same?",
        source="verl #593",
    ),
    Misconception(
        "whitened in the minibatch",
        "The advantages were whitened once more, inside the loss.",
        "When were they whitened, and over how many responses?",
        source="CleanRL's default; verl and OpenRLHF whiten the rollout",
    ),
    Misconception(
        "KL rewarded",
        "The KL to the reference has the wrong sign.",
        "Is it a penalty?",
        "The policy runs away from the reference.",
    ),
    Misconception(
        "k1 in the loss",
        "log p - log q was averaged: its expected gradient is zero.",
        "What is the mean of the gradient of log p under p?",
        "The penalty is noise: the KL grows as if there were none.",
        "open-instruct #534, #535",
    ),
    Misconception(
        "the printed sketch's KL",
        "exp(log q) * (log q - log p) was averaged over sampled tokens.",
        "Which distribution did the tokens come from, and how often is it counted?",
        "It estimates neither of the two KLs, and may be near 0 while the text drifts.",
        "the usual printed sketch",
    ),
)
def ppo_loss(
    flags: frozenset[str],
    policy: nn.Module,
    batch: Any,
    advantages: Tensor,
    returns: Tensor,
    config: Any,
    *,
    kl_loss_coef: float = 0.0,
) -> Tensor:
    """Token level: clipped surrogate + c1 * value loss - c2 * entropy + c3 * k2."""
    r, mask = batch.responses, batch.mask
    logits, values = policy(r.tokens, r.attention_mask, keep=mask.shape[1] + 1)
    t = 1.0 if "temperature forgotten" in flags else config.temperature
    log_p = (logits[:, :-1] / t).log_softmax(-1)
    log_probs = where(mask, log_p.gather(-1, r.ids.unsqueeze(-1)).squeeze(-1), 0.0)

    def mean(x: Tensor) -> Tensor:
        kept = where(mask, x, 0.0)
        if "mean of the responses' means" in flags:
            return (kept.sum(1) / mask.sum(1)).mean()
        return kept.sum() / (mask.numel() if "padding counted" in flags else mask.sum())

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
    clipped = (
        ratio if "no clip" in flags else ratio.clamp(1 - config.clip_range, 1 + config.clip_range)
    )
    a, b = ratio * advantages, clipped * advantages
    return -(maximum(a, b) if "maximum instead of minimum" in flags else minimum(a, b))


def _value_loss(
    flags: frozenset[str], values: Tensor, batch: Any, returns: Tensor, config: Any
) -> Tensor:
    values = batch.values if "values of the rollout" in flags else values
    error = (values - returns) ** 2
    if config.value_clip_range is not None and "values not clipped" not in flags:
        reach = config.value_clip_range
        clipped = batch.values + (values - batch.values).clamp(-reach, reach)
        error = maximum(error, (clipped - returns) ** 2)
    return error if "half forgotten" in flags else 0.5 * error


@flawed(
    Misconception(
        "ratio always 1",
        "The old log-probs were measured anew in every epoch.",
        "When were the tokens sampled, and by whom?",
        "Nothing is ever clipped: the epochs walk as far as they like.",
    ),
    Misconception(
        "gradients pile up",
        "The gradients were not set to zero between the steps.",
        "What does backward do with what is in .grad already?",
        "Each step repeats all those before it.",
    ),
    Misconception(
        "not whitened",
        "The advantages were used as they are.",
        "What does config.whiten_advantages ask for?",
    ),
    Misconception(
        "returns from whitened advantages",
        "The returns were computed after the whitening.",
        "Which advantages, added to the values, give the return?",
        "The value head learns values plus noise of size 1.",
        "rlhf notebooks that set returns = whiten(advantages) + values",
    ),
    Misconception(
        "value head not clipped",
        "Only the language model's gradients were scaled down, and not the value head's.",
        "Whose parameters does the optimizer hold?",
        "One surprising reward throws the value head far away.",
        "the usual printed sketch: clip_grad_norm_(policy.parameters()) beside a value head",
    ),
    Misconception(
        "gradients not clipped",
        "config.max_grad_norm was not used, or used before backward.",
        "Between which two lines does it belong?",
    ),
    Misconception(
        "KL not paid",
        "The rewards hold the score alone.",
        "What keeps the policy near the reference?",
        "The policy goes wherever the score is.",
    ),
    Misconception(
        "KL rewarded",
        "The KL has the wrong sign in the rewards.",
        "Is the KL a price or a gain?",
        "The policy runs away from the reference.",
    ),
    Misconception(
        "score on every token",
        "Each real token was paid the whole score.",
        "When does the judge speak?",
        "Length is paid for.",
        "textbook sketches: the same scalar reward for all tokens",
    ),
    Misconception("one epoch only", "There was a single step.", "What is config.epochs?"),
    Misconception(
        "advantages anew in every epoch",
        "The advantages were computed again from the fresh values in every epoch.",
        "What happened in the rollout, and can it change?",
        source="implementations differ; minippo measures a rollout once",
    ),
    Misconception(
        "lambda ignored",
        "The advantages are Monte-Carlo returns minus values, whatever config.lam says.",
        "Which keyword does gae take?",
    ),
)
def ppo_update(
    flags: frozenset[str], policy: Any, optimizer: Any, rollout: Any, config: Any
) -> None:
    """Rewards, advantages and returns once; then the epochs, each with the whole rollout."""
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
        ppo_loss(frozenset(), policy, batch, advantages, returns, config).backward()
        clipped = list(policy.parameters())
        if "value head not clipped" in flags:
            clipped = [p for name, p in policy.named_parameters() if "value" not in name]
        if "gradients not clipped" not in flags:
            nn.utils.clip_grad_norm_(clipped, config.max_grad_norm)
        optimizer.step()


def _credit(
    flags: frozenset[str], rollout: Any, values: Tensor, config: Any
) -> tuple[Tensor, Tensor]:
    mask = rollout.mask
    last = torch.arange(mask.shape[1]) == mask.sum(1, keepdim=True) - 1
    price = 0.0 if "KL not paid" in flags else config.kl_coef
    price = -price if "KL rewarded" in flags else price
    paid = mask if "score on every token" in flags else last
    rewards = where(mask, -price * rollout.kl, 0.0) + where(paid, rollout.scores.unsqueeze(1), 0.0)
    lam = 1.0 if "lambda ignored" in flags else config.lam
    after, columns = torch.zeros(len(mask)), list[Tensor]()
    for t in reversed(range(mask.shape[1])):
        following = values[:, t + 1] * mask[:, t + 1] if t + 1 < mask.shape[1] else 0.0
        delta = rewards[:, t] + config.gamma * following - values[:, t]
        after = where(mask[:, t], delta + config.gamma * lam * after, 0.0)
        columns.insert(0, after)
    advantages = torch.stack(columns, 1)
    returns, real = advantages + values, advantages[mask]
    if "not whitened" not in flags:
        white = (advantages - real.mean()) / (real.var(correction=0) + 1e-8).sqrt()
        advantages = where(mask, white, 0.0)
    return (
        advantages,
        advantages + values if "returns from whitened advantages" in flags else returns,
    )


def _remeasured(policy: Any, rollout: Any) -> Any:
    """The rollout with log-probs of the policy as it is now."""
    r, kind = rollout.responses, type(rollout)
    logits = policy(r.tokens, None, keep=rollout.mask.shape[1] + 1)[0].detach()
    log_p = logits[:, :-1].log_softmax(-1).gather(-1, r.ids.unsqueeze(-1)).squeeze(-1)
    fields = {name: getattr(rollout, name) for name in rollout.__dataclass_fields__}
    return kind(**(fields | {"log_probs": where(rollout.mask, log_p, 0.0)}))
