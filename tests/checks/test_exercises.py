"""What checks of the exercises say whose solutions the package itself does not need."""

import inspect
import subprocess
import sys

import pytest
import torch
from torch import tensor, where
from torch.distributions import Categorical

import minippo
from minippo import checks
from minippo.checks import solutions
from minippo.checks.engine.contract import contract
from minippo.checks.mistakes import CATALOGUE
from minippo.rollout import ensemble_score
from minippo.worlds.enumerable import optimum, responses

pytestmark = pytest.mark.usefixtures("without_hook")
NAMES = [
    "mean_minus_variance", "sequence_ratio", "entropy_bonus", "combined_loss", "optimal_policy",
    "accumulated_loss", "first_ratio_error", "effective_sample_size", "token_truth",
    "calibration",
]  # fmt: skip


def flawed(name, *flags):
    return CATALOGUE[name].version(flags)


# ---- the solutions ---------------------------------------------------------------------------


def test_solutions_of_exercises_by_hand():
    scores = tensor([[1.0, 2.0], [3.0, 2.0]])  # variances 1 and 0
    assert solutions.mean_minus_variance(scores, coef=0.5).tolist() == [1.5, 2.0]

    new, old = tensor([[0.5, 0.5, 9.0]]).log(), tensor([[0.25, 0.2, 1.0]]).log()
    mask = tensor([[True, True, False]])
    assert solutions.sequence_ratio(new, old, mask).item() == pytest.approx(5.0)

    logits = tensor([[[0.5, 0.5], [1.0, 0.0], [0.1, 0.9]]]).log()
    assert solutions.entropy_bonus(logits, mask).item() == pytest.approx(0.34657, abs=1e-5)

    parts = tensor([1.0, 10.0, 100.0, 1000.0])
    assert solutions.combined_loss(*parts, c1=0.5, c2=0.25, c3=2.0).item() == 1 + 5 - 25 + 2000

    found = solutions.optimal_policy(tensor([0.5, 0.5]).log(), tensor([0.0, 1.0]), beta=0.5)
    assert found.exp().tolist() == pytest.approx([0.11920, 0.88080], abs=1e-5)

    # Two micro-batches of one row, with one real token and with three: (4 + 0 + 0 + 0) / 4.
    losses = tensor([[[4.0, 9.0, 9.0]], [[0.0, 0.0, 0.0]]])
    real = tensor([[[True, False, False]], [[True, True, True]]])
    assert solutions.accumulated_loss(losses, real).item() == 1.0

    new, old = tensor([[0.5, 0.1, 9.0]]).log(), tensor([[0.4, 0.2, 1.0]]).log()
    error = solutions.first_ratio_error(new, old, tensor([[True, True, False]]))
    assert error.item() == pytest.approx(0.5)

    count = solutions.effective_sample_size(tensor([1.0, 3.0]).log())
    assert count.item() == pytest.approx((1 + 3) ** 2 / (1 + 9))


def test_the_truth_at_every_token_by_hand():
    # Means 1, 2, 4; deviations sqrt(2) of two numbers, so the means are uncertain by 1.
    scores = tensor([[0.0, 2.0], [1.0, 3.0], [4.0, 4.0]])
    found = solutions.token_truth(scores)
    assert found.tolist() == [[1.0, 2.0], pytest.approx([1.0, 1.0]), [1.0, 2.0]]


def test_calibration_by_hand():
    # sigmoid(log 3) is 3/4: sure by 3/4 in two pairs and right in one, and one tie.
    difference, won = tensor([3.0, 1 / 3, 1.0]).log(), tensor([1.0, 1.0, 1.0])
    found = solutions.calibration(difference, won, tensor([0.6, 0.9])).T
    assert found.tolist()[0] == pytest.approx([0.5, 0.5, 1 / 3])
    assert found.tolist()[1:] == [pytest.approx([0.75, 0.5, 2 / 3]), [0, 0, 0]]


def test_the_fit_of_values_by_hand():
    # The distance from the return is 2, and each step at rate 0.5 halves it. Padding stays.
    table, real = tensor([[0.0, 9.0]], requires_grad=True), tensor([[True, False]])
    losses = solutions.fit_values(
        lambda rows: table[rows], torch.optim.SGD([table], lr=0.5), tensor([[2.0, 0.0]]), real,
        epochs=3, minibatch_size=1,
    )  # fmt: skip
    assert losses == [2.0, 0.5, 0.125]
    assert table.tolist() == [[1.75, 9.0]]


