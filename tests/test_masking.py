import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor
from torch.testing import assert_close

from minippo import masked_mean, masked_var, response_mean, whiten
from minippo.checks import definitions as slow
from tests.shapes import double, refuses

INF, NAN = float("inf"), float("nan")
NINE = torch.arange(1.2, 2.05, 0.1).reshape(3, 3)  # 1.2, 1.3 ... 2.0: peers.md 2.5
FULL = torch.ones(3, 3).bool()
# [[1, 2, 3], [4, 5]]: mean 3, population variance 2, Bessel's 2.5.
RAGGED, REAL = tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 0.0]]), tensor(slow.prefix_mask([3, 2], 3))
JUNK = [NAN, INF, -INF, 1e30]


# ---- masked_mean


def test_each_real_token_weighs_the_same():
    # peers: token mean of TRL, SFFD, trlX, verl, torchtune, OpenRLHF. The mean over responses of
    # each one's mean (RLHF book, GSPO) is 2.0, of each one's sum 3.5; a fixed divisor gives .875.
    x = tensor([[1.0, 1.0, 1.0, 1.0], [3.0, 0.0, 0.0, 0.0]])
    assert_close(masked_mean(x, tensor(slow.prefix_mask([4, 1], 4))), tensor(1.4))


def test_a_batch_is_not_the_mean_of_its_micro_batches():
    # modelscope/twinkle#292: lengths 1 and 3, advantages +1 and -1, ratio 1. In one batch
    # (-1 + 3) / 4; the mean of two micro-batches would be (-1 + 1) / 2 = 0.
    loss = tensor([[-1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    assert_close(masked_mean(loss, tensor(slow.prefix_mask([1, 3], 3))), tensor(0.5))


def test_a_long_row_outweighs_a_short_one():
    # verl#593: (2 * 5 + 10) / 6 = 3.333; the mean of the rows' means would be 6.
    x = tensor([[2.0, 2, 2, 2, 2, 6, 5, 3, 2, 4], [10.0] + 9 * [0.0]])
    got = masked_mean(x, tensor(slow.prefix_mask([5, 1], 10)))
    assert_close(got, tensor(20 / 6))


def test_a_mask_may_have_holes_and_any_shape():
    x, mask = tensor([1.0, NAN, 5.0]), tensor([True, False, True])
    assert_close(masked_mean(x, mask), tensor(3.0))
    assert_close(masked_mean(x.reshape(1, 1, 3), mask.reshape(1, 1, 3)), tensor(3.0))
    assert_close(masked_mean(tensor(7.0), tensor(True)), tensor(7.0))


def test_the_gradient_of_the_mean_is_one_over_n_on_real_tokens_alone():
    x = tensor([[1.0, 2.0, NAN], [4.0, INF, -INF]], requires_grad=True)
    (slope,) = torch.autograd.grad(masked_mean(x, tensor(slow.prefix_mask([2, 1], 3))), x)
    assert_close(slope, tensor([[1 / 3, 1 / 3, 0.0], [1 / 3, 0.0, 0.0]]))


# ---- masked_var


def test_variance_is_the_population_s():
    # peers: OAI, LHPD, SFFD, OpenRLHF divide by n; TRL, verl, torchtune by n - 1, which gives 2.5.
    assert_close(masked_var(RAGGED, REAL), tensor(2.0))


def test_one_token_has_no_variance():
    assert_close(masked_var(tensor([[5.0, NAN]]), tensor([[True, False]])), tensor(0.0))


def test_mean_and_variance_are_the_definition_in_value_and_gradient():
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    mask = slow.prefix_mask([4, 1, 2], 4)
    for fast, definition in ((masked_mean, slow.masked_mean), (masked_var, slow.masked_var)):
        got = fast(x, tensor(mask))
        assert_close(got, double(definition(x.tolist(), mask)))
        slope = slow.gradient(lambda y, f=definition: f(y, mask), x.tolist())
        (grad,) = torch.autograd.grad(got, x)
        assert_close(grad, double(slope), **slow.DIFFERENCES)


# ---- whiten


def test_whiten_by_hand():
    # peers: population variance (OAI, LHPD, SFFD, minimind); Bessel's first row is
    # [-1.460593, -1.095445, -.730297].
    got = whiten(NINE, FULL)
    assert_close(got[0], tensor([-1.549193, -1.161895, -0.774597]), rtol=0, atol=2e-6)  # 6 digits


def test_whiten_can_keep_the_mean():
    # peers: `shift_mean=False` of OAI, TRL; population variance.
    # Bessel's first row is [.139407, .504555, .869703].
    got = whiten(NINE, FULL, keep_mean=True)
    assert_close(got[0], tensor([0.050807, 0.438105, 0.825403]), rtol=0, atol=2e-6)  # 6 digits


def test_whiten_sees_real_tokens_alone_and_leaves_zero_elsewhere():
    # peers.md 2.5. TRL legacy, verl and OpenRLHF leave (0 - 3) / sigma on the padding; Bessel's
    # first row is [-1.264911, -.632456, 0].
    root = math.sqrt(2)
    for junk in [0.0, *JUNK]:
        x = torch.where(REAL, RAGGED, junk)
        assert_close(whiten(x, REAL), tensor([[-root, -root / 2, 0.0], [root / 2, root, 0.0]]))
        kept = tensor([[3 - root, 3 - root / 2, 3.0], [3 + root / 2, 3 + root, 0.0]])
        assert_close(whiten(x, REAL, keep_mean=True), kept)


def test_epsilon_of_whiten_is_added_to_the_variance():
    # Mean 1e-4, variance 1e-8: -1e-4 / sqrt(2e-8). alpaca_farm's std + 1e-8 gives -.9999,
    # OpenRLHF's clamp of the variance at 1e-8 gives -1.
    got = whiten(tensor([0.0, 2e-4]), tensor([True, True]))
    assert_close(got, tensor([-math.sqrt(0.5), math.sqrt(0.5)]))


@pytest.mark.parametrize("keep_mean", [False, True])
def test_one_real_token_is_left_as_it_is(keep_mean):
    # SB3 #265: removing its mean would make a rollout of one response learn nothing, for ever.
    x, mask = tensor([[5.0, 9.0]]), tensor([[True, False]])
    assert_close(whiten(x, mask, keep_mean=keep_mean), tensor([[5.0, 0.0]]))


@pytest.mark.parametrize("value", [1000.1, 123456.7, 0.1, 1e-30, 0.0, -7.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_numbers_give_zero_or_their_mean(value, dtype):
    # The mean of 1,000 equal floats is off by rounding: 1e-8 would blow that up to .77.
    x = torch.full((10, 100), value, dtype=dtype)
    mask = torch.ones(10, 100).bool()
    mask[3, 50:] = False
    assert not whiten(x, mask).any()
    kept = whiten(x, mask, keep_mean=True)
    assert_close(kept, torch.where(mask, x, 0.0))


def test_a_difference_by_rounding_alone_is_none():
    # .1 + .2 is not .3 in float64, and 3 * .1 is: the difference is one unit in the last place.
    x = tensor([[0.1 + 0.2, 0.3, 3 * 0.1, 0.3]], dtype=torch.float64)
    assert x.max() > x.min()
    assert not whiten(x, torch.ones(1, 4).bool()).any()
    assert whiten(x + tensor([0.0, 0.0, 0.0, 1e-6]), torch.ones(1, 4).bool()).any()


def test_the_mean_of_each_response_by_hand():
    x = tensor([[1.0, 2.0, 6.0], [4.0, math.nan, math.inf]], requires_grad=True)
    mask = tensor([[True, True, True], [True, False, False]])
    got = response_mean(x, mask)
    assert_close(got, tensor([3.0, 4.0]))
    (slope,) = torch.autograd.grad(got.sum(), x)
    assert_close(slope, tensor([[1 / 3] * 3, [1.0, 0.0, 0.0]]))


@pytest.mark.parametrize("keep_mean", [False, True])
def test_whiten_is_the_definition_in_value_and_gradient(keep_mean):
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    mask, weight = slow.prefix_mask([4, 1, 2], 4), torch.randn(3, 4, dtype=torch.float64)
    got = whiten(x, tensor(mask), keep_mean=keep_mean)
    assert_close(got, double(slow.whiten(x.tolist(), mask, keep_mean)))

    def weighted(y):
        rows = zip(slow.whiten(y, mask, keep_mean), weight.tolist(), strict=True)
        return sum(a * b for row in rows for a, b in zip(*row, strict=True))

    (slope,) = torch.autograd.grad((got * weight).sum(), x)
    assert_close(slope, double(slow.gradient(weighted, x.tolist())), **slow.DIFFERENCES)


# ---- what must not matter


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("f", [masked_mean, masked_var, whiten])
def test_junk_under_the_mask_changes_neither_means_nor_whitened_values(f, junk):
    assert torch.equal(f(torch.where(REAL, RAGGED, junk), REAL), f(RAGGED, REAL))


@pytest.mark.parametrize("junk", [NAN, INF])
@pytest.mark.parametrize("f", [masked_mean, masked_var, whiten])
def test_junk_under_the_mask_changes_no_gradient_of_masked_functions(f, junk):
    slopes = []
    for padding in (0.0, junk):
        x = torch.where(REAL, RAGGED, padding).requires_grad_()
        slopes.append(torch.autograd.grad((f(x, REAL) ** 2).sum(), x)[0])
    assert (slopes[1][~REAL] == 0).all()
    assert_close(slopes[1], slopes[0])


@given(st.permutations(range(5)), st.lists(st.integers(1, 4), min_size=5, max_size=5))
def test_the_order_of_rows_changes_no_masked_function(order, lengths):
    x, mask = torch.randn(5, 4, dtype=torch.float64), tensor(slow.prefix_mask(lengths, 4))
    assert_close(masked_mean(x[order], mask[order]), masked_mean(x, mask))
    assert_close(masked_var(x[order], mask[order]), masked_var(x, mask))
    assert_close(whiten(x[order], mask[order]), whiten(x, mask)[order])


@given(st.floats(0.5, 50), st.floats(-10, 10))
def test_whitening_forgets_shift_and_scale(scale, shift):
    x = torch.randn(4, 3, dtype=torch.float64)
    mask = tensor(slow.prefix_mask([3, 1, 2, 3], 3))
    # Equal but for epsilon, 1e-8 beside a variance of 0.1 or more.
    assert_close(whiten(scale * x + shift, mask), whiten(x, mask), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_averaged_in_float32(half):
    x = (torch.rand(10, 400) + 1).to(half)
    mask, rows = torch.ones(10, 400).bool(), x.float().tolist()
    # 4,000 numbers in float32 are right to 5 digits; half precision would keep 3 or fewer.
    for fast, definition in ((masked_mean, slow.masked_mean), (masked_var, slow.masked_var)):
        assert_close(fast(x, mask), tensor(definition(rows, mask.tolist())), rtol=1e-5, atol=0)
    expected = tensor(slow.whiten(rows, mask.tolist()))
    assert_close(whiten(x, mask), expected, rtol=1e-5, atol=1e-5)


X, M = torch.zeros(2, 2), torch.ones(2, 2).bool()


@pytest.mark.parametrize(
    ("call", "argument", "came"),
    [
        (lambda: masked_mean(X, M[0]), "masked_mean: mask", "bool [2]"),
        (lambda: masked_mean(X, M[:1]), "masked_mean: mask", "bool [1, 2]"),
        (lambda: masked_mean(X, M.float()), "masked_mean: mask", "float32 [2, 2]"),
        (lambda: masked_mean(X.long(), M), "masked_mean: x", "int64 [2, 2]"),
        (lambda: masked_mean(X, ~M), "masked_mean: mask", "none in shape [2, 2]"),
        (lambda: masked_mean(X[:0], M[:0]), "masked_mean: mask", "none in shape [0, 2]"),
        (lambda: masked_var(X, ~M), "masked_var: mask", "none in shape [2, 2]"),
        (lambda: masked_var(X, M.long()), "masked_var: mask", "int64 [2, 2]"),
        (lambda: whiten(X, ~M), "whiten: mask", "none in shape [2, 2]"),
        (lambda: whiten([1.0], M), "whiten: x", "list"),
    ],
)
def test_errors_of_masking_name_the_argument_and_what_came(call, argument, came):
    with refuses(argument, came):
        call()
