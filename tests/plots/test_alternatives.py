"""DPO's pull over the margin, and bars of several methods side by side."""

import io

import pytest
from PIL import Image

from minippo import plots

BARS = {"mine": [1.0, -2.0, 0.0], "theirs": [3.0, 1.0, 2.0]}


def test_the_loss_is_log_two_at_no_margin_and_the_pull_one_half():
    loss, pull = plots.preference_loss().axes[0].lines
    assert loss.get_xdata()[80] == pytest.approx(0, abs=1e-6)
    assert loss.get_ydata()[80] == pytest.approx(0.693147, abs=1e-5)
    assert pull.get_ydata()[80] == pytest.approx(0.5, abs=1e-5)
    assert pull.get_ydata()[0] == pytest.approx(0.982014, abs=1e-5)  # e^4 / (1 + e^4)
    assert pull.get_ydata()[160] == pytest.approx(0.017986, abs=1e-5)


def test_each_name_has_a_bar_of_each_series_around_its_tick():
    figure = plots.grouped_bars(BARS, ["a", "b", "c"], y="gold")
    (axes,), (legend,) = figure.axes, figure.legends
    assert [t.get_text() for t in legend.get_texts()] == list(BARS)
    bars = axes.patches
    assert [bar.get_height() for bar in bars] == [*BARS["mine"], *BARS["theirs"]]
    middles = [(bars[i].get_x() + bars[i + 3].get_x() + bars[i].get_width()) / 2 for i in range(3)]
    assert middles == pytest.approx(list(axes.get_xticks()))
    assert bars[0].get_hatch() != bars[3].get_hatch()


@pytest.mark.parametrize(
    "figure", [plots.preference_loss(), plots.grouped_bars(BARS, "abc", y="gold")]
)
def test_pictures_of_alternatives_are_900_wide_and_small(figure):
    image = Image.open(io.BytesIO(plots.png(figure)))
    assert image.width == 900
    assert len(plots.png(figure)) < 20_000


@pytest.mark.parametrize(
    ("series", "says"),
    [
        ({}, "be 1 to 8 series of 2 numbers"),
        ({"a": [1.0]}, r"got \{'a': 1\}"),
        ({key: [1.0, 2.0] for key in "abcdefghi"}, "be 1 to 8 series"),
    ],
)
def test_alternatives_that_cannot_be_drawn_are_refused(series, says):
    with pytest.raises(ValueError, match=says):
        plots.grouped_bars(series, ["x", "y"], y="gold")
