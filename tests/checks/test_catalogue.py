"""The checks: right passes, every known mistake is named, and nothing passes by default."""

import functools
import inspect
import subprocess
import sys

import pytest
import torch

import minippo
from minippo import checks
from minippo.checks import CHECKS, Result
from minippo.checks.engine.cases import draws
from minippo.checks.engine.check import Check
from minippo.checks.engine.judge import close, failure
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
        for draw in draws(f"{check.name} test {seed}", SMALL):
            cases += check.cases(draw)
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
    return torch.max(-advantages * ratio, -advantages * clipped)


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
        ("value_loss", lambda values, returns: (returns - values).square().div(2)),
    ],
)  # fmt: skip
def test_other_right_implementations_pass(name, function):
    result = CHECKS[name](function)
    assert result.passed, result


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
        ("entropy", entropy_of_softmax, "0 log 0 is NaN"),
        ("whiten", whiten_by_std, "Bessel's correction and padding not zero"),
        ("token_log_probs", cross_entropy, "sign turned"),
        ("masked_mean", lambda x, mask: (x * mask).sum() / mask.sum(), "mask multiplied"),
        ("bradley_terry_loss", lambda c, r: -torch.log(torch.sigmoid(c - r)), "overflows"),
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
def test_what_first_time_solvers_write_is_named(name, function, mistake):
    assert CHECKS[name](function).mistake == mistake


def test_what_was_left_out_is_said():
    assert "not checked: dual_clip" in checks.clipped_surrogate(as_a_maximum_of_losses).headline


# ---- the engine ------------------------------------------------------------------------------


def like_gae(change):
    """gae's signature around another result."""

    def mine(rewards, values, mask, *, gamma, lam):
        return change(minippo.gae(rewards, values, mask, gamma=gamma, lam=lam))

    return mine


@pytest.mark.parametrize("nothing", [..., None])
def test_a_stub_is_unfinished_and_not_wrong(nothing):
    result = checks.gae(lambda rewards, values, mask, *, gamma, lam: nothing)
    assert not result.passed
    assert not result.finished
    assert "not finished yet" in str(result)


def test_not_implemented_is_unfinished():
    def mine(rewards, values, mask, *, gamma, lam):
        raise NotImplementedError

    assert not checks.gae(mine).finished


def test_an_operation_that_torch_lacks_is_an_error_and_not_a_stub():
    result = checks.masked_mean(lambda x, mask: (mask & x).sum())
    assert result.finished
    assert "not implemented for 'Float'" in str(result)


def test_gradients_are_asked_for_whatever_the_notebook_has_switched_off():
    with torch.no_grad():
        assert checks.kl_k1(minippo.kl_k1).passed
        assert not checks.kl_k1(torch.no_grad()(minippo.kl_k1)).passed


def test_an_exit_is_an_error():
    assert "SystemExit" in str(checks.kl_k1(lambda p, q: sys.exit()))


def test_a_function_of_torch_can_be_checked():
    assert checks.kl_k1(torch.sub).passed


def test_a_controller_whose_update_is_a_stub_is_unfinished():
    class Mine:
        def __init__(self, coef, *, target):
            self.coef = coef

        def update(self, kl, n_episodes): ...

    assert not checks.PenaltyKL(Mine).finished


def test_an_exception_is_shown_at_the_students_line():
    def mine(rewards, values, mask, *, gamma, lam):
        return rewards @ values

    result = checks.gae(mine)
    assert not result.passed
    assert "in mine: return rewards @ values" in str(result)
    assert "RuntimeError" in str(result)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda a: a.tolist(), "It must return a tensor; a list"),
        (lambda a: (a, a), "It must return a tensor; a tuple (Tensor, Tensor) came"),
        (lambda a: a.sum(1), "The shape must be [1, 1]; [1] came"),
        (lambda a: a.long(), "The dtype must be float; int64 came"),
        (lambda a: 2 * a, "Everywhere it is 2 times the right value"),
        (lambda a: a + 0.5, "Everywhere it is the right value +0.5"),
    ],
)
def test_an_unknown_mistake_is_described(change, says):
    result = checks.gae(like_gae(change))
    assert not result.passed
    assert result.mistake is None
    assert says in str(result)


def test_a_turned_sign_is_described():
    assert "with the sign turned" in str(
        checks.masked_mean(lambda x, mask: -minippo.masked_mean(x, mask))
    )


def test_an_input_that_was_modified_is_found():
    def mine(rewards, values, mask, *, gamma, lam):
        values[0, 0] += 1
        values[0, 0] -= 2
        return minippo.gae(rewards, values + 1, mask, gamma=gamma, lam=lam)

    assert "modified its argument values" in str(checks.gae(mine))


def test_global_random_numbers_are_noticed():
    assert "global random state of torch" in str(
        checks.gae(like_gae(lambda a: a + 0 * torch.rand(1)))
    )


def test_junk_in_the_padding_is_named_as_the_cause():
    def mine(log_probs, mask):
        return torch.where(mask, log_probs, 0.125 * log_probs.detach().nan_to_num(7.0)).sum(1)

    result = checks.sequence_log_prob(mine)
    assert "It changes when the padding changes" in str(result)


