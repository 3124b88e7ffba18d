import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor
from torch.testing import assert_close

from minippo import AdaptiveKL, FixedKL, PenaltyKL, exact_kl, kl_k1, kl_k2, kl_k3
from minippo.checks import definitions as slow
from tests.shapes import double, refuses

INF, NAN = float("inf"), float("nan")
F64 = torch.float64
ESTIMATORS = [kl_k1, kl_k2, kl_k3]
# peers.md 2.9: KL(policy || reference) = .535156, KL(reference || policy) = .412274.
POLICY, REF = double([0.2, 0.3, 0.5]), double([0.5, 0.4, 0.1])
SIX = {"rtol": 0, "atol": 1e-6}  # these goldens are known to 6 digits


# ---- the estimators


@pytest.mark.parametrize(
    ("log_p", "log_q", "expected"),
    [
        # peers.md 2.9: TRL, verl, OpenRLHF, tiny-grpo, minimind. With the ratio inverted (trlX,
        # RLHF book) k3 is .148721 and .106531; NeMo's |k1|, alpaca_farm's max(k1, 0): row 2.
        (-1.0, -1.5, [0.5, 0.125, 0.106531]),
        (-1.5, -1.0, [-0.5, 0.125, 0.148721]),
        (-2.0, -2.0, [0.0, 0.0, 0.0]),
        (-1000.0, 0.0, [-1000.0, 500000.0, INF]),
        (0.0, -1000.0, [1000.0, 500000.0, 999.0]),
    ],
)
def test_the_kl_estimators_of_one_token_by_hand(log_p, log_q, expected):
    got = [k(tensor([log_p]), tensor([log_q])) for k in ESTIMATORS]
    assert_close(torch.cat(got), tensor(expected))


@pytest.mark.parametrize("name", ["kl_k1", "kl_k2", "kl_k3"])
def test_estimators_are_the_definition_in_value_and_gradient(name):
    fast, definition = globals()[name], getattr(slow, name)
    p, q = (torch.randn(2, 20, dtype=F64)).unbind()
    p.requires_grad_(), q.requires_grad_()
    got = fast(p, q)
    pairs = [list(pair) for pair in zip(p.tolist(), q.tolist(), strict=True)]
    assert_close(got, double([definition(*pair) for pair in pairs]))
    slopes = [slow.gradient(lambda pair: definition(*pair), pair) for pair in pairs]
    got = torch.stack(torch.autograd.grad(got.sum(), (p, q)), 1)
    assert_close(got, double(slopes), **slow.DIFFERENCES)


def test_k3_of_a_small_difference_keeps_its_digits():
    # k3 of a log-ratio d is d^2 / 2 + d^3 / 6: exp(d) - 1 would leave noise of 1e-7.
    got = kl_k3(tensor([0.0]), tensor([1e-4]))
    assert_close(got, tensor([5e-9 + 1e-12 / 6]), rtol=1e-2, atol=0)  # d itself has 7 digits


def test_the_expectations_over_three_tokens():
    # peers.md 2.9. The inverted k3 has 1.269844, |k1| 1.074282, max(k1, 0) .804719.
    mean = [(POLICY * k(POLICY.log(), REF.log())).sum() for k in ESTIMATORS]
    assert_close(torch.stack(mean), double([0.535156, 0.743946, 0.535156]), **SIX)


def test_the_spreads_over_three_tokens():
    # peers.md 2.9: standard deviations 1.096, .567, .332.
    spread = []
    for k in ESTIMATORS:
        x = k(POLICY.log(), REF.log())
        spread.append(((POLICY * x**2).sum() - (POLICY * x).sum() ** 2).sqrt())
    assert_close(torch.stack(spread), double([1.096, 0.567, 0.332]), rtol=0, atol=5e-4)


