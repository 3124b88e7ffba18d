import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor
from torch.testing import assert_close

from minippo import (
    discounted_sum,
    explained_variance,
    gae,
    length_adaptive_lambda,
    monte_carlo_returns,
    sequence_advantages,
    shape_rewards,
    td_errors,
)
from minippo.checks import definitions as slow
from tests.shapes import double, refuses

INF, NAN = float("inf"), float("nan")
F64 = torch.float64
FOUR = torch.ones(1, 4).bool()
# peers.md 2.6: a score of 1 at the end of four tokens.
REWARDS, VALUES = tensor([[0.0, 0.0, 0.0, 1.0]]), tensor([[0.1, 0.2, 0.3, 0.4]])
LENGTHS = [4, 1, 3]  # of the drawn cases
RAGGED = slow.prefix_mask(LENGTHS, 4)
REAL = tensor(RAGGED)


def drawn(*shape):
    return torch.randn(shape, dtype=F64, requires_grad=True)


# ---- shape_rewards


def test_the_score_goes_to_the_last_real_token():
    # peers: TRL legacy, OpenRLHF, NeMo, minimind. TRL's trainer, SFFD and torchtune put it one slot
    # later, OAI and LHPD on the last column.
    kl = tensor([[0.01, 0.02, 0.03, NAN], [0.1, INF, -INF, 9.0], [0.1, 0.2, 0.3, 0.4]])
    mask = tensor(slow.prefix_mask([3, 1, 4], 4))
    got = shape_rewards(tensor([1.0, -2.0, 0.5]), kl, mask, kl_coef=0.05)
    expected = [
        [-0.0005, -0.001, 0.9985, 0.0],
        [-2.005, 0.0, 0.0, 0.0],
        [-0.005, -0.01, -0.015, 0.48],
    ]
    assert_close(got, tensor(expected))


def test_shaped_scores_are_added_token_by_token():
    scores, kl = tensor([[0.5, 0.0, 1.0, NAN]]), tensor([[0.1, 0.2, 0.3, NAN]])
    got = shape_rewards(scores, kl, tensor(slow.prefix_mask([3], 4)), kl_coef=1.0)
    assert_close(got, tensor([[0.4, -0.2, 0.7, 0.0]]))


def test_without_a_kl_coefficient_only_the_score_is_left():
    got = shape_rewards(tensor([3.0]), torch.randn(1, 4), FOUR, kl_coef=0.0)
    assert_close(got, tensor([[0.0, 0.0, 0.0, 3.0]]))


def test_the_rewards_of_a_response_sum_to_score_minus_penalty():
    # The bandit's view: sum r_t = score - kl_coef * sum kl_t.
    kl, scores = torch.randn(3, 4, dtype=F64), torch.randn(3, dtype=F64)
    got = shape_rewards(scores, kl, REAL, kl_coef=0.3).sum(1).tolist()
    for i, length in enumerate(LENGTHS):
        assert math.isclose(got[i], scores[i].item() - 0.3 * sum(kl[i, :length].tolist()))


def test_shape_rewards_is_the_definition():
    kl, scores = torch.randn(3, 4, dtype=F64), torch.randn(3, dtype=F64)
    expected = slow.shape_rewards(scores.tolist(), kl.tolist(), RAGGED, 0.3)
    assert_close(shape_rewards(scores, kl, REAL, kl_coef=0.3), double(expected))


# ---- discounted_sum


def test_discounted_sum_by_hand():
    # 1 + .5 (2 + .5 * 4) = 3.
    assert_close(discounted_sum(tensor([[1.0, 2.0, 4.0]]), 0.5), tensor([[3.0, 4.0, 4.0]]))


def test_discounted_sum_at_its_limits():
    x = tensor([[1.0, 2.0, 4.0], [-1.0, 0.5, 0.0]])
    assert_close(discounted_sum(x, 0.0), x)
    assert_close(discounted_sum(x, 1.0), tensor([[7.0, 6.0, 4.0], [-0.5, 0.5, 0.0]]))
    empty = torch.zeros(2, 0)
    assert discounted_sum(empty, 0.5).shape == (2, 0)
    assert discounted_sum(empty, 0.5) is not empty
    assert discounted_sum(torch.zeros(0, 3), 0.5).shape == (0, 3)


