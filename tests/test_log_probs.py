import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor
from torch.testing import assert_close

from minippo import entropy, sequence_log_prob, token_log_probs
from minippo.checks import definitions as slow
from tests.shapes import double, refuses

INF = float("inf")
# The running example of peers.md 2.8 and 2.9: three tokens with these probabilities.
THREE = tensor([0.2, 0.3, 0.5]).log()


# ---- token_log_probs


def test_token_log_probs_by_hand():
    logits = THREE.expand(1, 3, 3)
    got = token_log_probs(logits, tensor([[2, 0, 1]]))
    assert_close(got, tensor([[math.log(0.5), math.log(0.2), math.log(0.3)]]))


def test_temperature_divides_the_logits():
    # z / 0.5 squares the odds: 0.04 : 0.09 : 0.25 of 0.38.
    got = token_log_probs(THREE.expand(1, 1, 3), tensor([[2]]), temperature=0.5)
    assert_close(got, tensor([[math.log(0.25 / 0.38)]]))


def test_logits_and_tokens_are_aligned_already():
    # Position t predicts token t: certain of 0, then of 1.
    logits = tensor([[[1000.0, 0.0], [0.0, 1000.0]]])
    assert_close(token_log_probs(logits, tensor([[0, 1]])), tensor([[0.0, 0.0]]))
    assert_close(token_log_probs(logits, tensor([[1, 0]])), tensor([[-1000.0, -1000.0]]))


def test_a_vocabulary_of_one_leaves_no_choice():
    assert_close(token_log_probs(torch.randn(2, 3, 1), torch.zeros(2, 3).long()), torch.zeros(2, 3))


def test_token_log_probs_is_the_definition_in_value_and_gradient():
    z = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    tokens = torch.randint(5, (2, 3))
    got = token_log_probs(z, tokens, temperature=0.7)
    assert_close(got, double(slow.token_log_probs(z.tolist(), tokens.tolist(), 0.7)))

    def total(x):
        return sum(map(sum, slow.token_log_probs(x, tokens.tolist(), 0.7)))

    (slope,) = torch.autograd.grad(got.sum(), z)
    assert_close(slope, double(slow.gradient(total, z.tolist())), **slow.DIFFERENCES)


def test_the_gradient_of_log_p_is_one_hot_minus_p():
    z = THREE.clone().requires_grad_()
    (slope,) = torch.autograd.grad(token_log_probs(z.expand(1, 1, 3), tensor([[1]])), z)
    assert_close(slope, tensor([-0.2, 0.7, -0.5]))


def test_probabilities_over_the_vocabulary_sum_to_one():
    z = torch.randn(1, 1, 7).expand(1, 7, 7)
    assert_close(token_log_probs(z, torch.arange(7)[None]).exp().sum(), tensor(1.0))


def test_a_ruled_out_token_costs_the_others_nothing():
    z = tensor([[[math.log(0.4), -INF, math.log(0.6)]]], requires_grad=True)
    log_prob = token_log_probs(z, tensor([[0]]))
    assert_close(log_prob, tensor([[math.log(0.4)]]))
    (slope,) = torch.autograd.grad(log_prob.sum(), z)
    assert_close(slope, tensor([[[0.6, 0.0, -0.6]]]))
    assert token_log_probs(z, tensor([[1]])).item() == -INF


def test_the_order_and_the_company_of_rows_do_not_matter():
    z, tokens = torch.randn(4, 3, 5), torch.randint(5, (4, 3))
    whole, order = token_log_probs(z, tokens), tensor([2, 0, 3, 1])
    assert_close(token_log_probs(z[order], tokens[order]), whole[order])
    for row in range(4):
        one = slice(row, row + 1)
        assert_close(token_log_probs(z[one], tokens[one]), whole[one])