@pytest.mark.parametrize(
    ("shift", "bias", "spread"),
    [
        # Schulman's own table (joschu.net/blog/kl-approx.html), relative to the true KL:
        # samples from N(0, 1), reference N(shift, 1). There 10 million samples; here the integral.
        (0.1, [0.0, 0.002, 0.0], [20.0, 1.42, 1.42]),
        (1.0, [0.0, 0.25, 0.0], [2.0, 1.73, 1.70]),
    ],
)
def test_the_kl_estimators_have_the_bias_and_spread_of_schulmans_table(shift, bias, spread):
    x = torch.linspace(-12, 12, 20_001, dtype=F64)
    log_p, log_q = -(x**2) / 2, -((x - shift) ** 2) / 2
    weight, true = log_p.exp() / log_p.exp().sum(), shift**2 / 2
    for k, b, s in zip(ESTIMATORS, bias, spread, strict=True):
        estimate = k(log_p, log_q)
        mean = (weight * estimate).sum().item()
        sd = math.sqrt((weight * (estimate - mean) ** 2).sum().item())
        assert math.isclose(mean / true - 1, b, abs_tol=1e-3)  # the table's digits
        assert math.isclose(sd / true, s, abs_tol=6e-3)


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        # peers.md 2.9, with respect to the logits; the sampling is not differentiated. The inverted
        # k3 has [-.481, -.6165, 1.0975].
        (kl_k1, [0.0, 0.0, 0.0]),
        (kl_k2, [-0.290289, -0.246851, 0.537141]),  # the true gradient of KL(policy || reference)
        (kl_k3, [-0.3, -0.1, 0.4]),  # policy - reference, the gradient of KL(reference || policy)
    ],
)
def test_the_expected_gradients_in_the_loss(estimator, expected):
    z = POLICY.log().requires_grad_()
    loss = (POLICY * estimator(z.log_softmax(-1), REF.log())).sum()
    assert_close(torch.autograd.grad(loss, z)[0], double(expected), **SIX)


def test_k1_in_the_reward_gives_the_true_gradient():
    # The score function's: E[k1 * d log p], k1 held fixed.
    z = POLICY.log().requires_grad_()
    log_p = z.log_softmax(-1)
    loss = (POLICY * kl_k1(log_p, REF.log()).detach() * log_p).sum()
    expected = double([-0.290289, -0.246851, 0.537141])
    assert_close(torch.autograd.grad(loss, z)[0], expected, **SIX)


@given(st.floats(-30, 0), st.floats(-30, 0))
def test_k2_and_k3_are_never_negative(log_p, log_q):
    p, q = tensor([log_p]), tensor([log_q])
    assert kl_k2(p, q).item() >= 0
    assert kl_k3(p, q).item() >= 0


# ---- exact_kl


def test_exact_kl_by_hand():
    assert_close(exact_kl(POLICY.log(), REF.log()), double(0.535156), **SIX)
    assert_close(exact_kl(REF.log(), POLICY.log()), double(0.412274), **SIX)


def test_the_gradient_of_exact_kl_by_hand():
    # peers.md 2.9: p_i (log p_i - log q_i - KL); to the reference's logits, q - p.
    z, ref = POLICY.log().requires_grad_(), REF.log().requires_grad_()
    slopes = torch.autograd.grad(exact_kl(z, ref), (z, ref))
    assert_close(slopes[0], double([-0.290289, -0.246851, 0.537141]), **SIX)
    assert_close(slopes[1], double([0.3, 0.1, -0.4]))


def test_exact_kl_is_the_definition_at_every_temperature():
    z, ref = torch.randn(2, 3, 4, dtype=F64).unbind()
    z.requires_grad_()
    for t in (0.5, 1.0, 2.0):
        got = exact_kl(z, ref, temperature=t)
        pairs = list(zip(z.tolist(), ref.tolist(), strict=True))
        assert_close(got, double([slow.exact_kl(*pair, t) for pair in pairs]))
        slopes = [slow.gradient(lambda x, y=y, t=t: slow.exact_kl(x, y, t), x) for x, y in pairs]
        (slope,) = torch.autograd.grad(got.sum(), z)
        assert_close(slope, double(slopes), **slow.DIFFERENCES)


def test_a_distribution_is_no_distance_from_itself():
    z = torch.randn(2, 3, 5, requires_grad=True)
    got = exact_kl(z, z.detach() + 3.0)
    # Not exactly 0: adding 3 rounds the logits.
    assert_close(got, torch.zeros(2, 3), rtol=0, atol=1e-6)
    (slope,) = torch.autograd.grad(got.sum(), z)
    assert_close(slope, torch.zeros(2, 3, 5), rtol=0, atol=1e-6)


def test_exact_kl_where_both_rule_a_token_out():
    # Over the other two: p = [.4, .6], q = [.5, .5].
    z = tensor([math.log(0.4), -INF, math.log(0.6)], requires_grad=True)
    ref = tensor([0.0, -INF, 0.0])
    kl = 0.4 * math.log(0.8) + 0.6 * math.log(1.2)
    got = exact_kl(z, ref)
    assert_close(got, tensor(kl))
    slope = [0.4 * (math.log(0.8) - kl), 0.0, 0.6 * (math.log(1.2) - kl)]
    assert_close(torch.autograd.grad(got, z)[0], tensor(slope))


