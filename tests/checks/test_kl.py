"""What checks of the KL divergence and of its controllers say."""

import re
from dataclasses import dataclass

import pytest
import torch
from torch.testing import assert_close

from minippo import checks
from minippo.checks.mistakes import CATALOGUE

pytestmark = pytest.mark.usefixtures("without_hook")


class Ziegler:
    """Like the original code, with a tensor in the place of a number."""

    def __init__(self, coef, *, target, horizon):
        self.coef, self.target, self.horizon = (
            torch.tensor(coef, dtype=torch.float64),
            target,
            horizon,
        )

    def update(self, kl, n_episodes):
        error = torch.clip(torch.tensor(kl / self.target - 1, dtype=torch.float64), -0.2, 0.2)
        self.coef = self.coef * (1 + error * n_episodes / self.horizon)


class Threefold(Ziegler):
    def update(self, kl, n_episodes):
        before = float(self.coef)
        super().update(kl, n_episodes)
        self.coef = before + 3 * (self.coef - before)


class Additive(Ziegler):
    def update(self, kl, n_episodes):
        self.coef += min(max(kl / self.target - 1, -0.2), 0.2) * n_episodes / self.horizon


def padded_kl(logits, ref_logits, *, temperature):
    """Right also where both rule a token out: xlogy knows that 0 log 0 = 0."""
    log_p = (logits.double() / temperature).log_softmax(-1)
    log_q = (ref_logits.double() / temperature).log_softmax(-1)
    p = log_p.exp()
    terms = torch.where(p > 0, p * (log_p.clamp(min=-1e30) - log_q.clamp(min=-1e30)), 0.0)
    forbidden = ((log_q == -torch.inf) & (p > 0)).any(-1)
    return terms.sum(-1).masked_fill(forbidden, torch.inf).float()


@pytest.mark.parametrize(
    ("name", "mine"),
    [
        ("AdaptiveKL", Ziegler),
        ("exact_kl", padded_kl),
        ("kl_k1", lambda p, q: (p.exp() / q.exp()).log()),
        ("kl_k2", lambda p, q: (q - p).square().mul(0.5)),
        ("kl_k3", lambda p, q: q.exp() / p.exp() - 1 + p - q),
        ("kl_k3", lambda p, q: (q.detach() - p).expm1() - (q.detach() - p)),
    ],
)
def test_another_right_implementation_of_kl_passes(name, mine):
    result = checks.CHECKS[name](mine)
    assert result.passed, result


def swapped_kl_div(logits, ref_logits, *, temperature):
    log_p, log_q = ((z.float() / temperature).log_softmax(-1) for z in (logits, ref_logits))
    return torch.where(
        log_q > -torch.inf,
        torch.nn.functional.kl_div(log_p, log_q, log_target=True, reduction="none"),
        0.0,
    ).sum(-1)


@pytest.mark.parametrize(
    ("name", "mine", "mistake"),
    [
        ("AdaptiveKL", Additive, "added"),
        ("kl_k1", lambda p, q: q - p, "sign turned"),
        ("kl_k1", lambda p, q: q.exp() * (q - p), "the printed sketch"),
        ("kl_k3", lambda p, q: (p - q).expm1() - (p - q), "upside down"),
        ("kl_k3", lambda p, q: (p - q) ** 2 / 2, "k2 instead"),
        ("kl_k3", lambda p, q: ((q - p).exp() - 1 - (q - p)).clamp(-10, 10), "clamped at 10"),
        ("kl_k3", lambda p, q: (q / p) - 1 - torch.log(q / p), "log-probs divided"),
        ("kl_k3", lambda p, q: ((q - p).exp() - 1 - (q - p)).detach(), "gradient cut"),
        (
            "kl_k3",
            lambda p, q: ((p - q).exp() - 1 - (p - q)).detach(),
            "upside down and gradient cut",
        ),
        ("exact_kl", swapped_kl_div, "the other direction"),
    ],
)
def test_a_wrong_function_of_kl_is_named_as_what_it_is(name, mine, mistake):
    assert checks.CHECKS[name](mine).mistake == mistake


