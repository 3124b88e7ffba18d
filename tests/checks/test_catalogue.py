"""Every check: the right passes, every mistake is named, and what the catalogue says is true."""

import functools

import pytest
import torch

import minippo
from minippo import checks
from minippo.checks import CHECKS
from minippo.checks.engine.check import Check
from minippo.checks.engine.judge import failure
from minippo.checks.mistakes import CATALOGUE
from tests.soak import soak

CORE = [
    "token_log_probs", "whiten", "bradley_terry_loss", "clipped_surrogate", "value_loss", "gae",
    "entropy", "kl_k3", "shape_rewards", "ppo_loss",
]  # fmt: skip
MISTAKES = [(name, m.name) for name in CHECKS for m in CATALOGUE[name].mistakes]
RIGHT = {}  # by check and case
SMALL = ((1, 2, 2), (2, 3, 2), (3, 2, 3))

pytestmark = pytest.mark.usefixtures("without_hook", "remembered")
each_check = pytest.mark.parametrize("name", CHECKS)


def wrong_on(check, cases, function) -> list[str]:
    found = [failure(c, check.expected(c), check.observe(function, c)) for c in cases]
    return [f"{f.part}: {f.case}" for f in found if f is not None]


def some_cases(check, n):
    """About n cases of many seeds, small ones."""
    cases = []
    for seed in range(n):
        cases += check.generate(f"test {seed}", sizes=SMALL)
        if len(cases) >= n:
            break
    return cases[:n]


@pytest.fixture
def remembered(monkeypatch):
    """What is right on a case is worked out once, not once for each mistake."""
    expected = Check.expected

    def known(check, case):
        key = check.name, repr(case)
        if key not in RIGHT:
            RIGHT[key] = expected(check, case)
        return RIGHT[key]

    monkeypatch.setattr(Check, "expected", known)


# ---- every function --------------------------------------------------------------------------


@each_check
def test_minippos_own_function_passes(name):
    result = CHECKS[name](CHECKS[name].reference)
    assert result.passed, result
    assert result.mistake is None


@each_check
def test_the_flawed_function_without_a_flaw_passes(name):
    result = CHECKS[name](CATALOGUE[name].version(()))
    assert result.passed, result


@pytest.mark.parametrize(("name", "mistake"), MISTAKES)
def test_every_mistake_is_rejected_and_named(name, mistake):
    result = CHECKS[name](CATALOGUE[name].version([mistake]))
    assert not result.passed
    assert result.mistake == mistake


@each_check
def test_the_reference_is_the_definition_on_generated_cases(name):
    check = CHECKS[name]
    cases = some_cases(check, n := soak(20, 1000))
    assert len(cases) == n
    assert wrong_on(check, cases, check.reference) == []


@pytest.mark.parametrize("name", CORE)
def test_two_mistakes_at_once_are_recognised(name):
    """Of the first mistake with each other one, most pairs that are still wrong in a new way."""
    first, *others = [m.name for m in CATALOGUE[name].mistakes][: 1 + soak(4, 100)]
    named = [CHECKS[name](CATALOGUE[name].version([first, o])).mistake for o in others]
    assert None not in named  # passed, or unknown
    assert any(n == f"{first} and {o}" for n, o in zip(named, others, strict=True))


def test_the_catalogue_has_the_size_that_was_asked_for():
    assert len(MISTAKES) >= 100
    assert {
        name: len(CATALOGUE[name].mistakes) for name in CORE if len(CATALOGUE[name].mistakes) < 6
    } == {}
    assert set(CATALOGUE) == set(CHECKS)


def test_every_mistake_says_what_was_done_and_where_to_look():
    for name in CHECKS:
        for m in CATALOGUE[name].mistakes:
            assert m.what.endswith("."), (name, m.name)
            assert m.hint[-1] in ".?", (name, m.name)
            assert m.source
            assert not m.symptom or m.symptom[-1] in ".?", (name, m.name)


# ---- right in another way --------------------------------------------------------------------


def by_rows_gae(rewards, values, mask, *, gamma, lam, bootstrap=None):
    """A loop over Python floats, row by row."""
    out = torch.zeros_like(rewards)
    for i, n in enumerate(mask.sum(1).tolist()):
        after, next_value = 0.0, 0.0 if bootstrap is None else float(bootstrap[i])
        for t in range(n - 1, -1, -1):
            delta = float(rewards[i, t]) + gamma * next_value - float(values[i, t])
            after = delta + gamma * lam * after
            out[i, t], next_value = after, float(values[i, t])
    return out


def in_double_precision(logits, *, temperature):
    p = torch.distributions.Categorical(logits=(logits / temperature).double().clamp(min=-1e30))
    return p.entropy().to(torch.float32)


def in_place_on_a_copy(x, mask, *, keep_mean=False):
    y = x.float().clone()
    y[~mask] = 0
    real = y[mask]
    y[mask] = (real - real.mean()) / (real.std(correction=0) ** 2 + 1e-8).sqrt()
    y[mask] += real.mean() if keep_mean else 0
    return y


def as_a_maximum_of_losses(ratio, advantages, clip_range):
    clipped = torch.clamp(ratio, min=1 - clip_range, max=1 + clip_range)
    return torch.max(-advantages.detach() * ratio, -advantages.detach() * clipped)