def test_exact_kl_where_the_policy_alone_rules_a_token_out():
    z = tensor([0.0, -INF, 0.0], requires_grad=True)
    got = exact_kl(z, torch.zeros(3))
    assert_close(got, tensor(math.log(3 / 2)))
    # p (log p - log q - KL) = .5 (log 1.5 - log 1.5)
    assert_close(torch.autograd.grad(got, z)[0], torch.zeros(3))


@pytest.mark.parametrize("logit", [0.0, -50.0, -200.0])
def test_exact_kl_is_infinite_where_the_reference_alone_rules_a_token_out(logit):
    # -200 is allowed too: e^-200 is above 0, though float32 cannot hold it.
    assert exact_kl(tensor([0.0, logit]), tensor([0.0, -INF])).item() == INF


def test_exact_kl_of_far_logits():
    # Certain against certain of the other: 1 * (0 - -1000).
    got = exact_kl(tensor([[1000.0, 0.0], [0.0, 0.0]]), tensor([[0.0, 1000.0], [0.0, 0.0]]))
    assert_close(got, tensor([1000.0, 0.0]))


def test_exact_kl_of_a_row_depends_on_that_row_alone():
    z, ref = torch.randn(2, 3, 4, 5)
    whole = exact_kl(z, ref)
    for i in range(3):
        assert_close(exact_kl(z[i], ref[i]), whole[i])


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_kl_in_half_precision_is_that_of_the_upcast_numbers(half):
    p, q = (-3 * torch.rand(2, 30)).to(half)
    pairs = list(zip(p.tolist(), q.tolist(), strict=True))
    for k in ESTIMATORS:
        definition = getattr(slow, k.__name__)
        # k3 loses digits to r - 1 - log r near r = 1: 1e-7 of r.
        assert_close(k(p, q), tensor([definition(*x) for x in pairs]), rtol=1e-5, atol=1e-6)
    got = exact_kl(p, q, temperature=0.5)
    assert_close(got, tensor(slow.exact_kl(p.tolist(), q.tolist(), 0.5)))


# ---- the controllers


@pytest.mark.parametrize(
    ("kl", "factor"),
    [
        # peers.md 2.11: OAI and its ports; target 6, 512 episodes, horizon 10,000. The paper's
        # K = .1 would give .98, 1, 1.016667, 1.02.
        (3.0, 0.98976),
        (6.0, 1.0),
        (7.0, 1.0085333333),
        (12.0, 1.01024),
        (1e9, 1.01024),
        (-5.0, 0.98976),
    ],
)
def test_adaptive_kl_by_hand(kl, factor):
    controller = AdaptiveKL(0.3, target=6.0, horizon=10_000)
    controller.update(kl, 512)
    assert math.isclose(controller.coef, 0.3 * factor, rel_tol=1e-9)


def test_adaptive_kl_holds_at_its_target_and_compounds():
    controller = AdaptiveKL(1.0, target=2.0, horizon=10)
    for _ in range(3):
        controller.update(2.0, 10)
    assert controller.coef == 1.0
    for _ in range(3):
        controller.update(2.2, 10)  # e = .1, n / horizon = 1
    assert math.isclose(controller.coef, 1.1**3)


def test_adaptive_kl_stays_positive_up_to_five_horizons():
    controller = AdaptiveKL(1.0, target=6.0, horizon=100)
    controller.update(0.0, 499)
    assert math.isclose(controller.coef, 0.002)
    with refuses("AdaptiveKL.update: n_episodes", "500"):
        controller.update(0.0, 500)


@pytest.mark.parametrize(
    ("kl", "factor"),
    [(0.0, 0.5), (0.5, 0.5), (0.66, 0.5), (0.67, 1), (1.0, 1), (1.5, 1), (1.51, 2), (9.0, 2)],
)
def test_penalty_kl_by_hand(kl, factor):
    # Schulman et al. 2017, sec. 4, for a target of 1: strictly above 1.5 and below 1 / 1.5.
    controller = PenaltyKL(0.3, target=1.0)
    controller.update(kl, 64)
    assert controller.coef == 0.3 * factor
    assert controller.target == 1.0