def test_discounted_sum_is_the_definition_in_value_and_gradient():
    x = drawn(2, 5)
    got = discounted_sum(x, 0.9)
    assert_close(got, double(slow.discounted_sum(x.tolist(), 0.9)))
    # x_k is part of y_0 ... y_k.
    slope = [sum(0.9**j for j in range(k + 1)) for k in range(5)]
    assert_close(torch.autograd.grad(got.sum(), x)[0], double([slope, slope]))


# ---- td_errors


def test_td_errors_by_hand():
    # 0 + .5 * .5 - .25 = 0;  1 + 0 - .5 = .5, since after the last real token nothing comes.
    rewards, values = tensor([[0.0, 1.0, 5.0]]), tensor([[0.25, 0.5, 7.0]])
    got = td_errors(rewards, values, tensor(slow.prefix_mask([2], 3)), gamma=0.5)
    assert_close(got, tensor([[0.0, 0.5, 0.0]]))


def test_a_truncated_response_continues_with_its_bootstrap():
    # 1 + .5 * 4 - .5 = 2.5 at the last real token of row 0; row 1 ended by itself.
    rewards, values = tensor([[0.0, 1.0, 5.0]] * 2), tensor([[0.25, 0.5, 7.0]] * 2)
    mask = tensor(slow.prefix_mask([2, 3], 3))
    got = td_errors(rewards, values, mask, gamma=0.5, bootstrap=tensor([4.0, 0.0]))
    assert_close(got, tensor([[0.0, 2.5, 0.0], [0.0, 4.0, -2.0]]))


def test_td_errors_are_the_definition():
    rewards, values, bootstrap = drawn(3, 4), drawn(3, 4), drawn(3)
    got = td_errors(rewards, values, REAL, gamma=0.9, bootstrap=bootstrap)
    lists = rewards.tolist(), values.tolist(), RAGGED, 0.9
    assert_close(got, double(slow.td_errors(*lists, bootstrap.tolist())))
    got = td_errors(rewards, values, REAL, gamma=0.9)
    assert_close(got, double(slow.td_errors(*lists)))


# ---- gae


@pytest.mark.parametrize(
    ("gamma", "lam", "bootstrap", "expected"),
    [
        # peers.md 2.6; the returns are these plus the values, e.g. [.899675, .9365, .97, 1].
        (1.0, 0.95, None, [0.799675, 0.7365, 0.67, 0.6]),
        (1.0, 1.0, None, [0.9, 0.8, 0.7, 0.6]),
        (1.0, 0.0, None, [0.1, 0.1, 0.1, 0.6]),
        (0.99, 0.95, None, [0.77329, 0.718012, 0.6603, 0.6]),
        (1.0, 0.95, 0.5, [1.228362, 1.18775, 1.145, 1.1]),
    ],
)
def test_gae_by_hand(gamma, lam, bootstrap, expected):
    last = None if bootstrap is None else tensor([bootstrap])
    got = gae(REWARDS, VALUES, FOUR, gamma=gamma, lam=lam, bootstrap=last)
    assert_close(got, tensor([expected]), rtol=0, atol=1e-6)  # 6 digits are known
    returns = [a + v for a, v in zip(expected, [0.1, 0.2, 0.3, 0.4], strict=True)]
    assert_close(got + VALUES, tensor([returns]), rtol=0, atol=1e-6)


def test_gae_defaults_are_no_discount_and_lam_095():
    got = gae(REWARDS, VALUES, FOUR)
    assert_close(got, tensor([[0.799675, 0.7365, 0.67, 0.6]]))


def test_the_score_on_eos_reaches_the_advantages_whole():
    # peers.md 2.6: TRL legacy, OpenRLHF, NeMo, verl give .6985 at EOS. With the score on the slot
    # after EOS (SFFD, TRL's trainer, torchtune) it is .6835, with nothing masked .77625.
    kl = tensor([[0.01, 0.02, 0.03, 0.0, 0.0]])
    values = tensor([[0.1, 0.2, 0.3, 0.7, 0.9]])
    mask = tensor(slow.prefix_mask([3], 5))
    rewards = shape_rewards(tensor([1.0]), kl, mask, kl_coef=0.05)
    got = gae(rewards, values, mask, gamma=1.0, lam=0.95)
    expected = tensor([[0.823946, 0.762575, 0.6985, 0.0, 0.0]])
    assert_close(got, expected, rtol=0, atol=1e-6)  # 6 digits are known


def test_a_value_on_the_padding_is_not_a_future():
    # ROLL#447.
    rewards, values = tensor([[0.0, 1.0, 0.0]]), tensor([[0.0, 0.0, 100.0]])
    got = gae(rewards, values, tensor(slow.prefix_mask([2], 3)), lam=0.95)
    assert_close(got, tensor([[0.95, 1.0, 0.0]]))


