import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor
from torch.testing import assert_close

import minippo
from minippo import (
    bradley_terry_loss,
    clip_is_active,
    clipped_surrogate,
    penalty_surrogate,
    probability_ratio,
    reinforce_loss,
    sft_loss,
    value_loss,
)
from minippo.checks import definitions as slow
from tests.shapes import double, refuses

INF, NAN = float("inf"), float("nan")
F64 = torch.float64
# Ratios and advantages on, beside and between the edges of every band below, dual clip included.
GRID = torch.cartesian_prod(
    double([0.0, 0.3, 0.699, 0.701, 0.799, 0.801, 1.0, 1.199, 1.201, 1.4, 2.9, 3.1, 50.0]),
    double([-2.0, -1.0, -0.01, 0.01, 1.0, 3.0]),
)
BANDS = [(0.2, 0.2), (0.3, 0.2), (0.2, 0.3), (0.0, 0.0), (1.0, 5.0)]


# ---- probability_ratio


def test_the_ratio_is_new_over_old():
    new, old = tensor([0.3, 0.2, 0.1]).log(), tensor([0.2, 0.2, 0.4]).log()
    assert_close(probability_ratio(new, old), tensor([1.5, 1.0, 0.25]))


def test_the_slope_of_the_ratio_is_the_ratio():
    new = tensor([0.3]).log().requires_grad_()
    old = tensor([0.2]).log().requires_grad_()
    (slope,) = torch.autograd.grad(probability_ratio(new, old), new)
    assert_close(slope, tensor([1.5]))


def test_a_ratio_that_overflows_is_inf():
    # OpenRLHF and verl clamp the log-ratio to +-20, which would hide it as 4.9e8.
    got = probability_ratio(tensor([0.0, -1000.0, 25.0]), tensor([-1000.0, 0.0, 0.0]))
    assert_close(got, tensor([INF, 0.0, math.exp(25)]))


# ---- clipped_surrogate and clip_is_active


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        # peers.md 2.3, epsilon .2: all fourteen libraries agree.
        (0.5, 1.0, -0.5, -1.0),
        (0.9, 1.0, -0.9, -1.0),
        (1.5, 1.0, -1.2, 0.0),
        (4.0, 1.0, -1.2, 0.0),
        (0.5, -1.0, 0.8, 0.0),
        (0.9, -1.0, 0.9, 1.0),
        (1.5, -1.0, 1.5, 1.0),
        (4.0, -1.0, 4.0, 1.0),
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_clipped_surrogate_by_hand(ratio, advantage, loss, slope):
    r = tensor([ratio], requires_grad=True)
    got = clipped_surrogate(r, tensor([advantage]), 0.2)
    assert_close(got, tensor([loss]))
    assert_close(torch.autograd.grad(got, r)[0], tensor([slope]))
    active = clip_is_active(r, tensor([advantage]), 0.2)
    assert active.item() == (slope == 0.0 and advantage != 0.0)


def test_dual_clip_bounds_the_loss_of_a_bad_token():
    # peers.md 2.3: verl, OpenRLHF; c = 3.
    r = tensor([4.0, 4.0, 2.0, 0.5], requires_grad=True)
    a = tensor([-1.0, 1.0, -1.0, -1.0])
    got = clipped_surrogate(r, a, 0.2, dual_clip=3.0)
    assert_close(got, tensor([3.0, -1.2, 2.0, 0.8]))
    assert_close(torch.autograd.grad(got.sum(), r)[0], tensor([0.0, 0.0, 1.0, 0.0]))
    active = clip_is_active(r, a, 0.2, dual_clip=3.0)
    assert active.tolist() == [True, True, False, True]


def test_a_clip_range_may_have_two_sides():
    r, a = tensor([0.65, 0.75, 1.15, 1.25]), tensor([-1.0, -1.0, 1.0, 1.0])
    assert_close(clipped_surrogate(r, a, (0.3, 0.1)), tensor([0.7, 0.75, -1.1, -1.1]))
    assert clip_is_active(r, a, (0.3, 0.1)).tolist() == [True, False, True, True]