def test_values_measured_before_the_loop_are_told_to_be_measured_again():
    def mine(values_of, optimizer, returns, mask, *, epochs, minibatch_size):
        once = values_of(torch.arange(len(mask)))
        return solutions.fit_values(
            lambda rows: once[rows], optimizer, returns, mask,
            epochs=epochs, minibatch_size=minibatch_size,
        )  # fmt: skip

    said = checks.fit_values(mine)
    assert not said.idea
    assert "measure again for each minibatch" in " ".join(said.lines)


def test_solutions_of_exercises_agree_with_the_package():
    scores = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    members = [lambda _, s=s: s for s in scores]
    whole = ensemble_score(members, how="mean_minus_variance", coef=0.7)
    assert torch.equal(whole(responses(0)), solutions.mean_minus_variance(scores, coef=0.7))

    ref, rewards = torch.randn(7).log_softmax(0), torch.randn(7)
    listed = optimum(ref[None], rewards[None], beta=0.3)[0]
    assert torch.equal(listed, solutions.optimal_policy(ref, rewards, beta=0.3))


@pytest.mark.parametrize("name", NAMES)
def test_solutions_of_exercises_are_shown_like_every_other(name, monkeypatch):
    monkeypatch.setattr("minippo.checks.engine.check._ATTEMPTED", set())
    assert name in checks.__all__
    assert getattr(checks, name)(getattr(solutions, name)).passed
    shown, agreed = repr(checks.solution(name)), contract(name)
    assert shown == (agreed.solution if agreed else inspect.getsource(getattr(solutions, name)))