def test_lam_0_is_the_td_error_and_lam_1_the_return_minus_the_value():
    rewards, values, bootstrap = drawn(3, 4), drawn(3, 4), drawn(3)
    lists = rewards.tolist(), values.tolist(), RAGGED, 0.9
    got = gae(rewards, values, REAL, gamma=0.9, lam=0.0, bootstrap=bootstrap)
    assert_close(got, double(slow.td_errors(*lists, bootstrap.tolist())))
    got = gae(rewards, values, REAL, gamma=0.9, lam=1.0)
    returns = double(slow.monte_carlo_returns(rewards.tolist(), RAGGED, 0.9))
    assert_close(got, torch.where(REAL, returns - values, 0.0))


def test_a_kl_without_a_price_costs_nothing_even_if_it_is_infinite():
    got = shape_rewards(tensor([2.0]), tensor([[INF, 0.5]]), tensor([[True, True]]), kl_coef=0)
    assert got.tolist() == [[0.0, 2.0]]


def test_a_lambda_per_length_by_hand():
    # 1 - 1 / (2 * length), and 0 where that is negative: at alpha .25 for fewer than 4 tokens.
    mask = tensor(slow.prefix_mask([1, 2, 5], 5))
    assert_close(length_adaptive_lambda(mask, alpha=2.0), tensor([0.5, 0.75, 0.9]))
    assert_close(length_adaptive_lambda(mask, alpha=0.25), tensor([0.0, 0.0, 0.2]))


def test_a_lambda_per_response_is_that_lambda_in_its_row():
    rewards, values, lambdas = drawn(3, 4).float(), drawn(3, 4).float(), [0.3, 0.0, 1.0]
    got = gae(rewards, values, REAL, gamma=0.9, lam=tensor(lambdas))
    for row, lam in enumerate(lambdas):
        alone = gae(rewards[[row]], values[[row]], REAL[[row]], gamma=0.9, lam=lam)
        assert_close(got[[row]], alone)


@pytest.mark.parametrize("bad", [1.5, -0.25, NAN])
def test_a_lambda_per_response_lies_between_0_and_1(bad):
    with refuses("gae: lam", str(bad)):
        gae(X, X, M, lam=tensor([bad]))


@pytest.mark.parametrize("with_bootstrap", [False, True])
def test_gae_is_the_definition_in_value_and_gradient(with_bootstrap):
    rewards, values, bootstrap = drawn(3, 4), drawn(3, 4), drawn(3)
    end = bootstrap if with_bootstrap else None
    got = gae(rewards, values, REAL, gamma=0.9, lam=0.8, bootstrap=end)
    last = bootstrap.tolist() if with_bootstrap else None

    def definition(r, v):
        return slow.gae(r, v, RAGGED, 0.9, 0.8, last)

    assert_close(got, double(definition(rewards.tolist(), values.tolist())))
    slopes = torch.autograd.grad(got.sum(), (rewards, values))
    by_reward = slow.gradient(
        lambda r: sum(map(sum, definition(r, values.tolist()))), rewards.tolist()
    )
    by_value = slow.gradient(
        lambda v: sum(map(sum, definition(rewards.tolist(), v))), values.tolist()
    )
    assert_close(slopes[0], double(by_reward), **slow.DIFFERENCES)
    assert_close(slopes[1], double(by_value), **slow.DIFFERENCES)
    assert (slopes[0][~REAL] == 0).all()
    assert (slopes[1][~REAL] == 0).all()


def test_right_values_leave_no_expected_advantage():
    # Two tokens from a coin with p = (.25, .75), reward 1 for heads each time, V = what is
    # expected: the mean over the four responses of each advantage is 0, whatever lam is.
    p, values = [0.25, 0.75], [[1.5, 0.75]] * 4
    paths = [(a, b) for a in (0, 1) for b in (0, 1)]
    rewards = tensor([[float(a), float(b)] for a, b in paths])
    weight = tensor([[p[a] * p[b]] for a, b in paths])
    for lam in (0.0, 0.5, 1.0):
        got = gae(rewards, tensor(values), torch.ones(4, 2).bool(), lam=lam)
        assert_close((weight * got).sum(0), torch.zeros(2))


# ---- monte_carlo_returns, sequence_advantages


