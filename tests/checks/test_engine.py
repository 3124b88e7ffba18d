"""The engine of the checks: what a result says of stubs, errors, gradients and values."""

import inspect
import subprocess
import sys

import pytest
import torch

import minippo
from minippo import checks
from minippo.checks import CHECKS, Result
from minippo.checks.engine.contract import contract
from minippo.checks.engine.judge import close

pytestmark = pytest.mark.usefixtures("without_hook")


def like_gae(change):
    """gae's signature around another result."""

    def mine(rewards, values, mask, *, gamma, lam):
        return change(minippo.gae(rewards, values, mask, gamma=gamma, lam=lam))

    return mine


@pytest.mark.parametrize(
    "stub",
    [
        lambda rewards, values, mask, *, gamma, lam: ...,
        lambda rewards, values, mask, *, gamma, lam: None,
        lambda rewards, values, mask, *, gamma, lam: rewards + ...,
    ],
)
def test_a_stub_is_unfinished_and_not_wrong(stub):
    result = checks.gae(stub)
    assert not result.passed
    assert not result.finished
    assert "not finished yet" in str(result)


def test_a_function_that_raises_not_implemented_is_unfinished():
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


def test_a_function_that_exits_is_an_error():
    assert "SystemExit" in str(checks.kl_k1(lambda p, q: sys.exit()))


def test_a_function_of_torch_can_be_checked():
    assert checks.kl_k1(torch.sub).passed


def test_a_controller_whose_update_is_a_stub_is_unfinished():
    class Mine:
        def __init__(self, coef, *, target, horizon):
            self.coef = coef

        def update(self, kl, n_episodes): ...

    assert not checks.AdaptiveKL(Mine).finished


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
        (lambda a: a.sum(1), "[1, 3]; [1] came: was an axis averaged or summed away?"),
        (lambda a: a.long(), "The dtype must be float; int64 came"),
        (lambda a: 2 * a, "Everywhere it is 2 times the right value"),
        (lambda a: a + 0.5, "Everywhere it is the right value +0.5"),
    ],
)
def test_an_unknown_mistake_in_gae_is_described(change, says):
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

    assert "Right where lam = 0.0 or 0.5, wrong where lam = 0.95 or 1.0." in str(checks.gae(mine))


def test_the_place_of_the_largest_error_is_named():
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

    assert checks.reinforce_loss(mine).headline == "right; not yet robust: data not detached."


@pytest.mark.parametrize(
    ("thing", "says"),
    [
        (3, "A function is needed; a int came"),
        (lambda a, b: a, "It is called with (rewards, values, mask, gamma, lam), but"),
    ],
)
def test_a_thing_that_cannot_be_called_is_named(thing, says):
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
def test_a_function_that_takes_other_arguments_is_told_which(name, says):
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


def test_the_page_of_a_result_says_the_same_and_escapes():
    result = Result("gae", False, "not yet <b>", lines=("a < b",))
    page = result._repr_html_()
    assert "not yet &lt;b&gt;" in page
    assert "a &lt; b" in page
    named = checks.kl_k1(lambda p, q: q - p)
    for mistake in named.mistakes:
        assert mistake.hint.split("?")[0] in named._repr_html_()


def test_a_solution_is_shown_after_an_attempt_or_on_asking_twice(monkeypatch):
    monkeypatch.setattr("minippo.checks.engine.check._ATTEMPTED", set())
    assert "try it first" in repr(checks.solution("masked_mean"))
    shown = checks.solution("masked_mean")
    assert repr(shown) == contract("masked_mean").solution
    assert shown._repr_markdown_() == f"```python\n{shown!r}```"
    checks.sft_loss(lambda logits, tokens, mask: logits.sum())
    assert repr(checks.solution("sft_loss")) == contract("sft_loss").solution
    with pytest.raises(ValueError, match="name must be one of token_log_probs"):
        checks.solution("nothing")


def test_a_solution_without_a_contract_is_minippos_source(monkeypatch):
    monkeypatch.setattr("minippo.checks.engine.check._ATTEMPTED", {"kl_k2"})
    monkeypatch.setattr("minippo.checks.engine.check.contract", lambda name: None)
    assert repr(checks.solution("kl_k2")) == inspect.getsource(minippo.kl_k2)


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


def test_close_of_the_checks_by_hand():
    assert close([1.0, [2.0]], [1.0 + 9e-6, [2.0 - 1.9e-5]])
    assert not close([1.0], [1.0 + 1.1e-5])
    assert close([float("nan"), float("inf")], [float("nan"), float("inf")])
    assert not close([float("inf")], [-float("inf")])
    assert not close([0.0], [float("nan")])
