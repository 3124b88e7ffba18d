"""Alternatives to PPO: the losses and advantages of DPO, GRPO, RLOO and best-of-n."""

import math

from jaxtyping import Float
from torch import Tensor

from minippo._validate import check_number, checked, fail, varies
from minippo.losses import bradley_terry_loss


@checked
def dpo_loss(
    policy_chosen: Float[Tensor, " pairs"],
    policy_rejected: Float[Tensor, " pairs"],
    ref_chosen: Float[Tensor, " pairs"],
    ref_rejected: Float[Tensor, " pairs"],
    *,
    beta: float,
) -> Float[Tensor, " pairs"]:
    """-log sigmoid(beta * ((pc - rc) - (pr - rr))), from log-probs of whole responses, in nats.

    Bradley-Terry with the implicit reward beta * log(policy / reference). Source: Rafailov et al.
    2023 (arXiv:2305.18290), eq. 7.

    >>> from torch import tensor
    >>> dpo_loss(tensor([-1.0]), tensor([-3.0]), tensor([-2.0]), tensor([-2.0]), beta=0.5)
    tensor([0.3133])
    """
    check_number("dpo_loss", 0, above=True, beta=beta)
    chosen = policy_chosen - ref_chosen.detach()
    rejected = policy_rejected - ref_rejected.detach()
    return bradley_terry_loss(beta * chosen, beta * rejected)


@checked
def group_advantages(
    scores: Float[Tensor, "groups k"], *, normalize: bool = True
) -> Float[Tensor, "groups k"]:
    """(score - mean of its group) / sqrt(variance + 1e-8): GRPO, k responses per prompt.

    `normalize=False` omits the division (Dr. GRPO, Liu et al. 2025). Equal
    scores give 0. Population variance;
    TRL and verl divide by k - 1. Source: Shao et al. 2024 (arXiv:2402.03300), sec. 4.1.2.

    >>> from torch import tensor
    >>> group_advantages(tensor([[1.0, 3.0]]))
    tensor([[-1.,  1.]])
    """
    _check_groups("group_advantages", scores)
    centred = scores - scores.mean(1, keepdim=True)
    if not normalize:
        return centred
    scale = (scores.var(1, correction=0) + 1e-8).rsqrt() * varies(scores.amin(1), scores.amax(1))
    return centred * scale.unsqueeze(1)


@checked
def leave_one_out_advantages(scores: Float[Tensor, "groups k"]) -> Float[Tensor, "groups k"]:
    """score - mean of the OTHER k - 1 scores of its group: RLOO.

    Source: Kool et al. 2019; Ahmadian et al. 2024 (arXiv:2402.14740).

    >>> from torch import tensor
    >>> leave_one_out_advantages(tensor([[0.0, 3.0, 6.0]]))
    tensor([[-4.5000,  0.0000,  4.5000]])
    """
    _check_groups("leave_one_out_advantages", scores)
    others = (scores.sum(1, keepdim=True) - scores) / (scores.shape[1] - 1)
    return scores - others


def best_of_n_kl(n: int) -> float:
    """log n - (n - 1) / n: how far best-of-n moves from the policy it samples from, in nats.

    Exact if no two draws can tie, otherwise an upper bound, for example whenever the same response
    can be drawn twice (Beirami et al. 2024, arXiv:2401.01879). Source: Stiennon et al. 2020
    (arXiv:2009.01325), app. G.3.

    >>> round(best_of_n_kl(16), 4)
    1.8351
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        fail("best_of_n_kl", "n", "be a whole number of 1 or more", repr(n))
    return math.log(n) - (n - 1) / n


def _check_groups(caller: str, scores: Tensor) -> None:
    if not len(scores):
        fail(caller, "scores", "hold at least one group", f"shape {list(scores.shape)}")
    if scores.shape[1] < 2:
        fail(caller, "scores", "hold 2 or more responses per group", f"shape {list(scores.shape)}")