@pytest.mark.parametrize("band", BANDS)
@pytest.mark.parametrize("dual_clip", [None, 3.0, 7.0])
def test_clipped_surrogate_is_the_definition_in_value_and_gradient(band, dual_clip):
    off_edge = GRID[(GRID[:, 0] != 1) | (band[0] > 0)]  # at a kink there is no slope to compare
    r, a = off_edge[:, 0].clone().requires_grad_(), off_edge[:, 1]
    got = clipped_surrogate(r, a, band, dual_clip=dual_clip)
    pairs = list(zip(r.tolist(), a.tolist(), strict=True))
    expected = [slow.clipped_surrogate(*pair, *band, dual_clip) for pair in pairs]
    assert_close(got, double(expected))
    slopes = [
        slow.gradient(lambda x, y=y: slow.clipped_surrogate(x[0], y, *band, dual_clip), [x])[0]
        for x, y in pairs
        if not (band[0] == 1.0 and x == 0.0)
    ]
    smooth = ~((r == 0) & (band[0] == 1.0))
    (slope,) = torch.autograd.grad(got.sum(), r)
    assert_close(slope[smooth], double(slopes), **slow.DIFFERENCES)


@pytest.mark.parametrize("band", BANDS)
@pytest.mark.parametrize("dual_clip", [None, 7.0])
def test_the_gradient_is_zero_exactly_where_the_clip_is_active(band, dual_clip):
    edges = torch.cartesian_prod(double([1 - band[0], 1.0, 1 + band[1], 7.0]), double([-1.0, 1.0]))
    grid = torch.cat([GRID, edges])
    r, a = grid[:, 0].clone().requires_grad_(), grid[:, 1]
    loss = clipped_surrogate(r, a, band, dual_clip=dual_clip)
    (slope,) = torch.autograd.grad(loss.sum(), r)
    active = clip_is_active(r, a, band, dual_clip=dual_clip)
    assert torch.equal(slope == 0, active)
    # A clip that counts both sides of the band (CleanRL, Stable-Baselines3) would say more.
    assert active.sum() < ((r < 1 - band[0]) | (r > 1 + band[1])).sum()


def test_two_of_six_regions_are_clipped():
    r, a = tensor([0.5, 1.0, 1.5] * 3), tensor([1.0] * 3 + [-1.0] * 3 + [0.0] * 3)
    assert clip_is_active(r, a, 0.2).nonzero().flatten().tolist() == [2, 3]


def test_at_ratio_one_the_gradient_is_the_policy_gradient():
    # d(-r A) / d log p = -A at r = 1: where PPO begins, it is REINFORCE.
    log_probs = torch.randn(5, dtype=F64, requires_grad=True)
    advantages = torch.randn(5, dtype=F64)
    ratio = probability_ratio(log_probs, log_probs.detach())
    loss = clipped_surrogate(ratio, advantages, 0.2)
    assert_close(torch.autograd.grad(loss.sum(), log_probs)[0], -advantages)


@given(st.floats(0, 5), st.floats(-3, 3), st.floats(0, 1))
def test_the_clip_is_pessimistic(ratio, advantage, clip_range):
    r, a = double([ratio]), double([advantage])
    loss = clipped_surrogate(r, a, clip_range).item()
    assert loss >= -ratio * advantage
    dual = clipped_surrogate(r, a, clip_range, dual_clip=3.0).item()
    assert dual <= loss
    assert advantage >= 0 or dual <= -3.0 * advantage


# ---- penalty_surrogate


def test_penalty_surrogate_by_hand():
    # -(1.5 * 2 - 3 * .1); slopes -A and coef.
    r, kl = (tensor([x], requires_grad=True) for x in (1.5, 0.1))
    got = penalty_surrogate(r, tensor([2.0]), kl, coef=3.0)
    assert_close(got, tensor([-2.7]))
    slopes = torch.autograd.grad(got, (r, kl))
    assert_close(torch.cat(slopes), tensor([-2.0, 3.0]))


def test_a_penalty_of_zero_is_the_bare_surrogate():
    got = penalty_surrogate(tensor([1.5]), tensor([-2.0]), tensor([9.0]), coef=0)
    assert_close(got, tensor([3.0]))


