"""Lines and bars show the numbers that they were given."""

import pytest
from matplotlib.colors import to_hex

from minippo import plots


def test_each_line_is_a_series_over_its_places_and_a_mark_is_level():
    figure = plots.lines(
        {"mine": [1.0, 3.0], "null": [2.0, 2.0]}, at=[5, 9], x="step", y="gold",
        colours={"mine": "value"}, marks={"a constant": 1.05},
    )  # fmt: skip
    (axes,) = figure.axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[1, 3], [2, 2], [1.05, 1.05]]
    assert list(axes.lines[0].get_xdata()) == [5, 9]
    assert to_hex(axes.lines[0].get_color()).upper() == plots.COLOURS["value"]
    assert axes.lines[0].get_linestyle() == plots.STYLES["value"]
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["mine", "null", "a constant"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("step", "gold")


def test_two_quantities_of_a_series_are_side_by_side_and_a_mark_is_on_the_left():
    figure = plots.two_lines(
        {"mine": ([1.0, 2.0], [0.1, 0.2]), "null": ([3.0, 4.0], [0.1, 0.1])},
        x="step", y=("KL", "beta"), marks={"target": 1.5}, log=(False, True),
    )  # fmt: skip
    left, right = figure.axes
    assert [list(line.get_ydata()) for line in left.lines] == [[1, 2], [3, 4], [1.5, 1.5]]
    assert [list(line.get_ydata()) for line in right.lines] == [[0.1, 0.2], [0.1, 0.1]]
    assert list(left.lines[0].get_xdata()) == [1, 2]
    assert (left.get_ylabel(), right.get_ylabel()) == ("KL", "beta")
    assert (left.get_yscale(), right.get_yscale()) == ("linear", "log")


def test_each_bar_has_its_number_its_error_and_its_place_from_the_top():
    figure = plots.bars({"a": 0.5, "b": -2.0}, x="nats", errors={"b": 0.25}, marks={"null": 1.0})
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [0.5, -2.0]
    assert [text.get_text() for text in axes.texts] == ["0.5", "-2"]
    assert axes.yaxis_inverted()
    (error,) = [c for c in axes.collections if len(c.get_segments()) == 2]
    assert [float(x) for x, _ in error.get_segments()[1]] == [-2.25, -1.75]
    assert list(axes.lines[-1].get_xdata()) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("draw", "said"),
    [
        (lambda: plots.lines({}, x="", y=""), "lines: series must be 1 to"),
        (lambda: plots.lines({"a": [1.0]}, at=[1, 2], x="", y=""), "'a' must hold 2 numbers"),
        (lambda: plots.bars({}, x=""), "bars: values must hold at least one number"),
    ],
)
def test_series_that_cannot_be_drawn_are_refused(draw, said):
    with pytest.raises(ValueError, match=said):
        draw()
