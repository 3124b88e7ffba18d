"""Credit: turn one score per response into one advantage per token.

Columns are response tokens. `values[:, t]` belongs to the state *before* token t; `mask` is
True on real tokens, EOS included, and each of its rows is a run of ones, then zeros.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, where

from minippo._validate import check_mask, check_number, check_response_mask, checked
from minippo.masking import masked_var


@checked
def shape_rewards(
    scores: Float[Tensor, " batch"] | Float[Tensor, "batch time"],
    kl: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    *,
    kl_coef: float,
) -> Float[Tensor, "batch time"]:
    """r_t = -kl_coef * kl_t on real tokens, plus the score on the LAST REAL token (EOS).

    Scores [batch, time] are shaped rewards and are added token by token. Zero on padding. Source:
    the code of Ziegler et al. 2019 (eq. 2 charges a whole response). TRL's PPOTrainer and torchtune
    put the score one slot later, on the first padding token; lm-human-preferences on the last
    column, which is the same only if every response has full length.

    >>> mask = torch.tensor([[True, True, True, False]])
    >>> kl = torch.tensor([[0.1, 0.2, 0.3, 7.0]])
    >>> shape_rewards(torch.tensor([1.0]), kl, mask, kl_coef=0.5)
    tensor([[-0.0500, -0.1000,  0.8500,  0.0000]])
    """
    check_number("shape_rewards", 0, kl_coef=kl_coef)
    check_response_mask("shape_rewards", mask)
    # At price 0 an infinite KL costs nothing; 0 * inf would be NaN.
    rewards = where(mask, -kl_coef * kl, 0.0) if kl_coef else torch.zeros_like(kl)
    if scores.dim() == 2:
        return rewards + where(mask, scores, 0.0)
    last = mask.sum(1, keepdim=True) - 1
    return rewards.scatter_add(1, last, scores.unsqueeze(1).to(rewards.dtype))


@checked
def discounted_sum(
    x: Float[Tensor, "batch time"], discount: float | Float[Tensor, " batch"]
) -> Float[Tensor, "batch time"]:
    """y_t = x_t + discount * y_{t+1}: all that is still to come, discounted by distance.

    One discount, or one per row.
    Rewards with discount gamma give the return; TD errors with gamma * lam give GAE.

    >>> discounted_sum(torch.tensor([[1.0, 1.0, 1.0]]), 0.5)
    tensor([[1.7500, 1.5000, 1.0000]])
    """
    _check_share("discounted_sum", "discount", discount)
    total, sums = torch.zeros_like(x[:, 0]) if x.shape[1] else x.sum(1), []
    for x_t in x.flip(1).unbind(1):
        total = x_t + discount * total
        sums.append(total)
    return torch.stack(sums, 1).flip(1) if sums else x.clone()


@checked
def td_errors(
    rewards: Float[Tensor, "batch time"],
    values: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    *,
    gamma: float = 1.0,
    bootstrap: Float[Tensor, " batch"] | None = None,
) -> Float[Tensor, "batch time"]:
    """delta_t = r_t + gamma * V_{t+1} - V_t; zero on padding.

    After the last real token the episode is over: the next value is 0, or `bootstrap` (the value
    after the last token of a truncated response, 0 if EOS came). Source: Sutton and
    Barto 2018, eq. 6.5; Schulman et al. 2016, sec. 3.

    >>> rewards, values = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.25, 0.5]])
    >>> td_errors(rewards, values, torch.ones(1, 2).bool())
    tensor([[0.2500, 0.5000]])
    """
    check_number("td_errors", 0, 1, gamma=gamma)
    check_response_mask("td_errors", mask)
    values = where(mask, values, 0.0)
    next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], 1)
    if bootstrap is not None:
        last = mask.sum(1, keepdim=True) - 1
        next_values = next_values.scatter(1, last, bootstrap.unsqueeze(1).to(values.dtype))
    return where(mask, rewards + gamma * next_values - values, 0.0)


@checked
def gae(
    rewards: Float[Tensor, "batch time"],
    values: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    *,
    gamma: float = 1.0,
    lam: float | Float[Tensor, " batch"] = 0.95,
    bootstrap: Float[Tensor, " batch"] | None = None,
) -> Float[Tensor, "batch time"]:
    """A_t = sum over l of (gamma * lam)^l * delta_{t+l}: generalized advantage estimation.

    lam = 0 is the TD error (least variance, most bias), lam = 1 is return minus value (no bias);
    a tensor is one lambda per response (`length_adaptive_lambda`).
    Zero on padding; junk in the padding changes nothing. Source: Schulman et al. 2016
    (arXiv:1506.02438), eq. 16. Returns for the value loss are `gae(...) + values`, raw, before
    any whitening. TRL's PPOTrainer and torchtune also include the slot after EOS; in ROLL and
    miles the values of masked tokens leaked in.

    >>> rewards = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    >>> values = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    >>> gae(rewards, values, torch.ones(1, 4).bool(), gamma=1.0, lam=0.95)
    tensor([[0.7997, 0.7365, 0.6700, 0.6000]])
    """
    check_number("gae", 0, 1, gamma=gamma)
    _check_share("gae", "lam", lam)
    check_response_mask("gae", mask)
    return discounted_sum(
        td_errors(rewards, values, mask, gamma=gamma, bootstrap=bootstrap), gamma * lam
    )


@checked
def length_adaptive_lambda(
    mask: Bool[Tensor, "batch time"], *, alpha: float
) -> Float[Tensor, " batch"]:
    """1 - 1 / (alpha * length), per response; 0 for responses of 1 / alpha tokens or fewer.

    With it, the final score keeps a share of about exp(-1 / alpha) in the first token's advantage,
    whatever the length; with one lambda for all that share is lambda^length. Source: VAPO, Yue et
    al. 2025 (arXiv:2504.05118).

    >>> mask = torch.tensor([[True, True, True, True], [True, True, False, False]])
    >>> length_adaptive_lambda(mask, alpha=0.5)
    tensor([0.5000, 0.0000])
    """
    check_number("length_adaptive_lambda", 0, above=True, alpha=alpha)
    check_response_mask("length_adaptive_lambda", mask)
    return (1 - 1 / (alpha * mask.sum(1))).clamp_min(0.0)


@checked
def monte_carlo_returns(
    rewards: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"], *, gamma: float = 1.0
) -> Float[Tensor, "batch time"]:
    """R_t = sum over k of gamma^k * r_{t+k}, over real tokens; zero on padding.

    >>> rewards = torch.tensor([[0.0, 0.0, 1.0]])
    >>> monte_carlo_returns(rewards, torch.ones(1, 3).bool(), gamma=0.5)
    tensor([[0.2500, 0.5000, 1.0000]])
    """
    check_number("monte_carlo_returns", 0, 1, gamma=gamma)
    check_response_mask("monte_carlo_returns", mask)
    return discounted_sum(where(mask, rewards, 0.0), gamma)


@checked
def sequence_advantages(
    scores: Float[Tensor, " batch"], values: Float[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """A = r(s, a) - V(s): the prompt is the state, the whole response is one action.

    >>> sequence_advantages(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 2.5]))
    tensor([ 0.5000, -0.5000])
    """
    return scores - values


@checked
def explained_variance(
    values: Float[Tensor, "*shape"], returns: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]
) -> Float[Tensor, ""]:
    """1 - Var(returns - values) / Var(returns): 1 is perfect, 0 no better than a constant.

    Negative if the values are worse than a constant. NaN if the returns do not vary:
    there is nothing to explain.

    >>> returns, mask = torch.tensor([1.0, 2.0, 3.0]), torch.ones(3).bool()
    >>> explained_variance(torch.tensor([1.5, 2.0, 2.5]), returns, mask)
    tensor(0.7500)
    """
    check_mask("explained_variance", mask)
    least = where(mask, returns, torch.inf).min()  # rounding can give a constant some variance
    constant = least == where(mask, returns, -torch.inf).max()
    share = masked_var(returns - values, mask) / masked_var(returns, mask)
    return where(constant, torch.nan, 1 - share)


def _check_share(caller: str, name: str, value: float | Tensor) -> None:
    """Require a number in [0, 1], or a tensor of such numbers."""
    for number in value.tolist() if isinstance(value, Tensor) else [value]:
        check_number(caller, 0, 1, above=False, **{name: number})
