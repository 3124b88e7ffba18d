import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor
from torch.testing import assert_close

from minippo import best_of_n_kl, dpo_loss, group_advantages, leave_one_out_advantages
from minippo.checks import definitions as slow
from tests.shapes import double, refuses

F64 = torch.float64


# ---- dpo_loss


@pytest.mark.parametrize(
    ("numbers", "beta", "margin"),
    [
        # beta * ((pc - rc) - (pr - rr)) by hand; the loss is Bradley-Terry's of it (peers.md 2.12).
        ((-1.0, -3.0, -2.0, -2.0), 0.5, 1.0),
        ((-2.0, -2.0, -1.0, -3.0), 1.0, -2.0),
        ((-5.0, -7.0, -5.0, -7.0), 0.1, 0.0),
        ((-1.0, -1001.0, -1.0, -1.0), 1.0, 1000.0),
        ((-1001.0, -1.0, -1.0, -1.0), 1.0, -1000.0),
    ],
)
def test_dpo_by_hand(numbers, beta, margin):
    losses = {1.0: 0.313262, -2.0: 2.126928, 0.0: 0.693147, 1000.0: 0.0, -1000.0: 1000.0}
    x = [tensor([n], requires_grad=True) for n in numbers]
    got = dpo_loss(*x, beta=beta)
    assert_close(got, tensor([losses[margin]]))
    surprise = 1 / (1 + math.exp(margin)) if margin < 500 else 0.0
    slopes = torch.autograd.grad(got, x, allow_unused=True)
    assert_close(torch.cat(slopes[:2]), tensor([-beta * surprise, beta * surprise]))
    assert slopes[2:] == (None, None)  # the reference is data


def test_dpo_is_the_definition_in_value_and_gradient():
    x = torch.randn(4, 10, dtype=F64, requires_grad=True)
    got = dpo_loss(*x, beta=0.3)
    columns = x.T.tolist()
    assert_close(got, double([slow.dpo_loss(*c, 0.3) for c in columns]))
    slopes = [slow.gradient(lambda c: slow.dpo_loss(*c, 0.3), c) for c in columns]
    (slope,) = torch.autograd.grad(got.sum(), x)
    policy = double(slopes).T * tensor([[1.0], [1.0], [0.0], [0.0]])  # the reference is data
    assert_close(slope, policy, **slow.DIFFERENCES)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_dpo_upcasts_before_it_subtracts(half):
    x = (-100 * torch.rand(4, 20)).to(half)
    got = dpo_loss(*x, beta=0.1)
    expected = tensor([slow.dpo_loss(*c, 0.1) for c in x.T.tolist()])
    # Sums of numbers up to 100 in float32 are right to 1e-5.
    assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("score", [1000.1, 123.4, -0.1, 0.0])
def test_equal_scores_of_a_group_give_no_advantage(score):
    # The mean of three equal floats is off by a rounding, which 1e-8 would blow up to .6.
    scores = tensor([[score] * 3, [0.0, 1.0, 2.0]])
    got = group_advantages(scores)
    assert_close(got, tensor([[0.0] * 3, [-math.sqrt(1.5), 0.0, math.sqrt(1.5)]]))


# ---- group_advantages


def test_group_advantages_by_hand():
    # Means 3 and 2. Population variances 14/3 and 0. TRL and verl divide by k - 1 = 2, which gives
    # the first group a variance of 7.
    scores = tensor([[0.0, 4.0, 5.0], [2.0, 2.0, 2.0]])
    root = math.sqrt(14 / 3)
    expected = tensor([[-3 / root, 1 / root, 2 / root], [0.0, 0.0, 0.0]])
    assert_close(group_advantages(scores), expected)
    centred = tensor([[-3.0, 1.0, 2.0], [0.0, 0.0, 0.0]])
    assert_close(group_advantages(scores, normalize=False), centred)


def test_group_epsilon_is_added_to_the_variance():
    # Mean 1e-4, variance 1e-8: +-1e-4 / sqrt(2e-8).
    half = math.sqrt(0.5)
    assert_close(group_advantages(tensor([[0.0, 2e-4]])), tensor([[-half, half]]))


@pytest.mark.parametrize("normalize", [True, False])
def test_group_advantages_are_the_definition(normalize):
    scores = torch.randn(4, 5, dtype=F64)
    expected = slow.group_advantages(scores.tolist(), normalize)
    assert_close(group_advantages(scores, normalize=normalize), double(expected))


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("score", [0.0, 1.0, -2.5])
def test_a_tied_group_has_nothing_to_learn_from(kind, score):
    # 1e-8 is 0 in float16, and 0 / sqrt(0) is not.
    got = group_advantages(torch.full((2, 4), score, dtype=kind))
    assert_close(got.float(), torch.zeros(2, 4))


# ---- leave_one_out_advantages


def test_leave_one_out_by_hand():
    # 0 - (3 + 6) / 2, 3 - (0 + 6) / 2, 6 - (0 + 3) / 2; and a pair.
    got = leave_one_out_advantages(tensor([[0.0, 3.0, 6.0]]))
    assert_close(got, tensor([[-4.5, 0.0, 4.5]]))
    assert_close(leave_one_out_advantages(tensor([[1.0, 3.0]])), tensor([[-2.0, 2.0]]))


