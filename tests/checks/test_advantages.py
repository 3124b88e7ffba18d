"""What checks of credit say to people who write it in their own way."""

import pytest
import torch
from torch.testing import assert_close

from minippo import checks
from minippo.checks import definitions as slow
from minippo.checks.mistakes import CATALOGUE

pytestmark = pytest.mark.usefixtures("without_hook")


def loop_gae(rewards, values, mask, gamma, lam):
    """The loop of most small implementations, over whatever the padding holds."""
    out, after = torch.zeros_like(rewards), 0.0
    for t in reversed(range(rewards.shape[1])):
        next_value = values[:, t + 1] if t + 1 < rewards.shape[1] else 0.0
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        out[:, t] = after = delta + gamma * lam * after
    return out


def one_later(mask):
    return torch.cat([mask[:, :1], mask[:, :-1]], 1)


def zero_outside(x, mask):
    return torch.where(mask, x, 0.0)


# ---- wrong, as people write it ---------------------------------------------------------------


def naive(rewards, values, mask, *, gamma, lam):
    return zero_outside(loop_gae(rewards, values, mask, gamma, lam), mask)


def with_a_reset_and_a_leak(rewards, values, mask, *, gamma, lam):
    out, after = torch.zeros_like(rewards), torch.zeros(len(rewards))
    for t in reversed(range(rewards.shape[1])):
        next_value = values[:, t + 1] if t + 1 < rewards.shape[1] else 0.0
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        after = zero_outside(delta + gamma * lam * after, mask[:, t])
        out[:, t] = after
    return out


def times_the_mask(rewards, values, mask, *, gamma, lam):
    m = mask.float()
    return loop_gae(rewards * m, values * m, mask, gamma, lam) * m


def with_the_slot_after_eos(rewards, values, mask, *, gamma, lam):
    slots = one_later(mask)
    found = loop_gae(zero_outside(rewards, slots), zero_outside(values, slots), mask, gamma, lam)
    return zero_outside(found, mask)


def without_eos(rewards, values, mask, *, gamma, lam):
    last = mask.sum(1, keepdim=True) - 1
    return with_mask(rewards, values, mask.scatter(1, last, False), gamma, lam)


def with_mask(rewards, values, mask, gamma, lam):
    return loop_gae(zero_outside(rewards, mask), zero_outside(values, mask), mask, gamma, lam)


def returns(rewards, values, mask, *, gamma, lam):
    return zero_outside(with_mask(rewards, values, mask, gamma, lam) + values, mask)


def score_in_the_last_column(scores, kl, mask, *, kl_coef):
    rewards = zero_outside(-kl_coef * kl, mask)
    rewards[:, -1] += scores
    return rewards


def score_where_the_padding_begins(scores, kl, mask, *, kl_coef):
    rewards = zero_outside(-kl_coef * kl, mask)
    after = mask.sum(1).clamp(max=mask.shape[1] - 1)
    rewards[torch.arange(len(rewards)), after] += scores
    return rewards


def the_textbook_sketch(scores, kl, mask, *, kl_coef):
    return zero_outside(scores[:, None] - kl_coef * kl, mask)


def unmasked_and_in_the_last_column(scores, kl, mask, *, kl_coef):
    rewards = -kl_coef * kl
    rewards[:, -1] += scores
    return rewards


def cumulative_sum(rewards, mask, *, gamma):
    return zero_outside(zero_outside(rewards, mask).flip(1).cumsum(1).flip(1), mask)


@pytest.mark.parametrize(
    ("name", "function", "mistake"),
    [
        ("gae", naive, "off by one at EOS and mask ignored on the way"),
        ("gae", with_a_reset_and_a_leak, "off by one at EOS"),
        ("gae", times_the_mask, "mask multiplied"),
        ("gae", with_the_slot_after_eos, "slot after EOS takes part"),
        ("gae", without_eos, "EOS left out"),
        ("gae", returns, "value not subtracted"),
        ("shape_rewards", score_in_the_last_column, "score on the last column"),
        ("shape_rewards", score_where_the_padding_begins, "score one slot late"),
        ("shape_rewards", the_textbook_sketch, "score on every token"),
        (
            "shape_rewards",
            unmasked_and_in_the_last_column,
            "score on the last column and padding paid",
        ),
        ("monte_carlo_returns", cumulative_sum, "gamma forgotten"),
    ],
)
def test_a_wrong_function_of_advantages_is_named_as_what_it_is(name, function, mistake):
    assert checks.CHECKS[name](function).mistake == mistake


