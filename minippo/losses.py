"""The losses: one number per element, lower is better. The caller averages over real tokens.

No gradient flows to what is data: old log-probs, advantages, returns, old values.
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor, maximum, minimum, where
from torch.nn.functional import softplus

from minippo._validate import check_mask, check_number, check_tokens, checked, fail
from minippo.log_probs import token_log_probs
from minippo.masking import masked_mean

ClipRange = float | tuple[float, float]


@checked
def probability_ratio(
    log_probs: Float[Tensor, "*shape"], old_log_probs: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """r = exp(log p - log p_old) = p / p_old: above 1, the token became more likely.

    `old` is the policy that sampled, at the sampling temperature, and stays fixed while a rollout
    is reused, so r = 1 at the first minibatch of every rollout. It is not the reference policy of
    the KL penalty. Source: Schulman et al. 2017 (arXiv:1707.06347), sec. 3. OpenRLHF and verl clamp
    the log-ratio to +-20; here an overflow shows as inf.

    >>> from torch import tensor
    >>> probability_ratio(tensor([0.3, 0.2]).log(), tensor([0.2, 0.2]).log())
    tensor([1.5000, 1.0000])
    """
    return (log_probs - old_log_probs.detach()).exp()


@checked
def clipped_surrogate(
    ratio: Float[Tensor, "*shape"],
    advantages: Float[Tensor, "*shape"],
    clip_range: ClipRange,
    *,
    dual_clip: float | None = None,
) -> Float[Tensor, "*shape"]:
    """-min(r * A, clip(r, 1 - epsilon, 1 + epsilon) * A): PPO-Clip.

    A pessimistic bound: it stops rewarding a step outside the band, in the direction that A asks
    for, and leaves the way back open. It does not keep r inside. `clip_range` is epsilon or
    (low, high). `dual_clip` (c > 1) also bounds the loss of A < 0 by -c * A. Source: Schulman et
    al. 2017, eq. 7; dual clip: Ye et al. 2020 (arXiv:1912.09729), eq. 5; OpenRLHF and verl have it.

    >>> from torch import tensor
    >>> ratio = tensor([0.5, 0.9, 1.5])
    >>> clipped_surrogate(ratio, tensor([1.0, 1.0, 1.0]), 0.2)
    tensor([-0.5000, -0.9000, -1.2000])
    >>> clipped_surrogate(ratio, tensor([-1.0, -1.0, -1.0]), 0.2)
    tensor([0.8000, 0.9000, 1.5000])
    """
    low, high = _band("clipped_surrogate", clip_range, dual_clip)
    advantages = advantages.detach()
    loss = maximum(-ratio * advantages, -ratio.clamp(1 - low, 1 + high) * advantages)
    if dual_clip is None:
        return loss
    return where(advantages < 0, minimum(loss, -dual_clip * advantages), loss)


@checked
def clip_is_active(
    ratio: Float[Tensor, "*shape"],
    advantages: Float[Tensor, "*shape"],
    clip_range: ClipRange,
    *,
    dual_clip: float | None = None,
) -> Bool[Tensor, "*shape"]:
    """True where a clip makes the gradient zero.

    That is r > 1 + epsilon with A > 0, and r < 1 - epsilon with A < 0: two of the six regions of
    (r, sign of A), not four; `dual_clip` adds a third, r > c with A < 0. False for A = 0. Its mean
    is the clip fraction; CleanRL, Stable-Baselines3 and Spinning Up report the share of
    abs(r - 1) > epsilon instead, which also counts steps on their way back.

    >>> from torch import tensor
    >>> clip_is_active(tensor([0.5, 1.0, 1.5]), tensor([1.0, 1.0, 1.0]), 0.2)
    tensor([False, False,  True])
    >>> clip_is_active(tensor([0.5, 1.0, 1.5]), tensor([-1.0, -1.0, -1.0]), 0.2)
    tensor([ True, False, False])
    """
    low, high = _band("clip_is_active", clip_range, dual_clip)
    active = (advantages > 0) & (ratio > 1 + high) | (advantages < 0) & (ratio < 1 - low)
    return active if dual_clip is None else active | (advantages < 0) & (ratio > dual_clip)


@checked
def penalty_surrogate(
    ratio: Float[Tensor, "*shape"],
    advantages: Float[Tensor, "*shape"],
    kl: Float[Tensor, "*shape"],
    *,
    coef: float,
) -> Float[Tensor, "*shape"]:
    """-(r * A - coef * KL(old || new)): PPO-Penalty, the other PPO, without a clip.

    The KL is to the *old* policy, not to RLHF's reference. Source: Schulman et al. 2017, eq. 8.

    >>> from torch import tensor
    >>> penalty_surrogate(tensor([1.5]), tensor([2.0]), tensor([0.1]), coef=3.0)
    tensor([-2.7000])
    """
    check_number("penalty_surrogate", 0, coef=coef)
    return coef * kl - ratio * advantages.detach()


@checked
def value_loss(
    values: Float[Tensor, "*shape"],
    returns: Float[Tensor, "*shape"],
    *,
    old_values: Float[Tensor, "*shape"] | None = None,
    clip_range: float | None = None,
) -> Float[Tensor, "*shape"]:
    """0.5 * (V - R)^2; with clipping 0.5 * max((V - R)^2, (clip(V, V_old +- epsilon) - R)^2).

    V comes from a fresh forward pass, V_old from the rollout. The clip can only raise the loss,
    and where it does, the gradient is zero. Source: Schulman et al. 2017, eq. 9, which has no 0.5,
    like Spinning Up and Stable-Baselines3; 0.5 and the clip: baselines and lm-human-preferences.

    >>> from torch import tensor
    >>> value_loss(tensor([1.0]), tensor([2.0]), old_values=tensor([0.5]), clip_range=0.2)
    tensor([0.8450])
    """
    if (old_values is None) != (clip_range is None):
        fail("value_loss", "old_values and clip_range", "be given together", "one of them")
    returns = returns.detach()
    error = (values - returns) ** 2
    if old_values is not None and clip_range is not None:
        check_number("value_loss", 0, above=True, clip_range=clip_range)
        old = old_values.detach()
        clipped = old + (values - old).clamp(-clip_range, clip_range)
        error = maximum(error, (clipped - returns) ** 2)
    return 0.5 * error


@checked
def bradley_terry_loss(
    chosen: Float[Tensor, " pairs"], rejected: Float[Tensor, " pairs"], *, margin: float = 0.0
) -> Float[Tensor, " pairs"]:
    """-log sigmoid(chosen - rejected - margin): the surprise at a human's choice, in nats.

    Only the difference counts: adding a constant to every score changes nothing. softplus keeps
    it finite at differences of +-1000, where log(1 + exp(x)) overflows. Source: Bradley and Terry
    1952; Ziegler et al. 2019, eq. 1 (with two choices). TRL, OpenRLHF: the same.

    >>> from torch import tensor
    >>> bradley_terry_loss(tensor([0.0, 1.0, -1.0]), tensor([0.0, 0.0, 1.0]))
    tensor([0.6931, 0.3133, 2.1269])
    """
    check_number("bradley_terry_loss", -float("inf"), margin=margin)
    return softplus(margin - (chosen - rejected))


@checked
def sft_loss(
    logits: Float[Tensor, "batch time vocab"],
    tokens: Int[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, ""]:
    """-mean of log p(token) over the real tokens of the responses, in nats per token.

    The prompt's tokens are context, not targets: they are not among `tokens`.

    >>> from torch import tensor, zeros
    >>> sft_loss(zeros(1, 2, 4), tensor([[3, 0]]), tensor([[True, False]]))  # log 4
    tensor(1.3863)
    """
    check_mask("sft_loss", mask)
    tokens = where(mask, tokens, 0)
    check_tokens("sft_loss", tokens, logits.shape[-1])
    # Padding's logits are replaced before the arithmetic: NaN would come back as a gradient.
    log_probs = token_log_probs(where(mask.unsqueeze(-1), logits, 0.0), tokens)
    return -masked_mean(log_probs, mask)


@checked
def reinforce_loss(
    log_probs: Float[Tensor, "*shape"], advantages: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """-A * log p: its gradient is the policy gradient. None flows to the advantages.

    Source: Williams 1992; Sutton and Barto 2018, eq. 13.8 and 13.11 (A with a baseline).

    >>> from torch import tensor
    >>> reinforce_loss(tensor([-1.0, -2.0]), tensor([3.0, -1.0]))
    tensor([ 3., -2.])
    """
    return -advantages.detach() * log_probs


def _band(caller: str, clip_range: ClipRange, dual_clip: float | None) -> tuple[float, float]:
    band = clip_range if isinstance(clip_range, tuple) else (clip_range, clip_range)
    if len(band) != 2:
        fail(caller, "clip_range", "be one number or (low, high)", band)
    low, high = band
    check_number(caller, 0, 1, clip_range=low)
    check_number(caller, 0, clip_range=high)
    if dual_clip is not None:
        check_number(caller, 1, above=True, dual_clip=dual_clip)
    return low, high