# ---- what is data

DATA = {
    "probability_ratio": ({"log_probs"}, {"old_log_probs"}),
    "clipped_surrogate": ({"ratio"}, {"advantages"}),
    "penalty_surrogate": ({"ratio", "kl"}, {"advantages"}),
    "value_loss": ({"values"}, {"returns", "old_values"}),
    "reinforce_loss": ({"log_probs"}, {"advantages"}),
}


@pytest.mark.parametrize("name", DATA)
def test_no_gradient_reaches_what_is_data(name):
    learns, data = DATA[name]
    # Far from one another, so that no clip hides a leak; values move away from the old ones.
    x = {key: torch.linspace(0.5, 0.9, 5) for key in learns | data}
    x |= {key: 3 * x[key] for key in data & {"returns"}}
    for tensors in x.values():
        tensors.requires_grad_()
    numbers = {"clipped_surrogate": {"clip_range": 0.2}, "penalty_surrogate": {"coef": 2.0}}
    numbers |= {"value_loss": {"clip_range": 0.2}}
    getattr(minippo, name)(**x, **numbers.get(name, {})).sum().backward()
    assert {key for key in x if x[key].grad is not None} == learns


@pytest.mark.parametrize(
    ("ratio", "loss", "slope"),
    [(0.7, 0.8, 0.0), (0.9, 0.9, 1.0), (1.05, 1.05, 1.0), (1.15, 1.1, 0.0), (9.0, 1.1, 0.0)],
)
def test_a_dual_clip_inside_the_band_by_hand(ratio, loss, slope):
    # c = 1.1, epsilon .2, A = -1: flat below .8 and above 1.1, slope 1 between; no overlap.
    r = tensor([ratio], requires_grad=True)
    got = clipped_surrogate(r, tensor([-1.0]), 0.2, dual_clip=1.1)
    assert_close(got, tensor([loss]))
    assert_close(torch.autograd.grad(got, r)[0], tensor([slope]))
    active = clip_is_active(tensor([ratio]), tensor([-1.0]), 0.2, dual_clip=1.1)
    assert active.item() == (slope == 0)


# ---- value_loss


@pytest.mark.parametrize(
    ("value", "target", "old", "loss", "slope"),
    [
        # peers.md 2.7: clip(1, .5 +- .2) = .7, and max(1, 1.69) / 2. Spinning Up and
        # Stable-Baselines3 leave out the half.
        (1.0, 2.0, 0.5, 0.845, 0.0),
        # The clip brings V nearer to R, and is ignored: max(1, .49) / 2. RL4LMs and
        # Stable-Baselines3 take the clipped term alone: .245, and no gradient.
        (1.0, 0.0, 0.5, 0.5, 1.0),
        (0.0, -1.0, 0.5, 0.845, 0.0),  # below the band: clip to .3, and 1.3^2 / 2
        (0.6, 2.0, 0.5, 0.98, -1.4),  # inside the band: 1.4^2 / 2
    ],
)
def test_value_loss_by_hand(value, target, old, loss, slope):
    v = tensor([value], requires_grad=True)
    got = value_loss(v, tensor([target]), old_values=tensor([old]), clip_range=0.2)
    assert_close(got, tensor([loss]))
    assert_close(torch.autograd.grad(got, v)[0], tensor([slope]))


def test_value_loss_without_a_clip_is_half_the_square():
    v, target = tensor([1.0, -2.0], requires_grad=True), tensor([2.0, 1.0])
    got = value_loss(v, target)
    assert_close(got, tensor([0.5, 4.5]))
    assert_close(torch.autograd.grad(got.sum(), v)[0], tensor([-1.0, -3.0]))


def test_a_wide_clip_range_changes_nothing():
    v, target, old = torch.randn(3, 20).unbind()
    assert_close(value_loss(v, target, old_values=old, clip_range=1e6), 0.5 * (v - target) ** 2)


