"""Clip and penalty: curves, shading and sentences against the formulas."""

import itertools

import numpy as np
import pytest
import torch

from minippo import plots

EPSILONS = [0.0, 0.1, 0.2, 0.5]
ADVANTAGES = [-1.5, -1.0, 0.0, 0.25, 1.0]
RATIOS = [0.05, 0.8, 1.0, 1.2, 1.35, 2.0]


def by_hand(r, a, epsilon):
    """PPO-Clip's objective and slope from its six regions."""
    if a > 0 and r > 1 + epsilon:
        return (1 + epsilon) * a, 0.0
    if a < 0 and r < 1 - epsilon:
        return (1 - epsilon) * a, 0.0
    return r * a, a


def curve(axes):
    """The longest line of axes."""
    line = max(axes.lines, key=lambda x: len(x.get_xdata()))
    return np.array(line.get_xdata(), float), np.array(line.get_ydata(), float)


# ---- clipping --------------------------------------------------------------------------------


@pytest.mark.parametrize(("epsilon", "size"), list(itertools.product(EPSILONS, [0.25, 1.0, 1.5])))
def test_the_curves_of_the_clip_are_the_six_regions(epsilon, size):
    figure = plots.clipping(epsilon=epsilon, advantage=size)
    top_left, top_right, bottom_left, bottom_right = figure.axes
    for a, top, bottom in ((size, top_left, bottom_left), (-size, top_right, bottom_right)):
        x, y = curve(top)
        _, slope = curve(bottom)
        for r, got, got_slope in zip(x[::7], y[::7], slope[::7], strict=True):
            value, wanted = by_hand(r, a, epsilon)
            assert got == pytest.approx(value, abs=1e-9)
            if min(abs(r - 1 - epsilon), abs(r - 1 + epsilon)) > 1e-3:
                assert got_slope == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_the_shaded_part_of_the_clip_is_flat_and_the_labelled_part_learns(epsilon):
    figure = plots.clipping(epsilon=epsilon)
    for axes, (left, right) in zip(
        figure.axes[:2], [(1 + epsilon, 2.0), (0.0, 1 - epsilon)], strict=True
    ):
        shade = axes.patches[0]
        assert shade.get_x() == pytest.approx(left)
        assert shade.get_x() + shade.get_width() == pytest.approx(right)
        flat = [text for text in axes.texts if text.get_text() == "flat"]
        assert len(flat) == 1
        assert left <= flat[0].get_position()[0] <= right
        assert len([text for text in axes.texts if text.get_text() == "learns"]) == 2


@pytest.mark.parametrize(
    ("epsilon", "advantage", "ratio"), list(itertools.product(EPSILONS, ADVANTAGES, RATIOS))
)
def test_the_sentence_and_the_point_of_the_clip_tell_the_truth(epsilon, advantage, ratio):
    picture = plots.Clipping()
    sentence = picture.move(epsilon=epsilon, advantage=advantage, ratio=ratio)
    value, slope = by_hand(ratio, advantage, epsilon)
    on_edge = min(abs(ratio - 1 - epsilon), abs(ratio - 1 + epsilon)) < 1e-6
    if not on_edge:
        assert sentence.endswith(f"slope {slope + 0.0:.2f}.")
        clipped = advantage != 0 and slope == 0
        word = "clipped" if clipped else "no advantage" if advantage == 0 else "not clipped"
        assert f": {word}, " in sentence
    assert sentence.startswith(f"Ratio {ratio:.2f}, A = {advantage:+.2f}, ")
    for column, shown in enumerate((advantage >= 0, advantage <= 0)):
        point = picture.figure.axes[column].lines[3]
        assert list(point.get_xdata()) == ([ratio] if shown else [])
        if shown:
            assert float(point.get_ydata()[0]) == pytest.approx(value, abs=1e-9)


def test_real_tokens_stand_on_the_curve_of_their_sign():
    ratio, advantages = torch.tensor([0.5, 1.5, 0.9]), torch.tensor([2.0, 1.0, -1.0])
    figure = plots.clipping(tokens=(ratio, advantages))
    ticks = [axes.lines[-1] for axes in figure.axes[:2]]
    assert ticks[0].get_xdata().tolist() == [0.5, 1.5]
    assert ticks[0].get_ydata().tolist() == pytest.approx([0.5, 1.2])
    assert ticks[1].get_ydata().tolist() == pytest.approx([-0.9])


# ---- clip or penalty -------------------------------------------------------------------------


@pytest.mark.parametrize(("coef", "a"), list(itertools.product([0.0, 1.0, 4.0], [-1.0, 0.0, 1.5])))
def test_the_penalised_objective_is_its_formula(coef, a):
    figure = plots.clip_or_penalty(coef=coef, advantage=a)
    left, right = figure.axes
    x, y = (np.array(v, float) for v in left.lines[2].get_data())
    slope = np.array(right.lines[2].get_ydata(), float)
    assert y == pytest.approx(a * x - coef * (x - 1 - np.log(x)), abs=1e-9)
    assert slope == pytest.approx(a - coef * (1 - 1 / x), abs=1e-9)


def test_the_best_ratio_of_the_penalty_is_where_the_docstring_says():
    x, y = (np.array(v, float) for v in plots.clip_or_penalty(coef=4.0).axes[0].lines[2].get_data())
    assert x[y.argmax()] == pytest.approx(4 / 3, abs=0.005)
    x, y = (np.array(v, float) for v in plots.clip_or_penalty(coef=1.0).axes[0].lines[2].get_data())
    assert y.argmax() == len(y) - 1  # none


@pytest.mark.parametrize(("epsilon", "a"), list(itertools.product(EPSILONS, ADVANTAGES)))
def test_the_sentence_of_the_penalty_compares_the_slopes(epsilon, a):
    sentence = plots.ClipOrPenalty().move(epsilon=epsilon, coef=2.0, advantage=a)
    penalty = a - 2.0 * (1 - 1 / 1.5)
    assert f"and {penalty:.2f} with the penalty." in sentence.replace("-0.00", "0.00")
    if epsilon != 0.5:
        assert f"is {by_hand(1.5, a, epsilon)[1] + 0.0:.2f} with the clip" in sentence


def test_a_tokens_bar_is_white_where_the_clip_has_made_it_flat():
    ratios = torch.tensor([0.5, 0.9, 1.5])
    for advantage, flat in ((1.0, [False, False, True]), (-1.0, [True, False, False])):
        axes = plots.token_ratios(["a", "b", "c"], ratios, advantage).axes[0]
        bars = axes.containers[0]
        assert [bar.get_facecolor() == (1, 1, 1, 1) for bar in bars] == flat
        assert [round(bar.get_y() + bar.get_height(), 4) for bar in bars] == [0.5, 0.9, 1.5]
        assert [t.get_text() for t in axes.texts] == ["0.5", "", "1.5"]