def test_leave_one_out_is_the_definition():
    scores = torch.randn(4, 5, dtype=F64)
    expected = slow.leave_one_out_advantages(scores.tolist())
    assert_close(leave_one_out_advantages(scores), double(expected))


@pytest.mark.parametrize(
    ("advantages", "share"),
    [
        # A baseline that contains the score itself takes 1 / k of the gradient away.
        (leave_one_out_advantages, 1.0),
        (lambda scores: group_advantages(scores, normalize=False), 0.5),
    ],
)
def test_the_expected_gradient_over_all_pairs(advantages, share):
    # k = 2 draws from three actions, all nine pairs weighed: dE[R] / dz_i = p_i (R_i - E[R]).
    p, reward = [0.2, 0.3, 0.5], [1.0, -2.0, 4.0]
    mean = sum(a * b for a, b in zip(p, reward, strict=True))
    total = [0.0, 0.0, 0.0]
    for pair in itertools.product(range(3), repeat=2):
        weight = p[pair[0]] * p[pair[1]]
        got = advantages(tensor([[reward[a] for a in pair]]))[0].tolist()
        for action, advantage in zip(pair, got, strict=True):
            for i in range(3):  # d log p(action) / dz_i = [i = action] - p_i; mean over the two
                total[i] += weight * advantage * ((i == action) - p[i]) / 2
    expected = [share * a * (b - mean) for a, b in zip(p, reward, strict=True)]
    assert_close(tensor(total), tensor(expected))


# ---- what must not matter


@given(st.permutations(range(4)), st.permutations(range(3)))
def test_the_order_of_groups_and_members_does_not_matter(rows, members):
    scores = torch.randn(4, 3, dtype=F64)
    for f in (group_advantages, leave_one_out_advantages):
        assert_close(f(scores[rows][:, members]), f(scores)[rows][:, members])
        assert_close(f(scores[:1]), f(scores)[:1])


@given(st.floats(-100, 100))
def test_a_constant_added_to_a_group_changes_nothing(constant):
    scores = torch.randn(2, 4, dtype=F64)
    for f in (group_advantages, leave_one_out_advantages):
        assert_close(f(scores + constant), f(scores))
        assert_close(f(scores).sum(1), torch.zeros(2, dtype=F64), rtol=0, atol=1e-9)


# ---- best_of_n_kl


@pytest.mark.parametrize(
    ("n", "expected"), [(1, 0.0), (2, math.log(2) - 0.5), (16, 1.8350887), (1000, 5.9087553)]
)
def test_best_of_n_kl_by_hand(n, expected):
    # log 16 - 15/16 = 2.7725887 - .9375; log 1000 - .999 = 6.9077553 - .999.
    assert math.isclose(best_of_n_kl(n), expected, abs_tol=1e-7)


@pytest.mark.parametrize("n", [1, 2, 5, 30])
def test_best_of_n_is_the_kl_of_the_maximum(n):
    # The rank u of the best is n u^(n-1) dense on [0, 1]: integral of n u^(n-1) log(n u^(n-1)).
    cells = 20_000
    middle = [(i + 0.5) / cells for i in range(cells)]
    density = [n * u ** (n - 1) for u in middle]
    kl = sum(d * math.log(d) for d in density if d > 0) / cells
    assert math.isclose(best_of_n_kl(n), kl, abs_tol=1e-6)  # the midpoint rule's error


def test_with_ties_the_best_of_n_kl_is_an_upper_bound():
    # Best of two fair coins: heads 3/4. KL((1/4, 3/4) || (1/2, 1/2)) = .130812 < .193147.
    assert 0.25 * math.log(0.5) + 0.75 * math.log(1.5) < best_of_n_kl(2)


X, S = torch.zeros(2), torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("call", "argument", "came"),
    [
        (lambda: dpo_loss(X, X, X, X[:1], beta=0.1), "dpo_loss: ref_rejected", "float32 [1]"),
        (lambda: dpo_loss(S, X, X, X, beta=0.1), "dpo_loss: policy_chosen", "float32 [2, 3]"),
        (lambda: dpo_loss(X, X, X, X, beta=0), "dpo_loss: beta", "0"),
        (lambda: dpo_loss(X, X, X, X, beta=-0.1), "dpo_loss: beta", "-0.1"),
        (lambda: group_advantages(X), "group_advantages: scores", "float32 [2]"),
        (lambda: group_advantages(S[:, :1]), "group_advantages: scores", "shape [2, 1]"),
        (lambda: group_advantages(S.long()), "group_advantages: scores", "int64 [2, 3]"),
        (
            lambda: leave_one_out_advantages(S[:, :1]),
            "leave_one_out_advantages: scores",
            "shape [2, 1]",
        ),
        (lambda: best_of_n_kl(0), "best_of_n_kl: n", "0"),
        (lambda: best_of_n_kl(-3), "best_of_n_kl: n", "-3"),
        (lambda: best_of_n_kl(True), "best_of_n_kl: n", "True"),
        (lambda: best_of_n_kl.__wrapped__(2.0), "best_of_n_kl: n", "2.0"),
    ],
)
def test_errors_of_alternatives_name_the_argument_and_what_came(call, argument, came):
    with refuses(argument, came):
        call()
