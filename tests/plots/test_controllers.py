"""The controller's curves, against its definition."""

import pytest

from minippo import plots
from minippo.checks import definitions


@pytest.mark.parametrize(("target", "horizon"), [(4.0, 1000), (1.0, 100), (10.0, 10000)])
def test_the_controllers_curves_are_its_definition(target, horizon):
    picture = plots.KLController()
    sentence = picture.move(target=target, horizon=horizon)
    left, right = picture.figure.axes
    kls = list(left.lines[0].get_ydata())
    coefs = definitions.adaptive_kl(0.05, target, horizon, kls, 128)
    assert list(right.lines[0].get_ydata()) == pytest.approx(coefs)
    assert f"the KL is {kls[-1]:.1f} (highest {max(kls):.1f})" in sentence
    before = [0.0, *kls[:-1]]
    was = [0.05, *coefs[:-1]]
    moved = [k + 0.2 * (12 / (1 + 10 * c) - k) for k, c in zip(before, was, strict=True)]
    assert kls == pytest.approx(moved)