def test_checks_of_exercises_load_no_transformers():
    program = (
        "import sys; from minippo import checks; repr(checks.solution('entropy_bonus'));"
        "print('transformers' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


# ---- right in another way --------------------------------------------------------------------


def two_moments(scores, *, coef):
    return scores.mean(0) - coef * ((scores**2).mean(0) - scores.mean(0) ** 2)


def of_two_log_probs(log_probs, old_log_probs, mask):
    new, old = (minippo.sequence_log_prob(x, mask) for x in (log_probs, old_log_probs))
    return minippo.probability_ratio(new, old)


def row_by_row(log_probs, old_log_probs, mask):
    rows = zip(log_probs.float(), old_log_probs.detach().float(), mask, strict=True)
    return torch.stack([(new[m] - old[m]).sum().exp() for new, old, m in rows])


def by_torch(logits, mask):
    z = logits[mask].double().clamp(min=-1e30)
    return Categorical(logits=z).entropy().mean().float()


def parts_in_a_list(policy_loss, value_loss, entropy, kl, *, c1, c2, c3):
    return sum([policy_loss, c1 * value_loss, -(c2 * entropy), c3 * kl])


def by_logsumexp(ref_log_probs, rewards, *, beta):
    logs = rewards.double() / beta + ref_log_probs
    return (logs - torch.logsumexp(logs, 0)).float()


def token_by_token(losses, mask):
    n = sum(int(m.sum()) for m in mask)
    return sum(x[m].sum() / n for x, m in zip(losses, mask, strict=True))


def largest_of_both_sides(log_probs, old_log_probs, mask):
    ratio = minippo.probability_ratio(log_probs[mask], old_log_probs[mask])
    return torch.maximum(ratio.max() - 1, 1 - ratio.min())


@pytest.mark.parametrize(
    ("name", "mine"),
    [
        ("accumulated_loss", token_by_token),
        ("accumulated_loss", lambda x, m: minippo.masked_mean(x, m)),
        ("first_ratio_error", largest_of_both_sides),
        ("first_ratio_error", lambda p, q, m: (p.float()[m] - q.float()[m]).expm1().abs().max()),
        ("effective_sample_size", lambda x: 1 / (x - x.logsumexp(0)).exp().square().sum()),
        (
            "effective_sample_size",
            lambda x: x.double().exp().sum() ** 2 / (2 * x.double()).exp().sum(),
        ),
        ("mean_minus_variance", two_moments),
        ("mean_minus_variance", lambda s, *, coef: s.mean(0) - coef * s.std(0, correction=0) ** 2),
        ("sequence_ratio", of_two_log_probs),
        ("sequence_ratio", row_by_row),
        ("entropy_bonus", lambda z, mask: minippo.masked_mean(minippo.entropy(z), mask)),
        ("entropy_bonus", lambda z, mask: minippo.entropy(z[mask]).mean()),
        ("entropy_bonus", by_torch),
        ("combined_loss", parts_in_a_list),
        ("optimal_policy", by_logsumexp),
    ],
)
def test_another_right_implementation_of_an_exercise_passes(name, mine):
    result = checks.CHECKS[name](mine)
    assert result.passed, result


# ---- wrong as people are wrong ---------------------------------------------------------------


def ratios(log_probs, old_log_probs):
    return (log_probs - old_log_probs).exp()


@pytest.mark.parametrize(
    ("name", "mine", "mistake"),
    [
        (
            "accumulated_loss",
            lambda x, m: torch.stack(
                [minippo.masked_mean(a, b) for a, b in zip(x, m, strict=True)]
            ).mean(),
            "mean of the micro-batches' means",
        ),
        (
            "accumulated_loss",
            lambda x, m: sum(minippo.masked_mean(a, b) for a, b in zip(x, m, strict=True)),
            "means added up",
        ),
        ("accumulated_loss", lambda x, m: (x * m).sum() / m.sum(), "mask multiplied"),
        (
            "first_ratio_error",
            lambda p, q, m: (ratios(p.float(), q.float()) - 1).abs().nan_to_num().max(),
            None,
        ),
        (
            "first_ratio_error",
            lambda p, q, m: (ratios(p.float(), q.float())[m] - 1).max(),
            "only upwards",
        ),
        (
            "first_ratio_error",
            lambda p, q, m: (ratios(p.float(), q.float())[m].mean() - 1).abs(),
            "of the mean ratio",
        ),
        (
            "effective_sample_size",
            lambda x: x.exp().sum() ** 2 / x.exp().square().sum(),
            "exp overflows",
        ),
        (
            "effective_sample_size",
            lambda x: x.sum() ** 2 / x.square().sum(),
            "log-ratios for ratios",
        ),
        ("effective_sample_size", lambda x: x.softmax(0).square().sum(), "upside down"),
        ("mean_minus_variance", lambda s, *, coef: s.mean(0) - coef * s.var(0).nan_to_num(), None),
        (
            "mean_minus_variance",
            lambda s, *, coef: s.mean(0) - coef * s.std(0, correction=0),
            "standard deviation for the variance",
        ),
        (
            "mean_minus_variance",
            lambda s, *, coef: s.mean(1) - coef * s.var(1, correction=0),
            "axes swapped",
        ),
        (
            "mean_minus_variance",
            lambda s, *, coef: s.mean(0) + coef * s.std(0, correction=0),
            "standard deviation for the variance and variance added",
        ),
        ("sequence_ratio", lambda p, q, m: (ratios(p.float(), q.float()) * m).prod(1), None),
        (
            "sequence_ratio",
            lambda p, q, m: where(m, ratios(p.float(), q.float().detach()), 1.0).prod(1),
            "masked too late",
        ),
        (
            "sequence_ratio",
            lambda p, q, m: where(m, ratios(p.float(), q.float()), 0.0).sum(1) / m.sum(1),
            "mean of the token ratios",
        ),
        (
            "sequence_ratio",
            lambda p, q, m: where(m, p.float() - q.float(), 0.0).exp().prod(1) ** (1 / m.sum(1)),
            "mean instead of sum",
        ),
        (
            "sequence_ratio",
            lambda p, q, m: (
                minippo.sequence_log_prob(p, m).exp()
                / minippo.sequence_log_prob(q.detach(), m).exp()
            ),
            "each sum through exp",
        ),
        ("entropy_bonus", lambda z, m: minippo.entropy(z).mean(), "padding counted"),
        ("entropy_bonus", lambda z, m: (minippo.entropy(z) * m).sum() / m.sum(), "mask multiplied"),
        ("entropy_bonus", lambda z, m: (minippo.entropy(z) * m).mean(), "divided by all tokens"),
        ("entropy_bonus", lambda z, m: -minippo.masked_mean(minippo.entropy(z), m), "sign turned"),
        ("combined_loss", lambda p, v, h, k, *, c1, c2, c3: p - c1 * v + c2 * h - c3 * k, None),
        (
            "combined_loss",
            lambda p, v, h, k, *, c1, c2, c3: p - c1 * v + c2 * h + c3 * k,
            "value loss subtracted and entropy punished",
        ),
        (
            "combined_loss",
            lambda p, v, h, k, *, c1, c2, c3: -p + c1 * v - c2 * h + c3 * k,
            "policy loss not added",
        ),
        (
            "optimal_policy",
            lambda ref, r, *, beta: (ref.exp() * (r / beta).exp()).log(),
            "not normalised",
        ),
        (
            "optimal_policy",
            lambda ref, r, *, beta: (r / beta).log_softmax(0),
            "reference forgotten",
        ),
        (
            "optimal_policy",
            lambda ref, r, *, beta: (ref + r / beta).softmax(0),
            "probabilities for log-probs",
        ),
    ],
)
def test_a_wrong_function_of_an_exercise_is_named_as_what_it_is(name, mine, mistake):
    result = checks.CHECKS[name](mine)
    assert not result.passed
    if mistake is not None:
        assert result.mistake == mistake, result


def test_a_missing_gradient_of_an_exercise_is_found():
    def mine(policy_loss, value_loss, entropy, kl, *, c1, c2, c3):
        return policy_loss + c1 * value_loss - c2 * entropy.detach() + c3 * kl

    assert "no gradient reaches entropy" in str(checks.combined_loss(mine))


# ---- what the catalogue says of training -----------------------------------------------------


def test_a_token_of_a_short_micro_batch_weighs_more_in_a_mean_of_means():
    losses = torch.zeros(2, 1, 3, requires_grad=True)
    real = tensor([[[True, False, False]], [[True, True, True]]])
    for flags, weights in (
        ([], [1 / 4, 1 / 4]),
        (["mean of the micro-batches' means"], [1 / 2, 1 / 6]),
    ):
        found = flawed("accumulated_loss", *flags)(losses, real)
        slopes = torch.autograd.grad(found, losses)[0]
        assert slopes[:, 0, 0].tolist() == pytest.approx(weights)


def test_more_padding_makes_a_smaller_step_and_more_parts_a_larger_one():
    losses, mask = torch.ones(2, 2, 4), torch.zeros(2, 2, 4).bool()
    mask[..., :2] = True
    assert flawed("accumulated_loss")(losses, mask).item() == 1.0
    assert flawed("accumulated_loss", "padding counted")(losses, mask).item() == 0.5
    added = flawed("accumulated_loss", "means added up")
    assert added(losses, mask).item() == 2.0
    assert added(losses.reshape(4, 1, 4), mask.reshape(4, 1, 4)).item() == 4.0


def test_a_mean_of_ratios_near_1_hides_what_the_largest_error_shows():
    new, old, mask = tensor([[0.5, 1.5]]).log(), torch.zeros(1, 2), torch.ones(1, 2).bool()
    assert flawed("first_ratio_error")(new, old, mask).item() == pytest.approx(0.5)
    hidden = flawed("first_ratio_error", "of the mean ratio")(new, old, mask)
    assert hidden.item() == pytest.approx(0.0, abs=1e-6)


def test_members_a_tenth_from_their_mean_cost_ten_times_as_much_by_their_deviation():
    scores = tensor([[0.9], [1.1]])
    right, wrong = (
        1.0 - flawed("mean_minus_variance", *flags)(scores, coef=1.0).item()
        for flags in ([], ["standard deviation for the variance"])
    )
    assert right == pytest.approx(0.01, abs=1e-6)
    assert wrong == pytest.approx(0.1, abs=1e-6)


def test_one_variance_for_the_batch_leaves_every_distance_between_responses():
    scores = tensor([[0.0, 1.0, 5.0], [2.0, 1.0, -5.0]])
    one = flawed("mean_minus_variance", "one variance for the batch")(scores, coef=0.5)
    assert (one - scores.mean(0)).unique().numel() == 1


def test_forty_tokens_at_minus_three_through_exp_are_nan():
    log_probs, mask = torch.full((1, 40), -3.0), torch.ones(1, 40).bool()
    wrong = flawed("sequence_ratio", "each sum through exp")
    assert wrong(log_probs, log_probs, mask).isnan().all()
    assert flawed("sequence_ratio")(log_probs, log_probs, mask).item() == 1.0


def test_one_long_answer_of_a_thousand_overflows_where_ratios_are_squared_as_they_are():
    log_ratios = torch.zeros(1000)
    log_ratios[0] = 60.0
    assert flawed("effective_sample_size", "exp overflows")(log_ratios).isnan()
    assert flawed("effective_sample_size")(log_ratios).item() == pytest.approx(1.0)


def test_ratios_of_a_half_and_three_halves():
    new, old, mask = tensor([[0.5, 1.5]]).log(), torch.zeros(1, 2), torch.ones(1, 2).bool()
    wrong = flawed("sequence_ratio", "mean of the token ratios")
    assert wrong(new, old, mask).item() == pytest.approx(1.0)
    assert flawed("sequence_ratio")(new, old, mask).item() == pytest.approx(0.75)


def test_a_ratio_of_0_on_padding_learns_nothing():
    log_probs = tensor([[-1.0, -2.0, -3.0]], requires_grad=True)
    old, mask = tensor([[-2.0, -1.0, -3.0]]), tensor([[True, True, False]])
    ratio = flawed("sequence_ratio", "padding makes it 0")(log_probs, old, mask)
    assert ratio.item() == 0.0
    assert not torch.autograd.grad(ratio.sum(), log_probs)[0].any()


def test_the_geometric_mean_is_clipped_at_a_power_of_the_true_ratio():
    new, mask = torch.full((1, 5), 1.2).log(), torch.ones(1, 5).bool()
    mean = flawed("sequence_ratio", "mean instead of sum")(new, torch.zeros(1, 5), mask)
    assert mean.item() == pytest.approx(1.2)
    assert flawed("sequence_ratio")(new, torch.zeros(1, 5), mask).item() == pytest.approx(1.2**5)


def test_p_counted_twice_is_largest_at_three_equal_tokens():
    """Gradient ascent over eight tokens, from many starts; uniform is worse."""
    wrong = flawed("entropy_bonus", "p counted twice")
    z = torch.randn(200, 1, 1, 8, requires_grad=True)
    optimizer = torch.optim.Adam([z], lr=0.05)
    one = torch.ones(1, 1).bool()
    for _ in range(600):
        found = torch.vmap(lambda logits: wrong(logits, one))(z)
        optimizer.zero_grad()
        (-found.sum()).backward()
        optimizer.step()
    assert found.max().item() == pytest.approx(0.3662, abs=1e-4)
    best = z[found.argmax()].flatten().softmax(0).sort(descending=True).values
    assert best[:3].tolist() == pytest.approx([1 / 3] * 3, abs=0.01)
    assert wrong(torch.zeros(1, 1, 8), one).item() == pytest.approx(0.2599, abs=1e-4)


def test_smaller_betas_go_the_wrong_way_where_beta_multiplies():
    ref, rewards = tensor([0.5, 0.5]).log(), tensor([0.0, 1.0])
    for flags, order in ([], 1), (["beta multiplies"], -1):
        likely = [flawed("optimal_policy", *flags)(ref, rewards, beta=b)[1] for b in (2.0, 0.5)]
        assert order * (likely[1] - likely[0]) > 0


def test_without_the_reference_equal_rewards_are_uniform():
    ref, rewards = tensor([0.9, 0.1]).log(), torch.ones(2)
    wrong = flawed("optimal_policy", "reference forgotten")(ref, rewards, beta=1.0)
    assert wrong.exp().tolist() == pytest.approx([0.5, 0.5])
    assert flawed("optimal_policy")(ref, rewards, beta=1.0).exp().tolist() == pytest.approx(
        [0.9, 0.1]
    )


def test_a_thousand_as_a_probability_is_nan():
    wrong = flawed("optimal_policy", "multiplied as probabilities")
    assert wrong(tensor([0.5, 0.5]).log(), tensor([1.0, 1.0]), beta=0.001).isnan().all()


def test_log_probs_not_normalised_are_off_by_the_logarithm_of_their_sum():
    ref, rewards = tensor([0.5, 0.5]).log(), tensor([1.0, 2.0])
    wrong = flawed("optimal_policy", "not normalised")(ref, rewards, beta=1.0)
    right = flawed("optimal_policy")(ref, rewards, beta=1.0)
    total = wrong.exp().sum().log().item()
    assert (wrong - right).tolist() == pytest.approx([total, total], abs=1e-6)
    assert (right.exp() * (right - wrong)).sum().item() < 0  # KL(pi* || it)
