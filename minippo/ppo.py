"""PPO: its configuration and its loss."""

from collections.abc import Callable
from dataclasses import dataclass
from types import NoneType
from typing import Literal, get_args, get_origin, get_type_hints

import torch
from jaxtyping import Float
from torch import Tensor, nn, where

from minippo._validate import check_number, fail
from minippo.kl import exact_kl, kl_k3
from minippo.log_probs import entropy, sequence_log_prob, token_log_probs
from minippo.losses import (
    ClipRange,
    clip_is_active,
    clipped_surrogate,
    penalty_surrogate,
    probability_ratio,
    value_loss,
)
from minippo.rollout import KL_ESTIMATORS, Rollout, reference_logits

_ABOVE_ZERO = (
    "value_clip_range", "kl_target", "penalty_target", "temperature", "max_grad_norm",
    "target_kl_stop",
)  # fmt: skip


@dataclass(frozen=True)
class PPOConfig:
    """Every choice of PPO for language models. Where no source is given, it is ours.

    Attributes:
        advantage_level: "token": GAE over tokens; "sequence": A = r(s, a) - V(s), one advantage
            a response (the bandit view).
        ratio_level: "token": a ratio and a clip a token; "sequence": one for the whole response,
            from the sum of its log-probs. "sequence" needs sequence advantages.
        ratio_to: "old": the policy that sampled (Schulman et al. 2017); "reference": as printed
            in textbook sketches, which is the same only where the reference is renewed before
            every rollout.
        policy_loss: "clip": PPO-Clip (eq. 7); "penalty": PPO-Penalty (eq. 8).
        clip_range: epsilon; 0.2 (Schulman et al. 2017); quoted 0.1 to 0.2.
        clip_range_high: above 1; None: the same (verl, OpenRLHF: 0.2 to 0.3).
        gamma: discount; 1 (lm-human-preferences, TRL): a response is short, and what counts is
            its score. Textbooks quote 0.95 to 0.99.
        lam: GAE's lambda; 0.95 (lm-human-preferences); 1 is Monte Carlo; quoted 0.9 to 0.97.
        value_coef: c1, weight of the value loss; 0.5 (CleanRL); lm-human-preferences and TRL: 0.1;
            quoted 0.5 to 1.
        value_clip_range: 0.2 (lm-human-preferences); None: no clipping of values.
        entropy_coef: c2, weight of the entropy bonus; 0 (lm-human-preferences, TRL: the KL keeps
            entropy up); quoted 0.01 to 0.1.
        kl_coef: beta, price of a nat of KL to the reference, in the reward; 0.1 suits scores of
            the shipped world; TRL 0.05, lm-human-preferences 0.15 to begin with.
        kl_estimator: of the KL in the reward; k1 (lm-human-preferences). The others end elsewhere
            than at pi_ref * exp(r / beta): "exact" is the same for every token that could have
            been chosen at a state, and so puts no price on the choice.
        kl_loss_coef: c3, price of a nat per token in the loss; 0; quoted 0.01 to 0.1.
        kl_loss_estimator: "k2" (the right gradient on-policy), "k3" (GRPO; the gradient of the
            other KL) or "exact". Not "k1": its expected gradient is zero.
        kl_target: nats per response; drives beta, or c3 when beta is 0, by `AdaptiveKL`; None:
            fixed. 6 for responses of 24 tokens (lm-human-preferences).
        kl_horizon: of `AdaptiveKL`, in episodes; 1,000 suits the shipped world;
            lm-human-preferences: 10,000 for runs of a million.
        penalty_target: of `PenaltyKL` (policy_loss="penalty"), in nats per token; 0.01 (Schulman
            et al. 2017: 0.003 to 0.03).
        reference_update_every: renew the reference from the policy before every so-manieth
            rollout; None: never. 1 with ratio_to="reference" is ratio_to="old", weight for weight.
        whiten_advantages: over the whole rollout, before the epochs (Ziegler et al. 2019).
        missing_eos_penalty: subtracted from the score of a response that was cut off (TRL).
        bootstrap_truncated: the value after the last token of a cut-off response stands for its
            score (Sutton and Barto 2018, sec. 6.1); token level only.
        temperature: of sampling, and in every log-prob, entropy and KL.
        max_new_tokens: of a response, EOS included.
        rollout_size: responses collected before an update; lm-human-preferences: 512.
        epochs: passes over a rollout; 4 (lm-human-preferences, TRL); 2 where a tiny model makes
            new responses cheap.
        minibatch_size: responses of one optimizer step.
        micro_batch_size: responses in memory at a time; None: the minibatch, or its shorter and its
            longer half where that saves padding. Same gradient.
        learning_rate: of Adam (eps 1e-5); 1e-3 suits the shipped 1 M model; GPT-2: 1e-5
            (lm-human-preferences) to 1.4e-5 (TRL).
        warmup_steps: rollouts over which the learning rate rises.
        total_steps: rollouts after which it has fallen linearly to 0 (lm-human-preferences);
            None: constant.
        max_grad_norm: gradients are scaled down to this norm; None: never.
        target_kl_stop: end the update when a minibatch's KL(old || new), in nats per token,
            exceeds this before its step (Spinning Up: 1.5 times 0.01); None: never.
        gradient_checkpointing: less memory, one more forward pass.
        mixed_precision: "bf16": forward passes in bfloat16, log-softmax in float32.
        seed: of sampling, of the order of prompts and of minibatches.
    """

    advantage_level: Literal["token", "sequence"] = "token"
    ratio_level: Literal["token", "sequence"] = "token"
    ratio_to: Literal["old", "reference"] = "old"
    policy_loss: Literal["clip", "penalty"] = "clip"
    clip_range: float = 0.2
    clip_range_high: float | None = None
    gamma: float = 1.0
    lam: float = 0.95
    value_coef: float = 0.5
    value_clip_range: float | None = 0.2
    entropy_coef: float = 0.0
    kl_coef: float = 0.1
    kl_estimator: Literal["k1", "k2", "k3", "exact"] = "k1"
    kl_loss_coef: float = 0.0
    kl_loss_estimator: Literal["k2", "k3", "exact"] = "k2"
    kl_target: float | None = None
    kl_horizon: int = 1000
    penalty_target: float = 0.01
    reference_update_every: int | None = None
    whiten_advantages: bool = True
    missing_eos_penalty: float = 0.0
    bootstrap_truncated: bool = False
    temperature: float = 1.0
    max_new_tokens: int = 40
    rollout_size: int = 128
    epochs: int = 2
    minibatch_size: int = 64
    micro_batch_size: int | None = None
    learning_rate: float = 1e-3
    warmup_steps: int = 0
    total_steps: int | None = None
    max_grad_norm: float | None = 1.0
    target_kl_stop: float | None = None
    gradient_checkpointing: bool = False
    mixed_precision: Literal["no", "bf16"] = "no"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            value, kinds = getattr(self, name), get_args(kind) or (kind,)
            if value is None and NoneType in kinds:
                continue
            if get_origin(kind) is Literal and value not in kinds:
                fail("PPOConfig", name, f"be one of {', '.join(kinds)}", repr(value))
            if bool in kinds and not isinstance(value, bool):
                fail("PPOConfig", name, "be True or False", repr(value))
            least = 0 if name in ("warmup_steps", "seed") else 1
            if int in kinds and (type(value) is not int or value < least):
                fail("PPOConfig", name, f"be a whole number of {least} or more", repr(value))
            if float in kinds:
                high = 1.0 if name in ("gamma", "lam", "clip_range") else torch.inf
                above = name in _ABOVE_ZERO
                check_number("PPOConfig", 0, high, above=above, **{name: value})
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.minibatch_size > self.rollout_size:
            must = f"be at most rollout_size ({self.rollout_size})"
            fail("PPOConfig", "minibatch_size", must, self.minibatch_size)
        if self.ratio_level == "sequence" and self.advantage_level == "token":
            must = "be 'sequence' where ratio_level is: one ratio has one advantage"
            fail("PPOConfig", "advantage_level", must, "'token'")
        if self.bootstrap_truncated and self.missing_eos_penalty:
            must = "be 0 with bootstrap_truncated: a value stands for the score that is punished"
            fail("PPOConfig", "missing_eos_penalty", must, self.missing_eos_penalty)
        if self.bootstrap_truncated and self.advantage_level == "sequence":
            must = "be False at the sequence level: one action has no next state"
            fail("PPOConfig", "bootstrap_truncated", must, "True")
        if self.kl_target is not None and not (self.kl_coef or self.kl_loss_coef):
            must = "be above 0 with kl_target: there is no coefficient to adapt"
            fail("PPOConfig", "kl_coef or kl_loss_coef", must, 0)
        if self.kl_target is not None and self.rollout_size >= 5 * self.kl_horizon:
            must = f"be more than rollout_size / 5 ({self.rollout_size / 5:g})"
            fail("PPOConfig", "kl_horizon", must, self.kl_horizon)

    @property
    def clip_band(self) -> ClipRange:
        """(low, high) of the clip: epsilon below 1 and above 1."""
        high = self.clip_range if self.clip_range_high is None else self.clip_range_high
        return self.clip_range, high

    @classmethod
    def textbook(cls, **changes: object) -> "PPOConfig":
        """The eleven-step sketch that is commonly printed.

        One advantage a response, A = r - V(prompt); the ratio to a reference that is renewed now
        and then; the KL to it in the loss, with c1, c2, c3. What it costs, beside the defaults:
        between renewals the ratio starts away from 1, and the KL forgets the first policy.
        """
        sketch: dict[str, object] = {
            "advantage_level": "sequence",
            "ratio_level": "sequence",
            "ratio_to": "reference",
            "reference_update_every": 1,
            "kl_coef": 0.0,
            "kl_loss_coef": 0.05,
            "kl_loss_estimator": "k2",
            "value_coef": 0.5,
            "value_clip_range": None,
            "entropy_coef": 0.01,
            # A response's ratio is the product of its tokens': at 1e-3 it overflows in a few steps.
            "learning_rate": 2e-4,
        }
        return cls(**(sketch | changes))  # type: ignore[arg-type]


