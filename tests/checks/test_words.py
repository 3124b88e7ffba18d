"""What a check says in words of a mistake that it does not know, and what it does not ask."""

import pytest
import torch
from torch import where

import minippo
from minippo import checks
from minippo.checks import CHECKS
from minippo.checks.engine.cases import settings
from minippo.checks.mistakes import NOBODY

pytestmark = pytest.mark.usefixtures("without_hook")


# ---- one setting at a time -------------------------------------------------------------------


def test_settings_change_one_keyword_at_a_time_and_then_all():
    assert settings({"a": 1, "b": 2}, a=3, b=4) == [
        {"a": 1, "b": 2}, {"a": 3, "b": 2}, {"a": 1, "b": 4}, {"a": 3, "b": 4},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "mine", "says"),
    [
        (
            "gae",
            lambda r, v, m, *, gamma, lam: minippo.gae(r, v, m, gamma=gamma),
            "Right where lam = 0.95, wrong where lam = 0.0 or 0.5 or 1.0.",
        ),
        (
            "gae",
            lambda r, v, m, *, gamma, lam: minippo.gae(r, v, m, gamma=1.0, lam=gamma * lam),
            None,
        ),
        (
            "td_errors",
            lambda r, v, m, *, gamma, bootstrap=None: minippo.td_errors(
                r, v, m, gamma=gamma, bootstrap=None if bootstrap is None else bootstrap / gamma
            ),
            "Right without bootstrap, else wrong.",
        ),
        (
            "whiten",
            lambda x, m, *, keep_mean=False: minippo.whiten(x, m) + 3 * keep_mean,
            "Right where keep_mean = False, wrong where keep_mean = True.",
        ),
    ],
)
def test_no_keyword_is_blamed_but_the_one_that_decides(name, mine, says):
    lines = [line for line in CHECKS[name](mine).lines if line.startswith("Right w")]
    assert lines == ([says] if says else [])


# ---- said in words ---------------------------------------------------------------------------


def like_gae(change):
    def mine(rewards, values, mask, *, gamma, lam):
        return change(minippo.gae(rewards, values, mask, gamma=gamma, lam=lam), mask)

    return mine


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda a, m: a.mean(), "You averaged: one number came where [1, 3] is asked."),
        (lambda a, m: a.sum(), "You summed: one number came where [1, 3] is asked."),
        (
            lambda a, m: a.sum() + 1,
            "One number came where [1, 3] is asked: was it averaged or summed?",
        ),
        (lambda a, m: a.squeeze(), "[3] came: an axis of length 1 was added or squeezed away."),
        (lambda a, m: a[..., None], "[1, 3, 1] came: an axis of length 1 was added or squeezed"),
        (lambda a, m: a[:, 1:], "[1, 2] came: a column is lost. Was it shifted?"),
        (lambda a, m: minippo.whiten(a, m), "right but for a shift and a scale."),
        (lambda a, m: a / (1 + a.std(1, correction=0, keepdim=True)), "but for one factor"),
    ],
)
def test_the_verdict_says_what_became_of_the_numbers(change, says):
    text = str(checks.gae(like_gae(change)))
    assert says in text
    assert "rewards = [[" in text
    assert "]]\n" in text


def test_a_structural_mistake_is_shown_where_it_shows():
    """Where one number is asked, an average of one looks the same."""
    assert "expected [[0." not in str(checks.kl_k3(lambda p, q: minippo.kl_k3(p, q).mean()))
    assert "where [2, 3] is asked" in str(checks.kl_k3(lambda p, q: minippo.kl_k3(p, q).mean()))


@pytest.mark.parametrize(
    ("mine", "says"),
    [
        (lambda x, mask: (x * mask).sum(1) / mask.sum(1), "[2] came: was it taken row by row?"),
        (lambda x, mask: where(mask, x, 0.0), "came: is the mean missing?"),
    ],
)
def test_more_than_one_number_is_a_missing_mean(mine, says):
    assert says in checks.masked_mean(mine).headline


def test_a_missing_return_is_said():
    def mine(log_probs, mask):
        total = where(mask, log_probs, 0.0).sum(1)  # noqa: F841

    result = checks.sequence_log_prob(mine)
    assert result.finished
    assert result.headline == "not yet. It returned None: is `return` missing?"


def test_a_body_that_still_holds_the_dots_is_unfinished():
    def mine(log_probs, mask):
        kept = where(mask, log_probs, 0.0)  # noqa: F841
        ...

    assert not checks.sequence_log_prob(mine).finished


@pytest.mark.parametrize(
    "mine",
    [lambda r, a, e: (a * 1.0 & r) > 0, lambda r, a, e: (r > 1 + e & a > 0) | (r < 1 - e & a < 0)],
)
def test_a_missing_bracket_is_hinted_at(mine):
    text = str(checks.clip_is_active(mine))
    assert "put brackets around each comparison" in text


def test_everywhere_means_everywhere():
    """Twice the right value, but only for large ratios: then not everywhere."""
    somewhere = str(checks.kl_k3(lambda p, q: minippo.kl_k3(p, q) * where(p < -8, 2.0, 1.0)))
    assert "Everywhere" not in somewhere
    assert "Everywhere it is 2 times the right value." in str(
        checks.kl_k3(lambda p, q: 2 * minippo.kl_k3(p, q))
    )


def test_nobody_is_no_place_to_have_seen_a_mistake():
    sources = {m.source for flawed in CHECKS.values() for m in flawed.flawed.mistakes}
    assert not [source for source in sources if "through" in source]
    result = checks.probability_ratio(lambda a, b: (b - a).exp())
    assert result.mistakes[0].source == NOBODY
    assert "Seen in" not in str(result)
    half = str(checks.probability_ratio(lambda a, b: torch.exp(a - b.detach())))
    assert "Seen in: transformers #31267" in half


# ---- what is not asked -----------------------------------------------------------------------


def test_any_keywords_do_not_mean_that_optional_ones_are_asked():
    def mine(ratio, advantages, clip_range, **more):
        a = advantages.detach()
        return -torch.min(ratio * a, ratio.clamp(1 - clip_range, 1 + clip_range) * a)

    result = checks.clipped_surrogate(mine)
    assert result.passed
    assert "not checked: dual_clip" in result.headline


def test_a_controller_whose_update_calls_a_closure_is_no_stub():
    def controller(step):
        class Mine:
            def __init__(self, coef, *, target, horizon):
                self.coef, self.target, self.horizon = coef, target, horizon

            def update(self, kl, n_episodes):
                step(self, kl, n_episodes)

        return Mine

    def step(self, kl, n):
        self.coef *= 1 + min(max(kl / self.target - 1, -0.2), 0.2) * n / self.horizon

    assert checks.AdaptiveKL(controller(step)).passed


def test_a_students_print_is_shown_once(capsys):
    def mine(log_probs, ref_log_probs):
        print("here")
        return log_probs - ref_log_probs

    assert checks.kl_k1(mine).passed
    assert capsys.readouterr().out == "here\n"
