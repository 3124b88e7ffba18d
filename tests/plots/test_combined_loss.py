"""The terms of the loss and how they push, by their formulas."""

import importlib
import math

import pytest

from minippo import plots
from minippo.checks import definitions

# `plots.combined_loss` is the function of that name, and hides its module.
combined = importlib.import_module("minippo.plots.combined_loss")


@pytest.mark.parametrize("a", [-1.5, 0.0, 1.0])
def test_the_policy_term_of_the_combined_loss_alone_is_the_policy_gradient(a):
    picture = plots.CombinedLoss()
    picture.move(advantage=a, c2=0.0, c3=0.0)
    (line,) = [x for x in picture.figure.axes[0].lines if x.get_label() == "sum"]
    z = combined.Z.tolist()
    p = [math.exp(x) for x in definitions.log_softmax(z)]
    wanted = [a * ((i == combined.CHOSEN) - p[i]) for i in range(5)]
    assert list(line.get_ydata()) == pytest.approx(wanted, abs=1e-9)


def test_bonus_and_kl_push_as_their_formulas_say():
    z, ref = combined.Z.tolist(), combined.REFERENCE.tolist()
    bonus = definitions.gradient(definitions.entropy, z)
    log_p = definitions.log_softmax(z)
    gap = log_p[0] - definitions.log_softmax(ref)[0]
    kl = [-gap * ((i == 0) - math.exp(x)) for i, x in enumerate(log_p)]
    table = combined.pushes(0.0, 0.5, 0.25)
    assert table[0].abs().max() == 0
    assert table[1].tolist() == pytest.approx([0.5 * x for x in bonus], abs=1e-7)
    assert table[2].tolist() == pytest.approx([0.25 * x for x in kl], abs=1e-9)
    assert gap > 0 > table[2][0]  # the policy likes it more than the reference does


def test_small_pushes_fill_the_axis_and_the_picture_follows_it():
    picture = plots.CombinedLoss()
    axes = picture.figure.axes[0]
    picture.move(advantage=1.0)
    wide = picture.png()
    for settings in ({"advantage": 0.0}, {"advantage": -1.5, "c2": 1.0, "c3": 1.0}):
        picture.move(**settings)
        longest = max(abs(float(bar.get_height())) for bar in axes.patches)
        assert 0.25 < longest / axes.get_ylim()[1] < 1
        assert picture.png() != wide
    picture.move(advantage=1.0)
    assert picture.png() == wide