def test_penalty_kl_at_its_lower_edge_stays():
    controller = PenaltyKL(1.0, target=3.0)
    controller.update(2.0, 1)
    assert controller.coef == 1.0


@pytest.mark.parametrize(
    ("controller", "kl"),
    [
        (lambda: PenaltyKL(1.0, target=0.01), (0.0, 1.0)),
        (lambda: AdaptiveKL(1.0, target=6.0, horizon=100), (-50.0, 1e6)),
    ],
)
def test_a_controller_comes_back_from_its_bounds(controller, kl):
    # 1,100 halvings of a float are 0, from which no doubling returns; 1,100 doublings are inf.
    for far, back, bound in ((kl[0], kl[1], 2.0**-20), (kl[1], kl[0], 2.0**20)):
        made = controller()
        for _ in range(1100):
            made.update(far, 100)
        assert made.coef == bound
        for _ in range(200):
            made.update(back, 100)
        assert made.coef == 1 / bound


def test_fixed_kl_stays():
    controller = FixedKL(0.0)
    controller.update(1e9, 64)
    assert controller.coef == 0.0


X = torch.zeros(2)


ADAPTIVE, PENALTY = AdaptiveKL(1.0, target=6.0, horizon=9), PenaltyKL(1.0, target=1.0)


@pytest.mark.parametrize(
    ("call", "argument", "came"),
    [
        (lambda: kl_k1(X, X[:1]), "kl_k1: ref_log_probs", "float32 [1]"),
        (lambda: kl_k2(X, X.long()), "kl_k2: ref_log_probs", "int64 [2]"),
        (lambda: kl_k3([0.0], X), "kl_k3: log_probs", "list"),
        (lambda: exact_kl(X, torch.zeros(3)), "exact_kl: ref_logits", "float32 [3]"),
        (lambda: exact_kl(X, X, temperature=0), "exact_kl: temperature", "0"),
        (lambda: FixedKL(-0.1), "FixedKL: coef", "-0.1"),
        (lambda: FixedKL(NAN), "FixedKL: coef", "nan"),
        (lambda: FixedKL(True), "FixedKL: coef", "True"),
        (lambda: AdaptiveKL(0.0, target=6.0, horizon=100), "AdaptiveKL: coef", "0.0"),
        (lambda: AdaptiveKL(1.0, target=0.0, horizon=100), "AdaptiveKL: target", "0.0"),
        (lambda: AdaptiveKL(1.0, target=INF, horizon=100), "AdaptiveKL: target", "inf"),
        (lambda: AdaptiveKL(1.0, target=6.0, horizon=0), "AdaptiveKL: horizon", "0"),
        (lambda: AdaptiveKL(1.0, target=6.0, horizon=True), "AdaptiveKL: horizon", "True"),
        (lambda: PenaltyKL(0.0, target=1.0), "PenaltyKL: coef", "0.0"),
        (lambda: PenaltyKL(1.0, target=-1.0), "PenaltyKL: target", "-1.0"),
        (lambda: FixedKL(1.0).update(NAN, 1), "FixedKL.update: kl", "nan"),
        (lambda: FixedKL(1.0).update(1.0, 0), "FixedKL.update: n_episodes", "0"),
        (lambda: ADAPTIVE.update(INF, 1), "AdaptiveKL.update: kl", "inf"),
        (lambda: ADAPTIVE.update(1.0, 0), "AdaptiveKL.update: n_episodes", "0"),
        (lambda: ADAPTIVE.update(1.0, 45), "AdaptiveKL.update: n_episodes", "45"),
        (lambda: PENALTY.update(NAN, 1), "PenaltyKL.update: kl", "nan"),
        (lambda: PENALTY.update(1.0, True), "PenaltyKL.update: n_episodes", "True"),
    ],
)
def test_errors_of_kl_name_the_argument_and_what_came(call, argument, came):
    with refuses(argument, came):
        call()


def test_target_and_horizon_are_named_so_that_they_cannot_be_swapped():
    with pytest.raises(TypeError, match="positional"):
        AdaptiveKL(1.0, 6.0, 100)
    with pytest.raises(TypeError, match="positional"):
        PenaltyKL(1.0, 0.01)


def test_a_refused_update_leaves_the_coefficient_alone():
    controller = AdaptiveKL(1.0, target=6.0, horizon=9)
    with refuses("AdaptiveKL.update: n_episodes", "45"):
        controller.update(1.0, 45)
    assert controller.coef == 1.0