def test_monte_carlo_returns_by_hand():
    rewards = tensor([[1.0, 2.0, 4.0, NAN], [3.0, INF, 1.0, 1.0]])
    got = monte_carlo_returns(rewards, tensor(slow.prefix_mask([3, 1], 4)), gamma=0.5)
    assert_close(got, tensor([[3.0, 4.0, 4.0, 0.0], [3.0, 0.0, 0.0, 0.0]]))


def test_monte_carlo_returns_are_the_definition():
    rewards = drawn(3, 4)
    for gamma in (0.0, 0.7, 1.0):
        got = monte_carlo_returns(rewards, REAL, gamma=gamma)
        expected = slow.monte_carlo_returns(rewards.tolist(), RAGGED, gamma)
        assert_close(got, double(expected))
    expected = slow.monte_carlo_returns(rewards.tolist(), RAGGED, 1.0)
    assert_close(monte_carlo_returns(rewards, REAL), double(expected))


def test_a_sequence_advantage_is_score_minus_value():
    got = sequence_advantages(tensor([1.0, -2.0]), tensor([0.25, 0.5]))
    assert_close(got, tensor([0.75, -2.5]))


# ---- explained_variance


def test_explained_variance_by_hand():
    # Returns 1, 2, 3 vary by 2/3. Errors -.5, 0, .5 vary by 1/6: 1 - 1/4.
    returns, mask = tensor([1.0, 2.0, 3.0, NAN]), tensor([True, True, True, False])
    for values, expected in [
        ([1.5, 2.0, 2.5], 0.75),
        ([1.0, 2.0, 3.0], 1.0),
        ([7.0, 7.0, 7.0], 0.0),  # a constant
        ([2.0, 3.0, 4.0], 1.0),  # off by a constant: variance does not see a bias
        ([3.0, 2.0, 1.0], -3.0),  # errors -2, 0, 2 vary by 8/3
    ]:
        got = explained_variance(tensor([*values, INF]), returns, mask)
        assert_close(got, tensor(expected))


def test_explained_variance_is_the_definition():
    values, returns = drawn(3, 4), drawn(3, 4)
    got = explained_variance(values, returns, REAL)
    expected = slow.explained_variance(values.tolist(), returns.tolist(), RAGGED)
    assert_close(got, double(expected))


@pytest.mark.parametrize("n", [1, 3, 7, 10, 24, 100])
@pytest.mark.parametrize("constant", [0.0, 1.0, 0.1, -3.3])
def test_constant_returns_leave_nothing_to_explain(n, constant):
    mask = torch.ones(n).bool()
    got = explained_variance(torch.arange(float(n)), torch.full((n,), constant), mask)
    assert math.isnan(got.item())


# ---- what must not matter


def all_of(rewards, values, mask, bootstrap):
    scores = torch.where(mask, values, 0.0)[:, 0]
    return [
        shape_rewards(scores, rewards, mask, kl_coef=0.1),
        shape_rewards(values, rewards, mask, kl_coef=0.1),
        td_errors(rewards, values, mask, gamma=0.9, bootstrap=bootstrap),
        gae(rewards, values, mask, gamma=0.9, lam=0.8, bootstrap=bootstrap),
        monte_carlo_returns(rewards, mask, gamma=0.9),
    ]


@pytest.mark.parametrize("junk", [NAN, INF, -INF, 1e30])
def test_junk_under_the_mask_changes_no_credit(junk):
    rewards, values, bootstrap = torch.randn(3, 4), torch.randn(3, 4), torch.randn(3)
    clean = all_of(rewards, values, REAL, bootstrap)
    dirty = all_of(
        torch.where(REAL, rewards, junk), torch.where(REAL, values, junk), REAL, bootstrap
    )
    for a, b in zip(clean, dirty, strict=True):
        assert torch.equal(a, b)
        assert (a[~REAL] == 0).all()


def test_more_padding_changes_no_credit():
    rewards, values, bootstrap = torch.randn(3, 4), torch.randn(3, 4), torch.randn(3)
    short = all_of(rewards, values, REAL, bootstrap)
    wide = torch.cat([REAL, torch.zeros(3, 2).bool()], 1)
    pad = torch.full((3, 2), 9.0)
    long = all_of(torch.cat([rewards, pad], 1), torch.cat([values, pad], 1), wide, bootstrap)
    for a, b in zip(short, long, strict=True):
        assert_close(b, torch.cat([a, torch.zeros(3, 2)], 1))