@pytest.mark.parametrize(
    ("name", "mine", "says"),
    [
        ("kl_k3", lambda p, q: ((q - p).exp() - 1 - (q - p)).mean(), "You averaged: one number"),
        ("kl_k3", lambda p, q: 0.5 * ((q - p).exp() - 1 - (q - p)), "0.5 times the right value"),
        ("AdaptiveKL", Threefold, "The smallest case that fails"),
        ("AdaptiveKL", lambda coef, **_: coef, "'float' object has no attribute 'update'"),
        ("AdaptiveKL", lambda coef: coef, "unexpected keyword argument 'target'"),
    ],
)
def test_an_unknown_mistake_in_kl_is_described(name, mine, says):
    result = checks.CHECKS[name](mine)
    assert not result.passed
    assert result.finished
    assert result.mistake is None
    assert says in str(result)


def test_a_controllers_smallest_case_is_one_update():
    assert re.search(r"kls = \[[\d.]+\]\n", str(checks.AdaptiveKL(Threefold)))


@dataclass
class HalfDone:
    coef: float
    target: float
    horizon: int = 1

    def update(self, kl, n_episodes):
        """The stub of a lesson."""
        ...


class Empty:
    def __init__(self, coef, **settings): ...

    def update(self, kl, n_episodes): ...


class NotYet(Ziegler):
    def update(self, kl, n_episodes):
        raise NotImplementedError


@pytest.mark.parametrize("stub", [HalfDone, Empty])
def test_a_stub_of_a_class_is_unfinished_and_not_wrong(stub):
    result = checks.AdaptiveKL(stub)
    assert not result.passed
    assert not result.finished


def test_a_method_that_is_not_implemented_is_unfinished():
    assert not checks.AdaptiveKL(NotYet).finished


def test_an_update_that_only_computes_never_moves():
    class Forgetful(Ziegler):
        def update(self, kl, n_episodes):
            coef = self.coef * (1 + (kl / self.target - 1) * n_episodes / self.horizon)
            return coef

    assert checks.AdaptiveKL(Forgetful).mistake == "never moves"


# ---- what the catalogue says of training -----------------------------------------------------

P, Q = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([0.5, 0.4, 0.1])


def expected_slope(name, mistakes):
    """The mean, over tokens from p, of the estimate's gradient in the policy's logits."""
    logits = P.log().requires_grad_()
    estimates = CATALOGUE[name].version(mistakes)(logits.log_softmax(-1), Q.log())
    return torch.autograd.grad((P * estimates).sum(), logits)[0]


def test_k3_with_a_detached_ratio_teaches_nothing_on_average():
    assert_close(expected_slope("kl_k3", ["ratio detached"]), torch.zeros(3))
    # The whole k3: the gradient of KL(q || p), which is p - q.
    assert_close(expected_slope("kl_k3", []), P - Q)


def test_a_clamped_kl_has_no_gradient():
    log_p = torch.tensor([-8.0], requires_grad=True)
    clamped = CATALOGUE["kl_k3"].version(["clamped at 10"])(log_p, torch.tensor([-0.5]))
    assert clamped.item() == 10.0
    assert torch.autograd.grad(clamped, log_p)[0].item() == 0.0


def test_the_reference_as_weights_pays_for_going_far():
    version = CATALOGUE["exact_kl"].version(["weights of the reference"])
    # -KL(q || p): 0.412 nats, peers' golden number.
    assert version(P.log(), Q.log()).item() == pytest.approx(-0.412274, abs=1e-6)
    assert version(P.log(), P.log()).item() == pytest.approx(0.0, abs=1e-7)


def test_a_cut_or_half_cut_exact_kl_has_no_gradient():
    logits = P.log().requires_grad_()
    version = CATALOGUE["exact_kl"].version(["no gradient"])
    slope = torch.autograd.grad(version(logits, Q.log()), logits)[0]
    assert_close(slope, torch.zeros(3))


def test_a_controller_that_starts_over_forgets_what_it_learned():
    controller = CATALOGUE["AdaptiveKL"].version(["starts over"])(1.0, target=6.0, horizon=1000)
    for _ in range(100):
        controller.update(60.0, 100)
    assert controller.coef == pytest.approx(1.02)  # 1.02 ** 100 = 7.24


def test_a_controller_that_adds_can_reach_zero_and_below():
    controller = CATALOGUE["AdaptiveKL"].version(["added"])(0.1, target=6.0, horizon=1000)
    for _ in range(6):
        controller.update(0.0, 100)
    assert controller.coef < 0
