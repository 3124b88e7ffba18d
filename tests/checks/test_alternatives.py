"""What checks of DPO, GRPO and RLOO say."""

import pytest
import torch
from torch.nn.functional import logsigmoid, softplus

from minippo import checks
from minippo.checks.mistakes import CATALOGUE

pytestmark = pytest.mark.usefixtures("without_hook")


def implicit_rewards(pc, pr, rc, rr, *, beta):
    return -logsigmoid(beta * (pc - rc) - beta * (pr - rr))


def without_sum(scores):
    k = scores.shape[1]
    others = scores[:, None, :].expand(-1, k, -1)[:, ~torch.eye(k, dtype=torch.bool)]
    return scores - others.reshape(len(scores), k, k - 1).mean(2)


def scaled_mean(scores):
    """k / (k - 1) times the distance to the mean of all."""
    k = scores.shape[1]
    return k / (k - 1) * (scores - scores.mean(1, keepdim=True))


def by_standard_deviation(scores, *, normalize=True):
    centred = scores - scores.mean(1, keepdim=True)
    return (
        centred / (centred.square().mean(1, keepdim=True) + 1e-8) ** 0.5 if normalize else centred
    )


@pytest.mark.parametrize(
    ("name", "mine"),
    [
        ("dpo_loss", implicit_rewards),
        ("dpo_loss", lambda pc, pr, rc, rr, *, beta: softplus(beta * (pr - rr - pc + rc))),
        ("leave_one_out_advantages", without_sum),
        ("leave_one_out_advantages", scaled_mean),
        ("group_advantages", by_standard_deviation),
    ],
)
def test_another_right_implementation_of_alternatives_passes(name, mine):
    result = checks.CHECKS[name](mine)
    assert result.passed, result


def test_a_switch_that_was_left_out_is_said():
    result = checks.group_advantages(lambda scores: by_standard_deviation(scores))
    assert result.passed
    assert "not checked: normalize" in result.headline


def trl_style(scores, *, normalize=True):
    centred = scores - scores.mean(dim=1, keepdim=True)
    return centred / (scores.std(dim=1, keepdim=True) + 1e-4) if normalize else centred


def whole_batch(scores, *, normalize=True):
    centred = scores - scores.mean()
    return centred / (scores.var(correction=0) + 1e-8).sqrt() if normalize else centred


@pytest.mark.parametrize(
    ("name", "mine", "mistake"),
    [
        (
            "dpo_loss",
            lambda pc, pr, rc, rr, *, beta: -torch.log(torch.sigmoid(beta * (pc - pr - rc + rr))),
            "log of sigmoid",
        ),
        (
            "dpo_loss",
            lambda pc, pr, rc, rr, *, beta: -logsigmoid(beta * (pc - pr)),
            "reference forgotten",
        ),
        (
            "dpo_loss",
            lambda pc, pr, rc, rr, *, beta: -logsigmoid(beta * (pr - pc)),
            "reference forgotten and chosen and rejected swapped",
        ),
        ("group_advantages", trl_style, "Bessel's correction and 1e-4 added to the deviation"),
        ("group_advantages", whole_batch, "one group for all"),
        ("leave_one_out_advantages", lambda s: s - s.mean(1, keepdim=True), "own score counted"),
        (
            "leave_one_out_advantages",
            lambda s: (s - s.mean(1, keepdim=True)) / s.std(1, keepdim=True),
            "GRPO's advantages",
        ),
        ("leave_one_out_advantages", trl_style, "GRPO's advantages, with 1e-4"),
        ("leave_one_out_advantages", lambda s: s - s.mean(0), "own score counted and axes swapped"),
    ],
)
def test_a_wrong_function_of_alternatives_is_named_as_what_it_is(name, mine, mistake):
    assert checks.CHECKS[name](mine).mistake == mistake


@pytest.mark.parametrize(
    ("name", "mine", "says"),
    [
        (
            "dpo_loss",
            lambda pc, pr, rc, rr, *, beta: implicit_rewards(pc, pr, rc, rr, beta=beta).mean(),
            "You averaged: one number came where [3] is asked.",
        ),
        (
            "dpo_loss",
            lambda pc, pr, rc, rr, *, beta: implicit_rewards(pc, pr.detach(), rc, rr, beta=beta),
            "no gradient reaches policy_rejected",
        ),
        ("leave_one_out_advantages", lambda s: 2 * without_sum(s), "2 times the right value"),
    ],
)
def test_an_unknown_mistake_in_alternatives_is_described(name, mine, says):
    result = checks.CHECKS[name](mine)
    assert not result.passed
    assert result.mistake is None
    assert says in str(result)


# ---- what the catalogue says of training -----------------------------------------------------


def test_one_far_pair_makes_the_log_of_a_sigmoid_infinite():
    far, near = torch.tensor([-400.0]), torch.tensor([0.0])
    losses = [
        CATALOGUE["dpo_loss"].version(flags)(far, near, near, near, beta=0.5)
        for flags in (["log of sigmoid"], [])
    ]
    assert losses[0].item() == float("inf")
    assert losses[1].item() == 200.0


def test_without_a_sigmoid_what_is_right_already_pulls_as_hard():
    near = torch.zeros(1)
    slopes = []
    for flags in (["sigmoid forgotten"], []):
        chosen = torch.tensor([100.0], requires_grad=True)
        loss = CATALOGUE["dpo_loss"].version(flags)(chosen, near, near, near, beta=1.0)
        slopes.append(torch.autograd.grad(loss, chosen)[0].item())
    assert slopes == [-1.0, pytest.approx(0.0, abs=1e-30)]


def test_equal_scores_without_a_guard_are_nan():
    scores = torch.ones(1, 4)
    assert CATALOGUE["group_advantages"].version(["0 / 0 is NaN"])(scores).isnan().all()
    assert CATALOGUE["group_advantages"].version([])(scores).tolist() == [[0.0] * 4]


def test_one_group_for_all_pushes_every_answer_to_an_easy_prompt_up():
    scores = torch.tensor([[5.0, 5.5], [0.0, 0.5]])  # an easy and a hard prompt
    for name in ("group_advantages", "leave_one_out_advantages"):
        wrong = CATALOGUE[name].version(["one group for all"])(scores)
        assert (wrong[0] > 0).all()
        assert (wrong[1] < 0).all()


def test_an_own_score_counted_makes_advantages_k_minus_1_over_k_times_as_large():
    scores = torch.tensor([[0.0, 3.0, 6.0]])
    version = CATALOGUE["leave_one_out_advantages"].version
    assert version(["own score counted"])(scores).tolist() == [[-3.0, 0.0, 3.0]]
    assert version([])(scores).tolist() == [[-4.5, 0.0, 4.5]]