@pytest.mark.parametrize("kind", [torch.int8, torch.int16, torch.int32, torch.int64])
def test_token_ids_may_have_any_integer_dtype(kind):
    got = token_log_probs(THREE.expand(1, 1, 3), tensor([[2]], dtype=kind))
    assert_close(got, tensor([[math.log(0.5)]]))


@given(st.floats(-50, 50), st.floats(0.1, 10))
def test_a_constant_added_to_the_logits_changes_nothing(constant, temperature):
    z, tokens = torch.randn(1, 2, 4, dtype=torch.float64), torch.randint(4, (1, 2))
    got = token_log_probs(z + constant, tokens, temperature=temperature)
    assert_close(got, token_log_probs(z, tokens, temperature=temperature))
    assert (got <= 0).all()


# ---- sequence_log_prob


def test_sequence_log_prob_sums_the_real_tokens():
    x = tensor([[-1.0, -2.0, float("nan")], [-0.5, -INF, INF], [-1.0, -2.0, -3.0]])
    x.requires_grad_()
    mask = tensor(slow.prefix_mask([2, 1, 3], 3))
    got = sequence_log_prob(x, mask)
    assert_close(got, tensor([-3.0, -0.5, -6.0]))
    assert_close(torch.autograd.grad(got.sum(), x)[0], mask.float())


def test_sequence_log_prob_is_the_definition():
    x, mask = torch.randn(3, 4, dtype=torch.float64), slow.prefix_mask([1, 4, 2], 4)
    got = sequence_log_prob(x, tensor(mask))
    assert_close(got, double(slow.sequence_log_prob(x.tolist(), mask)))


# ---- entropy


def test_entropy_by_hand():
    # peers: OAI, TRL, verl, OpenRLHF and SFFD agree on 1.029653. The sum of -p log p over *sampled*
    # tokens, as often printed, has the expectation .346022 instead.
    assert_close(entropy(THREE), tensor(1.029653))
    minus_log_p = -token_log_probs(THREE.expand(1, 3, 3), tensor([[0, 1, 2]]))[0]
    p = tensor([0.2, 0.3, 0.5])
    assert_close((p * minus_log_p).sum(), tensor(1.029653))
    assert_close((p * p * minus_log_p).sum(), tensor(0.346022), rtol=0, atol=1e-6)  # 6 digits known


def test_entropy_lies_between_certainty_and_log_vocab():
    assert_close(entropy(torch.full((2, 3, 7), 4.0)), torch.full((2, 3), math.log(7)))
    assert_close(entropy(tensor([1000.0, 0.0, -1000.0])), tensor(0.0))
    assert_close(entropy(torch.zeros(3, 1)), torch.zeros(3))


def test_entropy_is_the_definition_in_value_and_gradient():
    z = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    got = entropy(z, temperature=1.7)
    assert_close(got, double([slow.entropy(row, 1.7) for row in z.tolist()]))
    (slope,) = torch.autograd.grad(got.sum(), z)
    expected = [slow.gradient(lambda row: slow.entropy(row, 1.7), row) for row in z.tolist()]
    assert_close(slope, double(expected), **slow.DIFFERENCES)


def test_entropy_is_right_where_a_token_is_ruled_out():
    # p = [.5, .5, 0]: H = log 2; with [.2, 0, .8], dH/dz_i = -p_i (log p_i + H).
    assert_close(entropy(tensor([3.0, 3.0, -INF])), tensor(math.log(2)))
    z = tensor([math.log(0.2), -INF, math.log(0.8)], requires_grad=True)
    h = -(0.2 * math.log(0.2) + 0.8 * math.log(0.8))
    got = entropy(z)
    assert_close(got, tensor(h))
    slope = [-0.2 * (math.log(0.2) + h), 0.0, -0.8 * (math.log(0.8) + h)]
    (found,) = torch.autograd.grad(got, z, retain_graph=True)
    assert_close(found, tensor(slope))
    # Whatever follows: a bound near the largest float would overflow here.
    (found,) = torch.autograd.grad(-100 * got, z)
    assert_close(found, tensor([-100 * x for x in slope]))