# ---- wrong, and nobody knows why -------------------------------------------------------------


def junk_left_in_the_padding(rewards, values, mask, *, gamma, lam):
    return torch.where(mask, with_mask(rewards, values, mask, gamma, lam), -values)


def absolute_kl(scores, kl, mask, *, kl_coef):
    rewards = zero_outside(-kl_coef * kl.abs(), mask)
    last = mask.sum(1, keepdim=True) - 1
    return rewards.scatter_add(1, last, scores[:, None])


@pytest.mark.parametrize(
    ("name", "function", "says"),
    [
        ("gae", junk_left_in_the_padding, "It is wrong only on the padding."),
        ("gae", junk_left_in_the_padding, "It is wrong only in rows that end early."),
        ("shape_rewards", absolute_kl, "It is wrong only where the KL is negative."),
        ("shape_rewards", absolute_kl, "Right where kl_coef = 0.0"),
    ],
)
def test_an_unknown_mistake_in_advantages_is_described(name, function, says):
    result = checks.CHECKS[name](function)
    assert not result.passed
    assert result.mistake is None
    assert says in str(result)


def test_the_smallest_case_of_a_leaking_advantage_can_be_followed_by_hand():
    """The worked example: one response, an ordinary number in the padding, no NaN."""
    text = str(checks.gae(junk_left_in_the_padding))
    assert "mask = [[True, True, False]]" in text
    assert "nan" not in text


def test_an_input_that_was_changed_is_not_blamed_on_the_padding():
    def in_place(scores, kl, mask, *, kl_coef):
        kl[~mask] = 0.0
        return from_lists(scores, kl, mask, kl_coef=kl_coef)

    text = str(checks.shape_rewards(in_place))
    assert "right; not yet robust: it modifies its argument kl in place." in text
    assert "padding changes" not in text


# ---- right in another way --------------------------------------------------------------------


def as_a_matrix(rewards, values, mask, *, gamma, lam):
    """delta times the upper triangle of (gamma * lam)^(k - t)."""
    values, rewards = zero_outside(values, mask), zero_outside(rewards, mask)
    following = torch.nn.functional.pad(values[:, 1:], (0, 1))
    deltas = rewards + gamma * following - values
    time = torch.arange(rewards.shape[1])
    distance = (time[:, None] - time[None, :]).clamp(min=0)
    weights = torch.tril((gamma * lam) ** distance.double())
    return (deltas.double() @ weights).float()


def skipping_padding(rewards, values, mask, *, gamma, lam):
    """As verl does: on a masked step what was carried stays as it was."""
    out, after, next_value = torch.zeros_like(rewards), 0.0, torch.zeros(len(rewards))
    for t in reversed(range(rewards.shape[1])):
        found = rewards[:, t] + gamma * next_value - values[:, t] + gamma * lam * after
        after = torch.where(mask[:, t], found, after)
        next_value = torch.where(mask[:, t], values[:, t], next_value)
        out[:, t] = zero_outside(found, mask[:, t])
    return out


def from_lists(scores, kl, mask, *, kl_coef):
    rows = zip(scores.tolist(), kl.tolist(), mask.sum(1).tolist(), strict=True)
    out = torch.zeros_like(kl)
    for i, (score, row, n) in enumerate(rows):
        out[i, :n] = torch.tensor([-kl_coef * x for x in row[:n]])
        out[i, n - 1] += score
    return out


