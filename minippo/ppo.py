"""PPO: configuration, credit per token, loss, and the statistics of a step."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn, where

from minippo._validate import bounded, check_fields, fail
from minippo.advantages import (
    explained_variance,
    gae,
    length_adaptive_lambda,
    sequence_advantages,
    shape_rewards,
)
from minippo.kl import exact_kl, kl_k1, kl_k3
from minippo.log_probs import entropy, sequence_log_prob, token_log_probs
from minippo.losses import (
    ClipRange,
    clip_is_active,
    clipped_surrogate,
    penalty_surrogate,
    probability_ratio,
    value_loss,
)
from minippo.masking import response_mean, whiten
from minippo.responses import Rollout
from minippo.rollout import KL_ESTIMATORS, evaluate, reference_logits

Stats = dict[str, float]
Mean = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class PPOConfig:
    """Every choice in PPO for language models. Defaults without a source are ours.

    `tools/studies/fields.py` compares `dual_clip`, `loss_mean`, `lam_critic`, `lam_alpha` and
    `critic_warmup` with the defaults. In an earlier world, with c1 = 0.5, none of them raised the
    gold reward.
    """

    # ---- credit: from scores to advantages ----
    advantage_level: Literal["token", "sequence"] = "token"
    """"token": GAE over tokens; "sequence": A = r(s, a) - V(s), one advantage per response (the
    bandit view)."""
    gamma: float = bounded(1.0, high=1)
    """Discount; 1 (lm-human-preferences, TRL): a response is short, and its score is what counts.
    Textbooks quote 0.95 to 0.99."""
    lam: float = bounded(0.95, high=1)
    """GAE's lambda; 0.95 (lm-human-preferences); 1 is Monte Carlo, the default of OpenRLHF and
    verl; quoted 0.9 to 0.97."""
    lam_critic: float | None = bounded(None, high=1)
    """lambda of the values' targets; None: that of the advantages. 1 beside a smaller `lam` is
    decoupled GAE (VC-PPO, Yuan et al. 2025)."""
    lam_alpha: float | None = bounded(None, above=True)
    """alpha of a lambda per response, in place of `lam`: 1 - 1 / (alpha * length). VAPO (Yue et al.
    2025): 0.05, for thousands of tokens; at 26 tokens, alpha = 0.77 gives lambda = 0.95."""
    whiten_advantages: bool = True
    """Whiten over the whole rollout, before the epochs (lm-human-preferences: each minibatch). It
    divides by the advantages' deviation, so c2 and c3 are in units of it (beta, in the reward, is
    not touched), and once all scores are alike, the KL's price and V's error are scaled to 1."""
    missing_eos_penalty: float = bounded(0.0)
    """Subtracted from the score of a truncated response (TRL)."""

    # ---- loss: ratio, clip, value and entropy ----
    policy_loss: Literal["clip", "penalty"] = "clip"
    """"clip": PPO-Clip (Schulman et al. 2017, eq. 7); "penalty": PPO-Penalty (eq. 8)."""
    ratio_level: Literal["token", "sequence"] = "token"
    """"token": one ratio and one clip per token; "sequence": one for the whole response, from the
    sum of its log-probs. "sequence" needs sequence advantages."""
    ratio_to: Literal["old", "reference"] = "old"
    """"old": the policy that sampled (Schulman et al. 2017); "reference": as printed in textbook
    sketches, the same only if the reference is renewed before every rollout."""
    clip_range: float = bounded(0.2, high=1)
    """epsilon; 0.2 (Schulman et al. 2017); quoted 0.1 to 0.2."""
    clip_range_high: float | None = bounded(None)
    """epsilon above 1; None: the same (verl, OpenRLHF); 0.28 in Clip-Higher (DAPO, Yu et al. 2025,
    arXiv:2503.14476)."""
    dual_clip: float | None = bounded(None, low=1, above=True)
    """c of a third clip: the loss of A < 0 is at most -c * A (Ye et al. 2020; verl: 3); None:
    none."""
    loss_mean: Literal["tokens", "responses", "constant"] | None = None
    """Mean of the per-token terms of the loss. "tokens": over the minibatch's real tokens;
    "responses": over each response's tokens, then over responses (GRPO); "constant": the sum over
    (responses * max_new_tokens) (Dr. GRPO). None: "tokens". With ratio_level="sequence" the policy
    has one term per response and their mean; then this is about entropy and KL, which stay
    "tokens" unless "constant"."""
    value_coef: float = bounded(0.1)
    """c1, weight of the value loss; 0.1 (lm-human-preferences, TRL; CleanRL: 0.5); quoted 0.5 to 1.
    Policy and values share a trunk: the larger the scores, the more of it the value loss takes."""
    critic_warmup: int = bounded(0)
    """Rollouts on which the value head alone learns (verl's critic_warmup)."""
    value_clip_range: float | None = bounded(0.2, above=True)
    """Clip of the values; 0.2 (lm-human-preferences); None: no clipping of values."""
    entropy_coef: float = bounded(0.0)
    """c2, price of a nat of entropy at a token; 0 (lm-human-preferences, TRL: the KL keeps entropy
    up); quoted 0.01 to 0.1. Its unit is that of `kl_loss_coef`."""

    # ---- KL to the reference ----
    kl_coef: float = bounded(0.1)
    """beta, price per nat of KL to the reference, in the reward; 0.1 suits the shipped world's
    scores; TRL 1.12: 0.05, lm-human-preferences: 0.15 at the start."""
    kl_estimator: Literal["k1", "k2", "k3", "exact"] = "k1"
    """Estimator of the KL in the reward; k1 (lm-human-preferences). The others do not converge to
    pi_ref * exp(r / beta): "exact" is the same for every token that could have been chosen at a
    state, and so puts no price on the choice."""
    kl_target: float | None = bounded(None, above=True)
    """Nats per response; drives beta, or c3 when beta is 0, by `AdaptiveKL`; None: fixed. 6 for
    responses of 24 tokens (lm-human-preferences)."""
    kl_horizon: int = bounded(1000, low=1)
    """Horizon of `AdaptiveKL`, in episodes; 1,000 suits the shipped world; lm-human-preferences:
    10,000 for runs of a million."""
    kl_loss_coef: float = bounded(0.0)
    """c3, price in the loss of a nat of KL at a token; 0; quoted 0.01 to 0.1. Beside whitened
    advantages it is in units of their deviation; beside one ratio per response, a response's price
    is c3 / its length. Only beta prices a nat in units of the score."""
    kl_loss_estimator: Literal["k2", "k3", "exact"] = "k2"
    """"k2", "k3" (GRPO; the gradient of the other KL) or "exact". In the loss, each sees the states
    as given: k2 and exact have the right gradient per state, k2 only on-policy, and both are blind
    to what a token does to later states; KL in the reward is not (Tang and Munos 2025). Not "k1":
    its expected gradient is zero."""
    penalty_target: float = bounded(0.01, above=True)
    """Target of `PenaltyKL` (policy_loss="penalty"), in nats per token; 0.01 (Schulman et al. 2017:
    0.003 to 0.03)."""
    reference_update_every: int | None = bounded(None, low=1)
    """Copy the policy into the reference after every Nth update; None: never. 1 with
    ratio_to="reference" is ratio_to="old", up to rounding."""

    # ---- sampling ----
    temperature: float = bounded(1.0, above=True)
    """Sampling temperature; also applied in every log-prob, entropy and KL."""
    max_new_tokens: int = bounded(40, low=1)
    """Maximum response length in tokens, EOS included."""
    rollout_size: int = bounded(128, low=1)
    """Responses collected before an update; lm-human-preferences: 512."""
    seed: int = bounded(0)
    """Seed of three streams per step: sampling, and the orders of prompts and minibatches."""

    # ---- batches ----
    epochs: int = bounded(2, low=1)
    """Passes over a rollout; 4 (lm-human-preferences, TRL); 2 because a tiny model makes new
    responses cheap."""
    minibatch_size: int = bounded(64, low=1)
    """Responses per optimizer step."""
    micro_batch_size: int | None = bounded(None, low=1)
    """Responses in memory at a time; None: the minibatch, or its shorter and its longer half if
    that saves padding. The gradient is the same."""
    gradient_checkpointing: bool = False
    """Save memory at the cost of one more forward pass."""
    mixed_precision: Literal["no", "bf16"] = "no"
    """"bf16": forward passes in bfloat16; heads, log-softmax and weights in float32."""

    # ---- optimizer ----
    learning_rate: float | None = bounded(None)
    """Adam's learning rate (eps 1e-5). None: by the policy's size (`models.rate_by_size`), 3e-4 for
    the shipped 1 M model, 1.4e-5 for GPT-2 (TRL 0.11; lm-human-preferences: 1e-5); a third of it
    with one ratio per response, which is a product over its tokens."""
    warmup_steps: int = bounded(0)
    """Rollouts over which the learning rate rises."""
    total_steps: int | None = bounded(None, low=1)
    """Rollouts after which the rate has fallen linearly to 0 (lm-human-preferences); None:
    constant."""
    max_grad_norm: float | None = bounded(1.0, above=True)
    """Gradients are scaled down to this norm; None: never."""
    target_kl_stop: float | None = bounded(None, above=True)
    """End the update when a minibatch's KL(old || new), in nats per token, exceeds this before its
    step (Spinning Up: 1.5 times 0.01); None: never."""

    def __post_init__(self) -> None:
        check_fields(self)
        self._check_combinations()

    def _check_combinations(self) -> None:
        n, per_response = self.rollout_size, self.advantage_level == "sequence"
        adapts = self.kl_target is not None
        wrong = [
            (self.minibatch_size > n,
             "minibatch_size", f"be at most rollout_size ({n})", self.minibatch_size),
            (self.ratio_level == "sequence" and not per_response, "advantage_level",
             "be 'sequence' if ratio_level is: one ratio has one advantage", "'token'"),
            (self.ratio_level == "sequence" and self.loss_mean == "tokens", "loss_mean",
             "not be 'tokens' if ratio_level is 'sequence': it has one term per response",
             "'tokens'"),
            (per_response and (self.lam_critic, self.lam_alpha) != (None, None),
             "lam_critic and lam_alpha", "be None at the sequence level: it has no lambda",
             (self.lam_critic, self.lam_alpha)),
            (self.policy_loss == "penalty" and self.dual_clip is not None,
             "dual_clip", "be None with policy_loss='penalty': it has no clip", self.dual_clip),
            (adapts and not (self.kl_coef or self.kl_loss_coef), "kl_coef or kl_loss_coef",
             "be above 0 with kl_target: there is no coefficient to adapt", 0),
            (adapts and n >= 5 * self.kl_horizon,
             "kl_horizon", f"be more than rollout_size / 5 ({n / 5:g})", self.kl_horizon),
        ]  # fmt: skip
        for is_wrong, name, must, came in wrong:
            if is_wrong:
                fail("PPOConfig", name, must, came)

    @property
    def clip_band(self) -> ClipRange:
        """(low, high) of the clip: epsilon below 1 and above 1."""
        low, high = self.clip_range, self.clip_range_high
        return low, low if high is None else high

    @classmethod
    def textbook(cls, **changes: object) -> "PPOConfig":
        """The eleven-step sketch that is commonly printed.

        One advantage per response, A = r - V(prompt); the ratio to a reference that is renewed from
        time to time; the KL to it in the loss, with c1, c2, c3. Its cost, compared with the
        defaults: between renewals the ratio does not start at 1, and the KL forgets the first
        policy.
        """
        sketch: dict[str, object] = {
            "advantage_level": "sequence", "ratio_level": "sequence", "ratio_to": "reference",
            "reference_update_every": 4, "kl_coef": 0.0, "kl_loss_estimator": "k2",
            "value_coef": 0.5, "value_clip_range": None, "entropy_coef": 0.01, "kl_loss_coef": 0.05,
        }  # fmt: skip
        return cls(**(sketch | changes))  # type: ignore[arg-type]


# ---- credit ------------------------------------------------------------------------------------


class Credit(NamedTuple):
    """Credit per token, [batch, time]; at the sequence level per response, [batch]."""

    rewards: Float[Tensor, "batch time"]
    advantages: Float[Tensor, "batch time"] | Float[Tensor, " batch"]
    returns: Float[Tensor, "batch time"] | Float[Tensor, " batch"]
    whitened: Float[Tensor, "batch time"] | Float[Tensor, " batch"]  # enter the loss


def assign_credit(rollout: Rollout, config: PPOConfig, *, kl_coef: float) -> Credit:
    """Rewards, advantages and returns of a rollout; `kl_coef` is the current beta.

    Without whitening in the configuration, `whitened` equals `advantages`.
    """
    mask, scores, values = rollout.mask, rollout.scores, rollout.values
    if config.missing_eos_penalty:
        penalties = config.missing_eos_penalty * rollout.truncated
        scores = scores - (penalties if scores.dim() == 1 else _on_last(penalties, mask))
    rewards = shape_rewards(scores, rollout.kl, mask, kl_coef=kl_coef)
    if config.advantage_level == "sequence":
        returns, real = rewards.sum(1), mask[:, 0]
        advantages = sequence_advantages(returns, values[:, 0])
    else:
        estimate = partial(gae, rewards, values, mask, gamma=config.gamma)
        lam: float | Tensor = config.lam
        if config.lam_alpha is not None:
            lam = length_adaptive_lambda(mask, alpha=config.lam_alpha)
        advantages = targets = estimate(lam=lam)
        if config.lam_critic is not None:
            targets = estimate(lam=config.lam_critic)
        returns, real = where(mask, targets + values, 0.0), mask
    whitened = whiten(advantages, real) if config.whiten_advantages else advantages
    return Credit(rewards, advantages, returns, whitened)


def _on_last(x: Tensor, mask: Tensor) -> Tensor:
    """One number per response, put on its last real token."""
    return torch.zeros_like(mask, dtype=x.dtype).scatter(1, mask.sum(1, True) - 1, x.unsqueeze(1))


def stream(seed: int, step: int, purpose: str) -> torch.Generator:
    """The random numbers of one purpose in one step: nothing that ran before moves them."""
    digest = sha256(f"{seed} {step} {purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))


def minibatches(n: int, config: PPOConfig, generator: torch.Generator) -> Iterator[Tensor]:
    """The rows of each minibatch: every epoch goes through all `n` rows in a new order."""
    for _ in range(config.epochs):
        yield from torch.randperm(n, generator=generator).split(config.minibatch_size)


# ---- loss --------------------------------------------------------------------------------------


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
        policy: the policy to train.
        batch: a rollout or part of one.
        advantages: [batch, time], or [batch] at the sequence level.
        returns: the targets of the values, in the same shape.
        config: the configuration.
        kl_loss_coef: the current c3 (a controller may move it).
        penalty_coef: PPO-Penalty's current coefficient.
        n_tokens: real tokens in the whole minibatch, over micro-batches and processes; None:
            in this batch. Each sum is divided by it, so that parts add up to the whole.
        n_responses: responses in the whole minibatch; the divisor of per-response sums.
        reference: for kl_loss_estimator="exact" only; None: the policy without its adapter.

    Returns:
        The loss, and statistics that add up over micro-batches like the loss, except
        `ratio_error`, the largest abs(ratio - 1). `policy_loss` and `value_loss` are terms of the
        loss; `entropy` and `kl_loss` are means over tokens, whatever `loss_mean` is.
    """
    mask = batch.mask
    _check_levels(mask, config, advantages=advantages, returns=returns)
    n_tokens = int(mask.sum()) if n_tokens is None else n_tokens
    n_responses = len(batch) if n_responses is None else n_responses
    per_token, per_response, loss_mean = _means(mask, config, n_tokens, n_responses)
    means = {"token": loss_mean, "sequence": per_response}
    share = per_token if config.ratio_level == "token" else per_response
    logits, values, _ = evaluate(policy, batch.responses, end_value=False)
    log_probs = token_log_probs(logits, batch.responses.ids, temperature=config.temperature)
    log_probs = where(mask, log_probs, 0.0)
    ratio, old_to_new = _ratio(log_probs, batch, config)
    losses, clipped = _policy_losses(ratio, advantages, old_to_new, config, penalty_coef)
    value_losses, entropies = (
        _value_losses(values, batch, returns, config),
        _entropies(logits, config),
    )
    parts = {
        "policy_loss": means[config.ratio_level](losses),
        "value_loss": means[config.advantage_level](value_losses),
        "entropy": per_token(entropies),
    }
    loss = parts["policy_loss"] + config.value_coef * parts["value_loss"]
    loss = loss - config.entropy_coef * loss_mean(entropies)
    if kl_loss_coef:
        if config.kl_loss_estimator == "exact":
            ref_logits = reference_logits(policy, reference, batch.responses)
            kl = exact_kl(logits, ref_logits, temperature=config.temperature)
        else:
            ref_log_probs = where(mask, batch.ref_log_probs, 0.0)
            kl = KL_ESTIMATORS[config.kl_loss_estimator](log_probs, ref_log_probs)
        parts["kl_loss"] = per_token(kl)
        loss = loss + kl_loss_coef * loss_mean(kl)
    parts |= {
        "loss": loss,
        "approx_kl": old_to_new.sum() / n_tokens,
        "clip_fraction": share(clipped),
        "ratio": share(ratio),
        "ratio_error": (ratio - 1).abs().max(),
    }
    return loss, {name: part.detach() for name, part in parts.items()}


def _means(mask: Tensor, config: PPOConfig, n_tokens: int, n_responses: int) -> list[Mean]:
    """Means of a minibatch: over tokens, over responses, and of the loss's per-token terms."""
    means: dict[str, Mean] = {
        "tokens": lambda x: where(mask, x, 0.0).sum() / n_tokens,
        "responses": lambda x: response_mean(x, mask).sum() / n_responses,
        "constant": lambda x: where(mask, x, 0.0).sum() / (n_responses * config.max_new_tokens),
    }
    by_response = config.loss_mean == "responses" and config.ratio_level == "sequence"
    kind = "tokens" if by_response or config.loss_mean is None else config.loss_mean
    return [means["tokens"], lambda x: x.sum() / n_responses, means[kind]]


def _check_levels(mask: Tensor, config: PPOConfig, **tensors: Tensor) -> None:
    wanted = tuple(mask.shape if config.advantage_level == "token" else mask.shape[:1])
    for name, x in tensors.items():
        if tuple(x.shape) != wanted:
            must = f"have shape {list(wanted)} at the {config.advantage_level} level"
            fail("ppo_loss", name, must, list(x.shape))


def _ratio(log_probs: Tensor, batch: Rollout, config: PPOConfig) -> tuple[Tensor, Tensor]:
    """The ratio, and an estimate of KL(old || new) with the right gradient: per token or response.

    On padding they are 1 and 0. The first argument of k3 is the policy that sampled: swapped, it
    estimates the other KL.
    """
    sampled = where(batch.mask, batch.log_probs, 0.0)
    base = sampled if config.ratio_to == "old" else where(batch.mask, batch.ref_log_probs, 0.0)
    old_to_new = kl_k3(sampled, log_probs)
    if config.ratio_level == "token":
        return probability_ratio(log_probs, base), old_to_new
    # Subtract first: the sums of a long response are so large that float32 rounds their difference.
    return sequence_log_prob(log_probs - base, batch.mask).exp(), old_to_new.sum(1)


def _policy_losses(
    ratio: Tensor, advantages: Tensor, old_to_new: Tensor, config: PPOConfig, penalty_coef: float
) -> tuple[Tensor, Tensor]:
    """The policy's loss per token or response, and 1 where a clip makes its gradient zero."""
    if advantages.dim() < ratio.dim():
        advantages = advantages.unsqueeze(1).expand_as(ratio)
    if config.policy_loss == "penalty":
        losses = penalty_surrogate(ratio, advantages, old_to_new, coef=penalty_coef)
        return losses, torch.zeros_like(ratio)
    regions = (ratio, advantages, config.clip_band)
    losses = clipped_surrogate(*regions, dual_clip=config.dual_clip)
    return losses, clip_is_active(*regions, dual_clip=config.dual_clip).float()


def _value_losses(values: Tensor, batch: Rollout, returns: Tensor, config: PPOConfig) -> Tensor:
    values, old_values = (where(batch.mask, x, 0.0) for x in (values, batch.values))
    if config.advantage_level == "sequence":
        values, old_values = values[:, 0], old_values[:, 0]
    if config.value_clip_range is None:
        return value_loss(values, returns)
    return value_loss(values, returns, old_values=old_values, clip_range=config.value_clip_range)


def _entropies(logits: Tensor, config: PPOConfig) -> Tensor:
    """The entropy of each token's distribution.

    With c2 = 0 it is only a metric and needs no graph for the backward pass. It goes row by row,
    because with all rows at once the processor would wait for memory.
    """
    with torch.set_grad_enabled(config.entropy_coef > 0):
        return torch.cat([entropy(z, temperature=config.temperature) for z in logits.split(1)])


# ---- what a step reports -----------------------------------------------------------------------


def summarise(rollout: Rollout, credit: Credit, done: list[Stats], config: PPOConfig) -> Stats:
    """The statistics of a step: those of its rollout, then means over its minibatches."""
    mask, values = rollout.mask, rollout.values
    if config.advantage_level == "sequence":
        mask, values = mask[:, 0], values[:, 0]
    kl = kl_k1(rollout.log_probs, rollout.ref_log_probs)
    means = {name: sum(stats[name] for stats in done) / len(done) for name in done[0]}
    steps = len(done) - means.pop("stopped") * len(done)
    return {
        "score": float(rollout.total_scores.mean()),
        "reward": float(credit.rewards.sum(1).mean()),
        "kl": float(where(rollout.mask, kl, 0.0).sum(1).mean()),
        "response_length": float(rollout.mask.sum(1).float().mean()),
        "truncated": float(rollout.truncated.float().mean()),
        "explained_variance": float(explained_variance(values, credit.returns, mask)),
        "optimizer_steps": steps,
        "first_ratio_error": done[0]["ratio_error"],
        **means,
    }


def scheduled_rate(step: int, config: PPOConfig) -> float:
    """The learning rate after `step` updates: warm-up, then constant or falling to zero.

    Raises:
        ValueError: `learning_rate` is None, which the trainer replaces by a number.
    """
    if config.learning_rate is None:
        fail("scheduled_rate", "learning_rate", "be a number (the trainer makes it one)", None)
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    left = 1.0 if config.total_steps is None else max(0.0, 1 - step / config.total_steps)
    return config.learning_rate * warm * left