def test_value_loss_is_the_definition_in_value_and_gradient():
    v, target, old = (torch.randn(50, dtype=F64) for _ in range(3))
    v.requires_grad_()
    got = value_loss(v, target, old_values=old, clip_range=0.4)
    cases = list(zip(v.tolist(), target.tolist(), old.tolist(), strict=True))
    assert_close(got, double([slow.value_loss(*case, 0.4) for case in cases]))
    slopes = [
        slow.gradient(lambda x, r=r, o=o: slow.value_loss(x[0], r, o, 0.4), [x])[0]
        for x, r, o in cases
    ]
    (slope,) = torch.autograd.grad(got.sum(), v)
    assert_close(slope, double(slopes), **slow.DIFFERENCES)
    assert 0 < (slope == 0).sum() < 50


@given(st.floats(-3, 3), st.floats(-3, 3), st.floats(-3, 3), st.floats(0.01, 2))
def test_the_value_clip_can_only_raise_the_loss(value, target, old, clip_range):
    v, target, old = (double([x]) for x in (value, target, old))
    clipped = value_loss(v, target, old_values=old, clip_range=clip_range)
    assert (clipped >= value_loss(v, target)).all()


# ---- bradley_terry_loss


@pytest.mark.parametrize(
    ("difference", "loss"),
    [
        # peers.md 2.12: TRL, OpenRLHF, RLHF book, SFFD. OpenRLHF's LogExpLoss is inf at -1000.
        (0.0, 0.693147),
        (1.0, 0.313262),
        (-2.0, 2.126928),
        (1000.0, 0.0),
        (-1000.0, 1000.0),
    ],
)
def test_bradley_terry_by_hand(difference, loss):
    chosen, rejected = (tensor([x], requires_grad=True) for x in (5.0 + difference, 5.0))
    got = bradley_terry_loss(chosen, rejected)
    assert_close(got, tensor([loss]))
    # The slope is minus the probability of being surprised.
    surprise = 1 / (1 + math.exp(difference)) if difference < 500 else 0.0
    slopes = torch.autograd.grad(got, (chosen, rejected))
    assert_close(torch.cat(slopes), tensor([-surprise, surprise]))


def test_a_margin_is_asked_of_the_difference():
    # peers: OpenRLHF subtracts it. (3 - 1) - 2 = 0.
    got = bradley_terry_loss(tensor([3.0]), tensor([1.0]), margin=2.0)
    assert_close(got, tensor([math.log(2)]))


def test_bradley_terry_is_cross_entropy_over_two():
    # peers: OAI, LHPD take best-of-4 cross-entropy, which is this for two candidates.
    chosen, rejected = torch.randn(2, 20, dtype=F64)
    pairs = list(zip(chosen.tolist(), rejected.tolist(), strict=True))
    got = bradley_terry_loss(chosen, rejected)
    assert_close(got, double([-slow.log_softmax(list(pair))[0] for pair in pairs]))
    expected = [slow.bradley_terry_loss(*pair, margin=0.5) for pair in pairs]
    assert_close(bradley_terry_loss(chosen, rejected, margin=0.5), double(expected))


@given(st.floats(-20, 20))
def test_only_the_difference_of_scores_counts(constant):
    chosen, rejected = torch.randn(2, 5, dtype=F64)
    got = bradley_terry_loss(chosen + constant, rejected + constant)
    assert_close(got, bradley_terry_loss(chosen, rejected))


# ---- sft_loss


def test_sft_loss_of_equal_logits_is_log_vocab():
    mask = tensor(slow.prefix_mask([2, 1], 3))
    got = sft_loss(torch.zeros(2, 3, 7), torch.zeros(2, 3).long(), mask)
    assert_close(got, tensor(math.log(7)))