@given(st.permutations(range(4)), st.lists(st.integers(1, 5), min_size=4, max_size=4))
def test_credit_of_a_row_depends_on_that_row_alone(order, lengths):
    rewards, values, bootstrap = torch.randn(4, 5), torch.randn(4, 5), torch.randn(4)
    mask = tensor(slow.prefix_mask(lengths, 5))
    whole = all_of(rewards, values, mask, bootstrap)
    shuffled = all_of(rewards[order], values[order], mask[order], bootstrap[order])
    single = all_of(rewards[:1], values[:1], mask[:1], bootstrap[:1])
    for a, b, c in zip(whole, shuffled, single, strict=True):
        assert torch.equal(a[order], b)
        assert torch.equal(a[:1], c)


X, M, S = torch.zeros(1, 3), torch.ones(1, 3).bool(), torch.zeros(1)
HOLE, LATE = tensor([[True, False, True]]), tensor([[False, True, True]])
EMPTY, NO_MASK = torch.zeros(1, 0), torch.zeros(1, 0).bool()


@pytest.mark.parametrize(
    ("call", "argument", "came"),
    [
        (lambda: shape_rewards(S, X, HOLE, kl_coef=0.1), "shape_rewards: mask", "101 in row 0"),
        (lambda: shape_rewards(S, X, LATE, kl_coef=0.1), "shape_rewards: mask", "none in row 0"),
        (lambda: shape_rewards(S, X, M, kl_coef=-0.1), "shape_rewards: kl_coef", "-0.1"),
        (lambda: shape_rewards(S[:0], X, M, kl_coef=0.1), "shape_rewards: kl", "float32 [1, 3]"),
        (
            lambda: shape_rewards(torch.zeros(1, 3, 1), X, M, kl_coef=0.1),
            "shape_rewards: scores",
            "float32 [1, 3, 1]",
        ),
        (lambda: discounted_sum(X, 1.01), "discounted_sum: discount", "1.01"),
        (lambda: discounted_sum(X, -0.01), "discounted_sum: discount", "-0.01"),
        (lambda: discounted_sum(X[0], 0.5), "discounted_sum: x", "float32 [3]"),
        (lambda: td_errors(X, X[:, :2], M), "td_errors: values", "float32 [1, 2]"),
        (lambda: td_errors(X, X, M, gamma=1.5), "td_errors: gamma", "1.5"),
        (lambda: td_errors(X, X, M, bootstrap=X), "td_errors: bootstrap", "float32 [1, 3]"),
        (lambda: td_errors(X, X, LATE), "td_errors: mask", "none in row 0"),
        (lambda: gae(X, X, M, lam=1.5), "gae: lam", "1.5"),
        (lambda: gae(X, X, M, gamma=-0.5), "gae: gamma", "-0.5"),
        (lambda: gae(X, X, HOLE), "gae: mask", "101 in row 0"),
        (lambda: gae(X, X, ~M), "gae: mask", "none in row 0"),
        (lambda: gae(X, X, M, bootstrap=torch.zeros(2)), "gae: bootstrap", "float32 [2]"),
        (lambda: monte_carlo_returns(X, HOLE), "monte_carlo_returns: mask", "101 in row 0"),
        (lambda: monte_carlo_returns(X, M, gamma=2), "monte_carlo_returns: gamma", "2"),
        (lambda: sequence_advantages(S, X[0]), "sequence_advantages: values", "float32 [3]"),
        (lambda: explained_variance(X, X, ~M), "explained_variance: mask", "none in shape [1, 3]"),
        (lambda: explained_variance(X, S, M), "explained_variance: returns", "float32 [1]"),
    ],
)
def test_errors_of_advantages_name_the_argument_and_what_came(call, argument, came):
    with refuses(argument, came):
        call()


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: shape_rewards(S, EMPTY, NO_MASK, kl_coef=0.1), "shape_rewards: mask"),
        (lambda: td_errors(EMPTY, EMPTY, NO_MASK, bootstrap=S), "td_errors: mask"),
    ],
)
def test_rows_without_a_column_have_no_real_token(call, argument):
    with pytest.raises(ValueError, match=f"^{argument} must hold at least one leading real token"):
        call()


def test_a_mask_error_names_the_row():
    mask = tensor([[True, True, False], [True, False, True], [False, False, False]])
    with refuses("gae: mask", "none in row 2"):
        gae(torch.zeros(3, 3), torch.zeros(3, 3), mask)
    with refuses("gae: mask", "101 in row 1"):
        gae(torch.zeros(2, 3), torch.zeros(2, 3), mask[:2])