def test_the_keyword_that_decides_is_named():
    def mine(rewards, values, mask, *, gamma, lam):
        return minippo.gae(rewards, values, mask, gamma=gamma, lam=min(lam, 0.5))

    assert "Right where lam = 0.0, wrong where lam = 0.95 or 1.0" in str(checks.gae(mine))


def test_the_place_is_named():
    def mine(ratio, advantages, clip_range):
        loss = minippo.clipped_surrogate(ratio, advantages, clip_range)
        return torch.where(advantages < 0, loss * loss.abs(), loss)

    assert "It is wrong only where the advantage is negative" in str(checks.clipped_surrogate(mine))


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda log_probs, ref: (log_probs - ref).detach() ** 2 / 2 + 0 * ref, "gradient cut"),
        (
            lambda log_probs, ref: (
                (log_probs - ref).detach() ** 2 / 2 + log_probs - log_probs.detach()
            ),
            "The value is right, but the gradient to log_probs is wrong",
        ),
        (
            lambda log_probs, ref: (log_probs - ref) ** 2 / 2 + 0 * (log_probs - log_probs).sqrt(),
            "The value is right, but the gradient to log_probs is NaN",
        ),
    ],
)
def test_a_right_value_with_a_wrong_gradient_fails(function, says):
    assert says in str(checks.kl_k2(function))


def test_a_gradient_that_must_not_be_is_found():
    def mine(log_probs, advantages):
        return -(advantages.detach() * log_probs) + 0.125 * (advantages - advantages.detach())

    assert "A gradient reaches advantages: none may" in str(checks.reinforce_loss(mine))


@pytest.mark.parametrize(
    ("thing", "says"),
    [
        (3, "A function is needed; a int came"),
        (lambda a, b: a, "It is called with (rewards, values, mask, gamma, lam), but"),
    ],
)
def test_what_cannot_be_called_is_said(thing, says):
    result = checks.gae(thing)
    assert not result.passed
    assert says in str(result)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("AdaptiveKL", "called with (coef, target, horizon), but too many positional"),
        ("combined_loss", "called with (policy_loss, value_loss, entropy, kl, c1, c2, c3), but"),
        ("ppo_loss", "called with (policy, batch, advantages, returns, config, kl_loss_coef), but"),
        ("ppo_update", "called with (policy, optimizer, rollout, config), but too many"),
    ],
)
def test_what_takes_other_arguments_is_told_which(name, says):
    assert says in str(CHECKS[name](lambda: None))


def test_the_smallest_case_is_shown():
    text = str(checks.kl_k1(lambda p, q: p - 2 * q))
    assert "The smallest case that fails" in text
    assert text.count("log_probs = [[") == 2  # one by one: log_probs and ref_log_probs
    assert "expected [[" in text


def test_require_raises_for_graders():
    checks.kl_k1(minippo.kl_k1).require()
    with pytest.raises(AssertionError, match="sign turned"):
        checks.kl_k1(lambda p, q: q - p).require()


def test_the_page_says_the_same_and_escapes():
    result = Result("gae", False, "not yet <b>", lines=("a < b",))
    page = result._repr_html_()
    assert "not yet &lt;b&gt;" in page
    assert "a &lt; b" in page
    named = checks.kl_k1(lambda p, q: q - p)
    for mistake in named.mistakes:
        assert mistake.hint.split("?")[0] in named._repr_html_()


def test_a_solution_is_shown_after_an_attempt_or_on_asking_twice(monkeypatch):
    monkeypatch.setattr("minippo.checks.engine.check._ATTEMPTED", set())
    assert "try it first" in repr(checks.solution("kl_k1"))
    assert inspect.getsource(minippo.kl_k1) == repr(checks.solution("kl_k1"))
    checks.kl_k2(lambda p, q: p - q)
    assert repr(checks.solution("kl_k2")) == inspect.getsource(minippo.kl_k2)
    assert "try it first" in repr(checks.solution("ppo_update"))
    assert "for _ in range(config.epochs)" in repr(checks.solution("ppo_update"))
    with pytest.raises(ValueError, match="name must be one of token_log_probs"):
        checks.solution("nothing")


def test_a_stub_is_no_attempt(monkeypatch):
    monkeypatch.setattr("minippo.checks.engine.check._ATTEMPTED", set())
    checks.kl_k1(lambda p, q: None)
    assert "try it first" in repr(checks.solution("kl_k1"))


def test_checks_of_the_mathematics_load_no_transformers():
    program = (
        "import sys, minippo; from minippo import checks; assert checks.gae(minippo.gae).passed;"
        "print('ppo_loss' in list(checks.CHECKS), 'transformers' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "True False"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = checks.nothing


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


def test_p_counted_twice_gives_what_is_said():
    z = torch.tensor([0.2, 0.3, 0.5]).log()
    assert float(CATALOGUE["entropy"].version(["p counted twice"])(z)) == pytest.approx(
        0.346, abs=1e-3
    )
    assert float(CATALOGUE["entropy"].version([])(z)) == pytest.approx(1.030, abs=1e-3)


def test_close_by_hand():
    assert close([1.0, [2.0]], [1.0 + 9e-6, [2.0 - 1.9e-5]])
    assert not close([1.0], [1.0 + 1.1e-5])
    assert close([float("nan"), float("inf")], [float("nan"), float("inf")])
    assert not close([float("inf")], [-float("inf")])
    assert not close([0.0], [float("nan")])