def test_sft_loss_weighs_each_real_token_the_same():
    # Surprises log 2, log 4, log 4 over two rows: 5 log 2 / 3.
    # The mean of the rows' means would be 7 log 2 / 4.
    p = tensor([[[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]], [[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]])
    mask = tensor(slow.prefix_mask([2, 1], 2))
    got = sft_loss(p.log(), tensor([[0, 1], [2, 0]]), mask)
    assert_close(got, tensor(5 * math.log(2) / 3))


def test_sft_loss_is_the_definition_in_value_and_gradient():
    z = torch.randn(2, 3, 4, dtype=F64, requires_grad=True)
    tokens, mask = torch.randint(4, (2, 3)), slow.prefix_mask([3, 1], 3)
    got = sft_loss(z, tokens, tensor(mask))
    assert_close(got, double(slow.sft_loss(z.tolist(), tokens.tolist(), mask)))
    (slope,) = torch.autograd.grad(got, z)
    expected = slow.gradient(lambda x: slow.sft_loss(x, tokens.tolist(), mask), z.tolist())
    assert_close(slope, double(expected), **slow.DIFFERENCES)
    assert (slope[~tensor(mask)] == 0).all()


@pytest.mark.parametrize("junk", [NAN, INF])
def test_junk_logits_on_the_padding_change_neither_loss_nor_gradient(junk):
    mask, tokens = tensor([[True, False]]), tensor([[0, 1]])
    z = tensor([[[0.0, 0.0], [junk, junk]]], requires_grad=True)
    got = sft_loss(z, tokens, mask)
    assert_close(got, tensor(math.log(2)))
    (slope,) = torch.autograd.grad(got, z)
    assert_close(slope, tensor([[[-0.5, 0.5], [0.0, 0.0]]]))


# ---- reinforce_loss


def test_reinforce_by_hand_and_no_gradient_to_the_advantages():
    log_probs = tensor([-1.0, -2.0], requires_grad=True)
    advantages = tensor([3.0, -0.5], requires_grad=True)
    got = reinforce_loss(log_probs, advantages)
    assert_close(got, tensor([3.0, -1.0]))
    slopes = torch.autograd.grad(got.sum(), (log_probs, advantages), allow_unused=True)
    assert_close(slopes[0], tensor([-3.0, 0.5]))
    assert slopes[1] is None


@pytest.mark.parametrize("baseline", [0.0, 1.7])
def test_the_expected_gradient_is_that_of_the_expected_reward(baseline):
    # Exactly, over three actions: dE[R] / dz_i = p_i (R_i - E[R]), whatever the baseline.
    p, reward = [0.2, 0.3, 0.5], [1.0, -2.0, 4.0]
    z = tensor(p).log().requires_grad_()
    loss = reinforce_loss(z.log_softmax(-1), tensor(reward) - baseline)
    (slope,) = torch.autograd.grad((tensor(p) * loss).sum(), z)
    mean = sum(a * b for a, b in zip(p, reward, strict=True))
    assert_close(slope, tensor([-a * (b - mean) for a, b in zip(p, reward, strict=True)]))


# ---- half precision, errors


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_losses_in_half_precision_are_those_of_the_upcast_numbers(half):
    a, b = (torch.randn(2, 30) * 3).to(half)
    pairs = list(zip(a.tolist(), b.tolist(), strict=True))
    assert_close(probability_ratio(a, b), tensor([math.exp(x - y) for x, y in pairs]))
    expected = [slow.bradley_terry_loss(*pair) for pair in pairs]
    assert_close(bradley_terry_loss(a, b), tensor(expected))
    assert_close(reinforce_loss(a, b), tensor([-x * y for x, y in pairs]))
    z, tokens = torch.randn(2, 3, 9).to(half), torch.randint(9, (2, 3))
    mask = slow.prefix_mask([2, 3], 3)
    expected = slow.sft_loss(z.float().tolist(), tokens.tolist(), mask)
    assert_close(sft_loss(z, tokens, tensor(mask)), tensor(expected))


R = torch.ones(2)
Z, IDS, M = torch.zeros(1, 2, 3), tensor([[0, 1]]), torch.ones(1, 2).bool()
BAND, DUAL = "clipped_surrogate: clip_range", "clipped_surrogate: dual_clip"
WANT = "value_loss: old_values and clip_range"


@pytest.mark.parametrize(
    ("call", "argument", "came"),
    [
        (lambda: probability_ratio(R, R[:1]), "probability_ratio: old_log_probs", "float32 [1]"),
        (
            lambda: clipped_surrogate(R, R[None], 0.2),
            "clipped_surrogate: advantages",
            "float32 [1, 2]",
        ),
        (lambda: clipped_surrogate(R, R, -0.1), BAND, "-0.1"),
        (lambda: clipped_surrogate(R, R, 1.1), BAND, "1.1"),
        (lambda: clipped_surrogate(R, R, (0.2, -0.1)), BAND, "-0.1"),
        (lambda: clipped_surrogate(R, R, (1.2, 0.2)), BAND, "1.2"),
        (lambda: clipped_surrogate(R, R, (0.2, True)), BAND, "True"),
        (lambda: clipped_surrogate(R, R, (0.2, NAN)), BAND, "nan"),
        (lambda: clipped_surrogate(R, R, 0.2, dual_clip=1.0), DUAL, "1.0"),
        (lambda: clipped_surrogate(R, R, 0.2, dual_clip=0.5), DUAL, "0.5"),
        (lambda: clip_is_active(R, R, 1.1), "clip_is_active: clip_range", "1.1"),
        (lambda: clip_is_active(R, R, 0.2, dual_clip=1), "clip_is_active: dual_clip", "1"),
        (lambda: clip_is_active(R, R.bool(), 0.2), "clip_is_active: advantages", "bool [2]"),
        (lambda: penalty_surrogate(R, R, R[:1], coef=1.0), "penalty_surrogate: kl", "float32 [1]"),
        (lambda: penalty_surrogate(R, R, R, coef=-1.0), "penalty_surrogate: coef", "-1.0"),
        (lambda: value_loss(R, R[:1]), "value_loss: returns", "float32 [1]"),
        (lambda: value_loss(R, R, old_values=R), WANT, "one of them"),
        (lambda: value_loss(R, R, clip_range=0.2), WANT, "one of them"),
        (lambda: value_loss(R, R, old_values=R, clip_range=0), "value_loss: clip_range", "0"),
        (lambda: value_loss(R, R, old_values=R, clip_range=-0.1), "value_loss: clip_range", "-0.1"),
        (
            lambda: value_loss(R, R, old_values=R[0], clip_range=1),
            "value_loss: old_values",
            "float32 []",
        ),
        (lambda: bradley_terry_loss(R, R[:1]), "bradley_terry_loss: rejected", "float32 [1]"),
        (lambda: bradley_terry_loss(R[None], R), "bradley_terry_loss: chosen", "float32 [1, 2]"),
        (lambda: bradley_terry_loss(R, R, margin=INF), "bradley_terry_loss: margin", "inf"),
        (lambda: sft_loss(Z, IDS, M[:, :1]), "sft_loss: mask", "bool [1, 1]"),
        (lambda: reinforce_loss(R, R[:1]), "reinforce_loss: advantages", "float32 [1]"),
    ],
)
def test_errors_of_losses_name_the_argument_and_what_came(call, argument, came):
    with refuses(argument, came):
        call()


def test_sft_loss_refuses_in_its_own_name():
    # The caller never called masked_mean or token_log_probs.
    with refuses("sft_loss: mask", "none in shape [1, 2]"):
        sft_loss(Z, IDS, ~M)
    with refuses("sft_loss: tokens", "6"):
        sft_loss(Z, IDS + 5, M)


@pytest.mark.usefixtures("without_hook")
@pytest.mark.parametrize("f", [clipped_surrogate, clip_is_active])
@pytest.mark.parametrize("came", [(0.1, 0.2, 0.3), (0.1,)])
def test_a_clip_range_of_another_length_is_refused_by_name(f, came):
    with pytest.raises(ValueError, match=rf"^{f.__name__}: clip_range must"):
        f(R, R, came)


def test_the_edges_of_each_losses_numbers_are_allowed():
    assert_close(clipped_surrogate(R, R, (1, 7)), -R)
    assert_close(clipped_surrogate(R, R, 0), -R)
    assert_close(clipped_surrogate(R, -R, 0.5, dual_clip=1.6), R)
    assert_close(penalty_surrogate(R, R, R, coef=0), -R)
    assert_close(bradley_terry_loss(R, R, margin=-1), torch.full((2,), 0.313262))