def ppo_loss(
    policy: nn.Module,
    batch: Rollout,
    advantages: Float[Tensor, "batch time"] | Float[Tensor, " batch"],
    returns: Float[Tensor, "batch time"] | Float[Tensor, " batch"],
    config: PPOConfig,
    *,
    kl_loss_coef: float = 0.0,
    penalty_coef: float = 0.0,
    n_tokens: int | None = None,
    n_responses: int | None = None,
    reference: nn.Module | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """loss = policy + c1 * value - c2 * entropy + c3 * KL(policy || reference).

    Source: Schulman et al. 2017, eq. 9, as a loss, plus the KL of RLHF. One fresh forward pass.

    Args:
        policy: the one that learns.
        batch: (part of) a rollout.
        advantages: [batch, time], or [batch] at the sequence level.
        returns: what the values should have been, in the same shape.
        config: the choices.
        kl_loss_coef: c3 now (a controller may move it).
        penalty_coef: PPO-Penalty's coefficient now.
        n_tokens: real tokens of the whole minibatch, over micro-batches and processes; None:
            this batch's own. Each sum is divided by it, so that parts add up to the whole.
        n_responses: responses of the whole minibatch; divides what exists once a response.
        reference: for kl_loss_estimator="exact" only; None: the policy without its adapter.

    Returns:
        The loss, and statistics which add up over micro-batches like the loss, but for
        `ratio_error`, the largest abs(ratio - 1).
    """
    mask = batch.mask
    wanted = tuple(mask.shape if config.advantage_level == "token" else mask.shape[:1])
    for name, x in (("advantages", advantages), ("returns", returns)):
        if tuple(x.shape) != wanted:
            must = f"have shape {list(wanted)} at the {config.advantage_level} level"
            fail("ppo_loss", name, must, list(x.shape))
    n_tokens = int(mask.sum()) if n_tokens is None else n_tokens
    n_responses = len(batch) if n_responses is None else n_responses
    # One mean for what exists once a token, one for what exists once a response.
    means: dict[str, Callable[[Tensor], Tensor]] = {
        "token": lambda x: where(mask, x, 0.0).sum() / n_tokens,
        "sequence": lambda x: x.sum() / n_responses,
    }
    token_mean, ratio_mean = means["token"], means[config.ratio_level]

    # What `evaluate` does, without the state after the last token, which only a rollout needs.
    tokens, attention = batch.responses.tokens[:, :-1], batch.responses.attention_mask[:, :-1]
    logits, values = policy(tokens, attention, keep=mask.shape[1])
    log_probs = token_log_probs(logits, batch.responses.ids, temperature=config.temperature)
    log_probs = where(mask, log_probs, 0.0)
    ratio, old_to_new = _ratio(log_probs, batch, config)
    if config.advantage_level == "sequence" and config.ratio_level == "token":
        advantages = advantages.unsqueeze(1).expand_as(mask)
    if config.policy_loss == "clip":
        policy_losses = clipped_surrogate(ratio, advantages, config.clip_band)
        clipped = clip_is_active(ratio, advantages, config.clip_band).float()
    else:
        policy_losses = penalty_surrogate(ratio, advantages, old_to_new, coef=penalty_coef)
        clipped = torch.zeros_like(ratio)
    # With c2 = 0 the entropy is a metric, and need not be remembered for the backward pass. Row by
    # row: for all at once, the processor would wait for memory.
    with torch.set_grad_enabled(config.entropy_coef > 0):
        entropies = torch.cat([entropy(z, temperature=config.temperature) for z in logits.split(1)])

    parts = {
        "policy_loss": ratio_mean(policy_losses),
        "value_loss": means[config.advantage_level](_value_losses(values, batch, returns, config)),
        "entropy": token_mean(entropies),
    }
    loss = (
        parts["policy_loss"]
        + config.value_coef * parts["value_loss"]
        - config.entropy_coef * parts["entropy"]
    )
    if kl_loss_coef:
        parts["kl_loss"] = token_mean(
            _reference_kl(log_probs, logits, batch, config, policy, reference)
        )
        loss = loss + kl_loss_coef * parts["kl_loss"]
    parts |= {
        "loss": loss,
        "approx_kl": old_to_new.sum() / n_tokens,
        "clip_fraction": ratio_mean(clipped),
        "ratio": ratio_mean(ratio),
        "ratio_error": (ratio - 1).abs().max(),
    }
    return loss, {name: part.detach() for name, part in parts.items()}


def _ratio(log_probs: Tensor, batch: Rollout, config: PPOConfig) -> tuple[Tensor, Tensor]:
    """The ratio, and an estimate of KL(old || new) whose gradient is right: per token or response.

    Both are 1 and 0 on padding. k3 with the policy that sampled first: swapped, it is another KL.
    """
    sampled = where(batch.mask, batch.log_probs, 0.0)
    base = sampled if config.ratio_to == "old" else where(batch.mask, batch.ref_log_probs, 0.0)
    old_to_new = kl_k3(sampled, log_probs)
    if config.ratio_level == "token":
        return probability_ratio(log_probs, base), old_to_new
    new, old = (sequence_log_prob(x, batch.mask) for x in (log_probs, base))
    return probability_ratio(new, old), old_to_new.sum(1)


def _value_losses(values: Tensor, batch: Rollout, returns: Tensor, config: PPOConfig) -> Tensor:
    values, old_values = (where(batch.mask, x, 0.0) for x in (values, batch.values))
    if config.advantage_level == "sequence":
        values, old_values = values[:, 0], old_values[:, 0]
    if config.value_clip_range is None:
        return value_loss(values, returns)
    return value_loss(values, returns, old_values=old_values, clip_range=config.value_clip_range)


def _reference_kl(
    log_probs: Tensor,
    logits: Tensor,
    batch: Rollout,
    config: PPOConfig,
    policy: nn.Module,
    reference: nn.Module | None,
) -> Tensor:
    if config.kl_loss_estimator == "exact":
        ref_logits = reference_logits(policy, reference, batch.responses)
        return exact_kl(logits, ref_logits, temperature=config.temperature)
    return KL_ESTIMATORS[config.kl_loss_estimator](
        log_probs, where(batch.mask, batch.ref_log_probs, 0.0)
    )
