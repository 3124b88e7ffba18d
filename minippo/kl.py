"""KL(policy || reference) = E[log p - log q], estimated or exact, and controllers of its weight.

The three estimators take tokens sampled from the policy. In the *reward* k1 gives the true gradient
in expectation. In the *loss* its gradient is zero in expectation, k2's is the true one (per state,
on-policy), and k3's is the gradient of KL(reference || policy).
"""

from dataclasses import KW_ONLY, dataclass

from jaxtyping import Float
from torch import Tensor, inf

from minippo._validate import check_number, checked


@checked
def kl_k1(
    log_probs: Float[Tensor, "*shape"], ref_log_probs: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """log p - log q: unbiased, often negative for a single token. In nats.

    Source: Schulman 2020, joschu.net/blog/kl-approx.html. rlhf-book's has the opposite sign;
    NeMo-Aligner takes its absolute value and alpaca_farm its positive part; both are biased.

    >>> from torch import tensor
    >>> kl_k1(tensor([-1.0]), tensor([-1.5]))
    tensor([0.5000])
    """
    return log_probs - ref_log_probs


@checked
def kl_k2(
    log_probs: Float[Tensor, "*shape"], ref_log_probs: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """(log p - log q)^2 / 2: biased, low variance; its gradient is that of KL(p || q). In nats.

    >>> from torch import tensor
    >>> kl_k2(tensor([-1.0]), tensor([-1.5]))
    tensor([0.1250])
    """
    return 0.5 * (log_probs - ref_log_probs) ** 2


@checked
def kl_k3(
    log_probs: Float[Tensor, "*shape"], ref_log_probs: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """(q / p - 1) - log(q / p): unbiased and never negative. In nats.

    Quiet where p and q are close, but a rare token that q makes common can decide a mean.

    The ratio is q / p, with tokens sampled from p; inverted (trlX, rlhf-book), it estimates
    chi-squared minus KL, with heavy tails.

    >>> from torch import tensor
    >>> kl_k3(tensor([-1.0]), tensor([-1.5]))
    tensor([0.1065])
    """
    log_ratio = ref_log_probs - log_probs
    return log_ratio.expm1() - log_ratio


@checked
def exact_kl(
    logits: Float[Tensor, "*shape vocab"],
    ref_logits: Float[Tensor, "*shape vocab"],
    *,
    temperature: float = 1.0,
) -> Float[Tensor, "*shape"]:
    """KL(p || q) = sum over the vocabulary of p * (log p - log q), in nats.

    The KL of one next-token distribution; summed along a sampled response it is an unbiased
    estimate of the response's. +inf where the reference rules out (-inf) what p allows; correct,
    in value and gradient, where both rule it out.

    >>> from torch import tensor
    >>> exact_kl(tensor([0.2, 0.3, 0.5]).log(), tensor([0.5, 0.4, 0.1]).log())
    tensor(0.5352)
    """
    check_number("exact_kl", 0, above=True, temperature=temperature)
    log_p = (logits / temperature).log_softmax(-1)
    log_q = (ref_logits / temperature).log_softmax(-1)
    p = log_p.exp()
    kl = (p * (log_p - log_q).masked_fill(p == 0, 0.0)).sum(-1)
    ruled_out = (log_q == -inf) & (log_p > -inf)  # also where p is too small for a float
    return kl.masked_fill(ruled_out.any(-1), inf)


@dataclass
class FixedKL:
    """A constant coefficient: `update` does nothing.

    >>> controller = FixedKL(0.1)
    >>> controller.update(50.0, 64)
    >>> controller.coef
    0.1
    """

    coef: float

    def __post_init__(self) -> None:
        check_number("FixedKL", 0, coef=self.coef)

    def update(self, kl: float, n_episodes: int) -> None:
        """Check the arguments; the coefficient does not change."""
        _check_update("FixedKL.update", kl, n_episodes)


@dataclass
class AdaptiveKL:
    """`coef *= 1 + clip(kl / target - 1, -0.2, 0.2) * n_episodes / horizon`.

    Args:
        coef: the initial coefficient.
        target: the desired KL to the reference, in nats per RESPONSE.
        horizon: the time scale, in episodes; larger is slower.

    Fed once per rollout with the mean over responses of the summed k1, measured when the rollout
    was collected. Source: Ziegler et al. 2019 (arXiv:1909.08593), sec. 2.2, and its code. verl and
    OpenRLHF feed it a mean per token, so their targets are in a different unit. The coefficient
    stays within a factor of 2^20 of the initial one.

    >>> controller = AdaptiveKL(1.0, target=6.0, horizon=10_000)
    >>> controller.update(7.0, 512)
    >>> round(controller.coef, 7)
    1.0085333
    """

    coef: float
    _: KW_ONLY
    target: float
    horizon: int

    def __post_init__(self) -> None:
        check_number("AdaptiveKL", 0, above=True, coef=self.coef, target=self.target)
        check_number("AdaptiveKL", 1, horizon=self.horizon)
        self._first = self.coef

    def update(self, kl: float, n_episodes: int) -> None:
        """Move the coefficient after a rollout of `n_episodes` with this KL (nats per response)."""
        _check_update("AdaptiveKL.update", kl, n_episodes)
        # From 5 horizons on, the factor 1 - 0.2 n / horizon would become zero or negative.
        check_number("AdaptiveKL.update", 1, 5 * self.horizon - 1, n_episodes=n_episodes)
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.coef = _bounded(self.coef * (1 + error * n_episodes / self.horizon), self._first)


@dataclass
class PenaltyKL:
    """PPO-Penalty's coefficient: doubled above 1.5 * target, halved below target / 1.5.

    Args:
        coef: the initial coefficient.
        target: the desired KL(old || new) of one update, in nats per TOKEN.

    Fed once per rollout, after its epochs, by `PPOTrainer.moved`. Source: Schulman et al. 2017,
    sec. 4. The coefficient stays within a factor of 2^20 of the initial one.

    >>> controller = PenaltyKL(1.0, target=0.01)
    >>> controller.update(0.02, 64)
    >>> controller.coef
    2.0
    """

    coef: float
    _: KW_ONLY
    target: float

    def __post_init__(self) -> None:
        check_number("PenaltyKL", 0, above=True, coef=self.coef, target=self.target)
        self._first = self.coef

    def update(self, kl: float, n_episodes: int) -> None:
        """Move the coefficient after an update with this KL(old || new), in nats per token."""
        _check_update("PenaltyKL.update", kl, n_episodes)
        if kl > 1.5 * self.target:
            self.coef = _bounded(self.coef * 2, self._first)
        elif kl < self.target / 1.5:
            self.coef = _bounded(self.coef / 2, self._first)


def _bounded(coef: float, first: float) -> float:
    """Keep a coefficient from 0, from where it never returns, and from inf."""
    return min(max(coef, first * 2.0**-20), first * 2.0**20)


def _check_update(caller: str, kl: float, n_episodes: int) -> None:
    check_number(caller, -float("inf"), kl=kl)
    check_number(caller, 1, n_episodes=n_episodes)
