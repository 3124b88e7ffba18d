"""Softmax, KL and estimators as pictures, against the definitions."""

import itertools
import math

import numpy as np
import pytest
from matplotlib.text import Text

from minippo import plots
from minippo.checks import definitions
from tests.plots.examples import LOGITS, WORDS


@pytest.mark.parametrize(("position", "t"), list(itertools.product([0, 1], [0.1, 0.7, 1.0, 3.0])))
def test_the_bars_are_the_softmax_and_the_entropy_is_said(position, t):
    picture = plots.NextToken(LOGITS, WORDS)
    sentence = picture.move(position=position, temperature=t)
    p = [math.exp(x) for x in definitions.log_softmax(LOGITS[position].tolist(), t)]
    heights = [bar.get_height() for bar in picture.figure.axes[0].patches]
    assert heights[:4] == pytest.approx(sorted(p, reverse=True), abs=1e-9)
    assert heights[4:] == [0.0] * 8
    h = definitions.entropy(LOGITS[position].tolist(), t)
    assert f"entropy {h:.2f} of at most 1.39 nats" in sentence
    assert f"likeliest with {max(p):.2f}" in sentence
    if position == 0:
        assert "'a' is likeliest" in sentence


def test_before_lesson_09_no_picture_of_the_next_token_speaks_of_entropy():
    picture = plots.NextToken(LOGITS, WORDS, show_entropy=False)
    sentence = picture.move()
    panels = plots.next_token_panels(LOGITS, WORDS, show_entropy=False)
    shown = [
        text.get_text() for figure in (picture.figure, panels) for text in figure.findobj(Text)
    ]
    assert "entropy" not in sentence
    assert [text for text in shown if "nats" in text or "entropy" in text] == []
    assert panels.axes[0].get_title() == "temperature 0.5"


@pytest.mark.parametrize("shift", [0.0, 0.25, 1.5, 4.0])
def test_the_two_kls_and_the_estimators_are_those_of_the_definitions(shift):
    picture = plots.KLTwoWays()
    sentence = picture.move(shift=shift)
    ref = picture.Z.tolist()
    z = [a + shift * b for a, b in zip(ref, [1, 0, 0, 0, -0.5], strict=True)]
    forward, backward = definitions.exact_kl(z, ref), definitions.exact_kl(ref, z)
    assert f"KL(p || q) = {abs(forward):.2f} nats, KL(q || p) = {abs(backward):.2f}" in sentence
    log_p, log_q = definitions.log_softmax(z), definitions.log_softmax(ref)
    right = picture.figure.axes[1]
    for name, line in zip(("k1", "k2", "k3"), [x for x in right.lines if x.get_label()[0] == "k"],
                          strict=True):  # fmt: skip
        k = [getattr(definitions, f"kl_{name}")(a, b) for a, b in zip(log_p, log_q, strict=True)]
        mean = sum(math.exp(a) * x for a, x in zip(log_p, k, strict=True))
        assert line.get_ydata() == pytest.approx([mean] * 5, abs=1e-9)


def test_far_away_k3_spreads_more_than_k1_and_near_by_less():
    def spread(shift):
        picture = plots.KLTwoWays()
        picture.move(shift=shift)
        lines = {x.get_label(): i for i, x in enumerate(picture.figure.axes[1].lines)}
        bars = picture.figure.axes[1].lines
        return {n: np.ptp(bars[lines[n] + 1].get_ydata()) for n in ("k1", "k3")}

    near, far = spread(0.5), spread(2.5)
    assert near["k1"] > near["k3"]
    assert far["k3"] > far["k1"]
