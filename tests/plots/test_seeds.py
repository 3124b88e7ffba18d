"""Pictures of several seeds: the mean, the range, and one dot per seed."""

import io

import numpy as np
import pytest
from PIL import Image

from minippo import plots

CURVES = {"mine": ([0.0, 1.0, 2.0], [[0.0, 1.0, 5.0], [2.0, 3.0, 1.0]]), "flat": ([0, 2], [[1, 1]])}
ROWS = {"weak": [1.0, 2.0, 6.0], "strong": [4.0, 4.0, 4.0]}


def test_a_line_is_the_mean_and_its_band_the_range():
    axes, second = plots.over_seeds({"gold": CURVES, "kl": CURVES}, marks={"kl": 1.5}).axes
    assert list(axes.lines[0].get_ydata()) == [1.0, 2.0, 3.0]
    band = axes.collections[0].get_paths()[0].vertices
    assert {tuple(p) for p in band} >= {(0, 0), (0, 2), (1, 1), (1, 3), (2, 1), (2, 5)}
    assert axes.lines[0].get_linestyle() != axes.lines[1].get_linestyle()
    assert len(axes.lines) == 2
    assert list(second.lines[2].get_xdata()) == [1.5, 1.5]


def test_a_dot_is_a_seed_and_the_bar_their_mean():
    figure = plots.each_seed({"gold": ROWS, "nats": ROWS}, marks={"gold": 0.5})
    axes = figure.axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == list(ROWS)
    assert list(axes.lines[0].get_xdata()) == ROWS["weak"]
    assert list(axes.lines[1].get_xdata()) == [3.0]
    assert axes.yaxis_inverted()
    assert len(axes.lines) == 5
    assert len(figure.axes[1].lines) == 4


@pytest.mark.parametrize(
    "figure", [plots.over_seeds({"gold": CURVES}, x="KL"), plots.each_seed({"gold": ROWS})]
)
def test_pictures_of_seeds_are_900_wide_and_small(figure):
    image = Image.open(io.BytesIO(plots.png(figure)))
    assert image.width == 900
    assert len(image.getcolors() or []) <= 16
    assert len(plots.png(figure)) < 20_000


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: plots.over_seeds({}), "panels must be 1 to 4 panels"),
        (lambda: plots.each_seed({"gold": {}}), "panels must be 1 to 4 panels"),
        (lambda: plots.over_seeds({"a": {"b": ([0, 1], [[1]])}}), "2 values per seed"),
        (lambda: plots.over_seeds({"a": dict.fromkeys("abcdefghi", CURVES["flat"])}), "at most 8"),
        (lambda: plots.each_seed({"a": ROWS, "b": {"weak": [1]}}), "have the rows"),
    ],
)
def test_seeds_that_cannot_be_drawn_are_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_means_over_seeds_are_numpys():
    rows = np.random.default_rng(0).normal(size=(5, 7))
    axes = plots.over_seeds({"": {"a": (range(7), rows.tolist())}}).axes[0]
    assert np.allclose(axes.lines[0].get_ydata(), rows.mean(0))