@pytest.mark.parametrize(
    ("name", "function"),
    [("gae", as_a_matrix), ("gae", skipping_padding), ("shape_rewards", from_lists)],
)
def test_another_right_implementation_of_advantages_passes(name, function):
    result = checks.CHECKS[name](function)
    assert result.passed, result


# ---- what the catalogue says of training -----------------------------------------------------
# Two responses in a batch of four columns: the first ends after two tokens.

MASK = [[True, True, False, False], [True, True, True, True]]
VALUES = [[0.1, 0.2, 0.7, 0.9], [0.1, 0.2, 0.3, 0.4]]
SCORES = torch.tensor([1.0, 1.0])


def paid(mistake, kl=None, kl_coef=0.0):
    kl = torch.zeros(2, 4) if kl is None else kl
    version = CATALOGUE["shape_rewards"].version([mistake])
    return version(SCORES, kl, torch.tensor(MASK), kl_coef=kl_coef)


def wrong_gae(mistake, rewards, gamma, lam):
    version = CATALOGUE["gae"].version([mistake])
    return version(rewards, torch.tensor(VALUES), torch.tensor(MASK), gamma=gamma, lam=lam)


def true_gae(rewards, gamma=1.0, lam=0.95):
    return torch.tensor(slow.gae(rewards.tolist(), VALUES, MASK, gamma, lam))


def test_off_by_one_pays_eos_gamma_times_a_value_of_the_padding():
    rewards = paid("score on the last column")
    wrong, right = wrong_gae("off by one at EOS", rewards, 0.5, 0.8), true_gae(rewards, 0.5, 0.8)
    # 0.7 comes after EOS; the token before gets gamma * lam of it.
    assert_close((wrong - right)[0, :2], torch.tensor([0.4 * 0.35, 0.35]))
    assert_close(wrong[1], right[1])


@pytest.mark.parametrize("mistake", ["score on the last column", "score one slot late"])
def test_a_score_on_padding_is_never_paid_to_a_response_that_ends_early(mistake):
    rewards = paid(mistake)
    nothing = torch.zeros_like(rewards)
    assert_close(true_gae(rewards)[0], true_gae(nothing)[0])
    assert_close(true_gae(rewards)[1, 3] - true_gae(nothing)[1, 3], torch.tensor(1.0))


def test_the_slot_after_eos_pays_the_score_with_the_weight_gamma_lam():
    late, nothing = paid("score one slot late"), torch.zeros(2, 4)
    gains = [wrong_gae("slot after EOS takes part", r, 0.5, 0.8) for r in (late, nothing)]
    assert_close((gains[0] - gains[1])[0, 1], torch.tensor(0.4))


def test_a_score_on_every_token_pays_for_length():
    rewards = paid("score on every token")
    returns = slow.monte_carlo_returns(rewards.tolist(), MASK)
    assert returns == [[2.0, 1.0, 0.0, 0.0], [4.0, 3.0, 2.0, 1.0]]


def test_a_long_response_pays_less_per_nat_for_a_mean_at_the_end():
    kl = torch.ones(2, 4)
    charged = -(paid("mean KL at the end", kl, 1.0) - paid("mean KL at the end")).sum(1)
    assert_close(charged, torch.tensor([1.0, 1.0]))  # for 2 nats and for 4


@pytest.mark.parametrize("mistake", ["EOS left out", "ends one token early"])
def test_a_score_at_eos_does_not_reach_the_tokens_before_it(mistake):
    rewards = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    found = wrong_gae(mistake, rewards, 1.0, 0.95)
    gained = found - wrong_gae(mistake, torch.zeros(2, 4), 1.0, 0.95)
    at_eos = 0.0 if mistake == "EOS left out" else 1.0
    assert_close(gained, at_eos * rewards)
    assert true_gae(rewards)[0, 0] - true_gae(0 * rewards)[0, 0] == pytest.approx(0.95)


def test_one_step_errors_bring_a_score_to_the_last_token_alone():
    rewards = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    gained = [wrong_gae("one step only", r, 1.0, 0.95) for r in (rewards, 0 * rewards)]
    assert_close(gained[0] - gained[1], rewards)
