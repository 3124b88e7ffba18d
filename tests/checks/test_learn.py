"""What the check of the loop that learns says of loops that others would write."""

import pytest

from minippo import checks, reinforce_loss

pytestmark = pytest.mark.usefixtures("without_hook")


def step(answers, log_probs, score, optimizer, baseline):
    scores = score(answers)
    optimizer.zero_grad()
    reinforce_loss(log_probs, scores - baseline).mean().backward()
    optimizer.step()
    return scores.mean()


def by_tensors(sample, score, optimizer, *, steps, baseline=0.0):
    return [step(*sample(), score, optimizer, baseline) for _ in range(steps)]


def test_a_loop_that_returns_tensors_passes():
    assert checks.learn(by_tensors).passed


def test_a_loop_that_samples_before_it_is_told_where_to_sample():
    def early(sample, score, optimizer, *, steps, baseline=0.0):
        written = sample()
        return [float(step(*written, score, optimizer, baseline)) for _ in range(steps)]

    result = checks.learn(early)
    assert not result.passed
    assert "call sample() in each step" in str(result)


def test_a_loop_that_forgets_to_return_is_told_so():
    def silent(sample, score, optimizer, *, steps, baseline=0.0):
        by_tensors(sample, score, optimizer, steps=steps, baseline=baseline)

    assert "is `return` missing?" in str(checks.learn(silent))


def test_a_second_minus_sign_is_named():
    def descends(sample, score, optimizer, **settings):
        return by_tensors(lambda: negated(*sample()), score, optimizer, **settings)

    def negated(answers, log_probs):
        return answers, -log_probs

    assert checks.learn(descends).mistake == "sign turned"