def test_entropy_at_a_temperature_is_that_of_the_divided_logits():
    # Squared odds 0.04 : 0.09 : 0.25, as above.
    p = [x / 0.38 for x in (0.04, 0.09, 0.25)]
    assert_close(entropy(THREE, temperature=0.5), tensor(-sum(x * math.log(x) for x in p)))


def test_entropy_of_a_row_depends_on_that_row_alone():
    z = torch.randn(3, 4, 6)
    whole = entropy(z)
    for i in range(3):
        assert_close(entropy(z[i]), whole[i])


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_logits_give_the_answer_of_the_upcast_logits(half):
    z, tokens = (4 * torch.randn(2, 3, 11)).to(half), torch.randint(11, (2, 3))
    expected = slow.token_log_probs(z.float().tolist(), tokens.tolist(), 0.9)
    assert_close(token_log_probs(z, tokens, temperature=0.9), tensor(expected))
    expected = [[slow.entropy(row, 0.9) for row in rows] for rows in z.float().tolist()]
    assert_close(entropy(z, temperature=0.9), tensor(expected))
    log_probs = -torch.rand(1, 4000).to(half)
    total = sum(log_probs.double().tolist()[0])
    # float32 sums 4,000 numbers to 5 digits; half precision would keep 3.
    got = sequence_log_prob(log_probs, torch.ones(1, 4000).bool())
    assert_close(got, tensor([total]), rtol=1e-5, atol=0)


def test_double_precision_logits_give_double_precision_log_probs():
    z = torch.randn(1, 2, 3, dtype=torch.float64)
    assert token_log_probs(z, tensor([[0, 1]])).dtype == torch.float64
    assert entropy(z).dtype == torch.float64


Z, IDS, X, M = torch.zeros(1, 2, 3), tensor([[0, 1]]), torch.zeros(1, 2), torch.ones(1, 2).bool()


@pytest.mark.parametrize(
    ("call", "argument", "came"),
    [
        (lambda: token_log_probs(Z[0], IDS), "token_log_probs: logits", "float32 [2, 3]"),
        (lambda: token_log_probs(Z, IDS[:, :1]), "token_log_probs: tokens", "int64 [1, 1]"),
        (lambda: token_log_probs(Z, IDS + 2), "token_log_probs: tokens", "3"),
        (lambda: token_log_probs(Z, IDS - 1), "token_log_probs: tokens", "-1"),
        (lambda: token_log_probs(Z, IDS * -100), "token_log_probs: tokens", "-100"),
        (lambda: token_log_probs(Z, IDS, temperature=0), "token_log_probs: temperature", "0"),
        (lambda: entropy(Z, temperature=0.0), "entropy: temperature", "0.0"),
        (lambda: entropy(Z, temperature=-1.0), "entropy: temperature", "-1.0"),
        (lambda: entropy(tensor(1.0)), "entropy: logits", "float32 []"),
        (lambda: sequence_log_prob(X[0], M[0]), "sequence_log_prob: log_probs", "float32 [2]"),
        (lambda: sequence_log_prob(X, ~M), "sequence_log_prob: mask", "none in row 0"),
        (
            lambda: sequence_log_prob(torch.zeros(1, 3), tensor([[True, False, True]])),
            "sequence_log_prob: mask",
            "101 in row 0",
        ),
    ],
)
def test_errors_of_log_probs_name_the_argument_and_what_came(call, argument, came):
    with refuses(argument, came):
        call()


def test_the_last_token_of_the_vocabulary_is_inside():
    assert token_log_probs(Z, tensor([[2, 0]])).shape == (1, 2)
    with pytest.raises(ValueError, match=r"tokens must lie in \[0, 2\], got 3"):
        token_log_probs(Z, tensor([[2, 3]]))