def with_expm1(log_probs, ref_log_probs):
    d = ref_log_probs - log_probs
    return torch.expm1(d) - d


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("gae", by_rows_gae),
        ("gae", torch.no_grad()(minippo.gae)),
        ("entropy", in_double_precision),
        ("whiten", in_place_on_a_copy),
        ("clipped_surrogate", as_a_maximum_of_losses),
        ("kl_k3", with_expm1),
        ("bradley_terry_loss", lambda c, r: -torch.nn.functional.logsigmoid(c.float() - r.float())),
        ("value_loss", lambda values, returns: (returns.detach() - values).square().div(2)),
    ],
)  # fmt: skip
def test_other_right_implementations_pass(name, function):
    result = CHECKS[name](function)
    assert result.passed, result


def test_the_idea_comes_before_what_is_data():
    """A leak is named once the rest is right; before, the mistake itself is."""
    leaky = checks.value_loss(lambda values, returns: 0.5 * (values - returns) ** 2)
    assert leaky.headline == "right; not yet robust: data not detached."
    assert leaky.idea
    assert not leaky.passed
    both = checks.value_loss(lambda values, returns: (values - returns) ** 2)
    assert both.headline == "not yet: half forgotten."


# ---- wrong as people are wrong ---------------------------------------------------------------


def gae_without_the_mask(rewards, values, mask, *, gamma, lam):
    advantages, last = torch.zeros_like(rewards), 0
    for t in reversed(range(rewards.shape[1])):
        next_value = values[:, t + 1] if t + 1 < rewards.shape[1] else 0
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        last = delta + gamma * lam * last
        advantages[:, t] = last
    return advantages


def entropy_of_softmax(logits, *, temperature):
    p = torch.softmax(logits / temperature, -1)
    return -(p * torch.log(p)).sum(-1)


def whiten_by_std(x, mask):
    real = x[mask]
    sd = real.std() if len(real) > 1 else torch.tensor(torch.nan)  # which torch would warn of
    return (x - real.mean()) / (sd + 1e-8)


def cross_entropy(logits, tokens, *, temperature=1.0):
    z = logits.permute(0, 2, 1) / temperature
    return torch.nn.functional.cross_entropy(z, tokens, reduction="none")


def rewards_on_the_last_column(scores, kl, mask, *, kl_coef):
    rewards = -kl_coef * kl
    rewards[:, -1] += scores
    return rewards


@pytest.mark.parametrize(
    ("name", "function", "mistake"),
    [
        ("gae", gae_without_the_mask, "mask not used"),
        ("entropy", entropy_of_softmax, "0 log 0 is NaN and stays in half precision"),
        ("whiten", whiten_by_std, "Bessel's correction and padding not zero"),
        ("token_log_probs", cross_entropy, "sign turned"),
        (
            "masked_mean",
            lambda x, mask: (x * mask).sum() / mask.sum(),
            "mask multiplied and stays in half precision",
        ),
        (
            "bradley_terry_loss",
            lambda c, r: -torch.log(torch.sigmoid(c - r)),
            "overflows and stays in half precision",
        ),
        # Without a margin "margin added" is right, and so no explanation.
        (
            "bradley_terry_loss",
            lambda c, r: torch.nn.functional.softplus(r - c),
            "stays in half precision",
        ),
        ("shape_rewards", rewards_on_the_last_column, "score on the last column and padding paid"),
        (
            "clipped_surrogate",
            lambda r, a, e: -torch.max(r * a, r.clamp(1 - e, 1 + e) * a),
            "maximum instead of minimum",
        ),
    ],
)
def test_mistakes_of_first_time_solvers_are_named(name, function, mistake):
    assert CHECKS[name](function).mistake == mistake


def test_a_result_names_the_keyword_that_was_not_checked():
    assert "not checked: dual_clip" in checks.clipped_surrogate(as_a_maximum_of_losses).headline


# ---- symptoms that state a number ------------------------------------------------------------


def expectation(function, p=(0.2, 0.3, 0.5), q=(0.5, 0.4, 0.1)):
    """The mean over tokens sampled from p."""
    log_p, log_q = torch.tensor(p).log(), torch.tensor(q).log()
    return float((torch.tensor(p) * function(log_p, log_q)).sum())


@pytest.mark.parametrize(
    ("name", "mistake", "mean"),
    [
        ("kl_k1", "absolute value", 1.074),
        ("kl_k1", "clamped at zero", 0.805),
        ("kl_k1", "the printed sketch", 0.0457),
        ("kl_k3", "upside down", 1.27),
    ],
)
def test_the_means_in_the_catalogue_are_true(name, mistake, mean):
    version = functools.partial(CATALOGUE[name].version([mistake]))
    assert expectation(version) == pytest.approx(mean, rel=3e-3)
    assert expectation(CATALOGUE[name].version([])) == pytest.approx(0.535, abs=5e-4)
    assert f"{mean:.4g}" in CATALOGUE[name][mistake].symptom


def test_p_counted_twice_gives_the_number_in_the_catalogue():
    z = torch.tensor([0.2, 0.3, 0.5]).log()
    assert float(CATALOGUE["entropy"].version(["p counted twice"])(z)) == pytest.approx(
        0.346, abs=1e-3
    )
    assert float(CATALOGUE["entropy"].version([])(z)) == pytest.approx(1.030, abs=1e-3)
