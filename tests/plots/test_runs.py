"""Whole runs: curves, bands and health."""

import importlib
import math
from pathlib import Path

import pytest

from minippo import plots
from tests.plots.examples import FIRST

# The lowest and the highest healthy value for a run that begins like this, worked by hand.
BANDS = {"score": (0.5, math.inf), "kl": (-0.5, 25), "entropy": (0.4, 1.8),
         "clip_fraction": (0, 0.3), "value_loss": (0, 1.4), "explained_variance": (-0.1, 1),
         "response_length": (13, 39)}  # fmt: skip


def a_run(**last):
    """Ten steps that stay where they began, but for what the last three are."""
    steps = [{"step": float(i + 1)} | FIRST for i in range(10)]
    return [stats | (last if i >= 7 else {}) for i, stats in enumerate(steps)]


def panels(history, **options):
    """The axes of a run's picture, one per curve."""
    axes = [a for a in plots.training_run(history, **options).axes if a.axison]
    return dict(zip(BANDS, axes, strict=True))


def test_a_run_is_drawn_as_it_was_and_without_bands_where_it_never_left_them():
    history = [stats | {"score": 0.5 + i} for i, stats in enumerate(a_run())]
    for name, panel in panels(history).items():
        x, y = panel.lines[0].get_data()
        assert list(x) == list(range(1, 11))
        assert list(y) == [stats[name] for stats in history]
        assert not panel.patches
    assert panels(history)["score"].get_ylim() == pytest.approx((0.05, 9.95))  # 0.5 to 9.5, 5 %


@pytest.mark.parametrize("name", BANDS)
@pytest.mark.parametrize("side", [0, 1])
def test_a_curve_that_left_its_band_for_one_step_is_drawn_on_it(name, side):
    low, high = BANDS[name]
    edge = BANDS[name][side]
    if not math.isfinite(edge):
        return  # no score is too high by itself
    history = a_run()
    history[4] |= {name: edge + (-0.01, 0.01)[side]}
    drawn = panels(history)
    assert [each for each, panel in drawn.items() if panel.patches] == [name]
    (band,), (bottom, top) = drawn[name].patches, drawn[name].get_ylim()
    assert bottom < edge < top
    assert band.get_y() == pytest.approx(low)
    above = band.get_y() + band.get_height()
    assert above == pytest.approx(high) if high < top else above > top


def test_a_band_that_no_value_is_in_is_in_sight():
    history = [stats | {"explained_variance": -3.0 - 0.1 * i} for i, stats in enumerate(a_run())]
    panel = panels(history)["explained_variance"]
    assert panel.get_ylim()[0] < -3.9
    assert panel.get_ylim()[1] > -0.1 == panel.patches[0].get_y()
    assert panels([history[0]])["explained_variance"].patches


@pytest.mark.parametrize("done", [0, 1, 10])
def test_the_axis_of_a_run_in_progress_is_as_long_as_the_run(done):
    made = panels(a_run()[:done], n_steps=40)
    for panel in made.values():
        assert panel.get_xlim() == (0, 41)
        assert all(len(line.get_xdata()) == done for line in panel.lines[:-2])
    figure = plots.training_run(a_run()[:done], n_steps=40)
    assert figure.axes[0].get_title() == "score"
    assert plots.png(figure)


def test_the_axis_shows_steps_beyond_the_run_that_was_planned():
    assert {panel.get_xlim() for panel in panels(a_run(), n_steps=8).values()} == {(0, 11)}


def test_a_run_of_one_step_can_be_seen():
    line = panels(a_run()[:1])["score"].lines[0]
    assert line.get_marker() == "."
    assert line.get_markevery() == [-1]


def test_a_run_whose_returns_were_constant_at_first_is_drawn():
    history = a_run()
    history[0]["explained_variance"] = math.nan  # nothing to explain
    limits = [a.get_ylim() for a in panels(history).values()]
    assert all(math.isfinite(x) for pair in limits for x in pair)


@pytest.mark.parametrize("name", BANDS)
@pytest.mark.parametrize("side", [0, 1])
def test_a_curve_that_leaves_its_band_is_named_with_the_edge(name, side):
    edge = BANDS[name][side]
    if name == "score" and side == 1:
        return  # no score is too high by itself
    for beyond in (False, True):
        outwards = 0.02 if beyond == (side == 1) else -0.02
        sentence = plots.health(a_run(**{name: edge + outwards}))
        if beyond:
            word = ("below", "above")[side]
            assert f"{edge + outwards:.2f} is {word} {edge:.2f} (" in sentence
            assert "; " not in sentence  # and no other curve
        else:
            assert sentence == "Step 10, mean of 3 steps: all 7 curves are in their healthy bands."


def test_every_way_out_of_a_band_that_can_happen_has_its_meaning():
    curves = importlib.import_module("minippo.plots.runs").CURVES
    assert list(curves) == list(BANDS)
    impossible = {("clip_fraction", 0), ("value_loss", 0), ("explained_variance", 1), ("score", 1)}
    for name, meaning in curves.items():
        for side, says in enumerate((meaning.below, meaning.above)):
            assert bool(says) == ((name, side) not in impossible)


def test_a_runs_health_is_judged_by_three_steps_up_to_the_one_asked_for():
    history = a_run(kl=90.0)
    assert "7 curves" in plots.health(history, step=7)
    assert "KL to reference 30.00 is above" in plots.health(history, step=8)
    assert "KL to reference 90.00 is above" in plots.health(history, step=10)
    assert plots.health(history, step=1).startswith("Step 1, mean of 1 step: all")
    assert plots.health(history, step=2).startswith("Step 2, mean of 2 steps: all")


@pytest.mark.parametrize("step", range(1, 11))
def test_the_cursor_stands_on_the_curves_and_says_their_values(step):
    history = [stats | {"score": 0.5 + i} for i, stats in enumerate(a_run(kl=90.0))]
    picture = plots.TrainingRun(history)
    sentence = picture.move(step=step)
    for name, panel in zip(BANDS, [a for a in picture.figure.axes if a.axison], strict=True):
        assert list(panel.lines[1].get_xdata()) == [step, step]
        assert [list(x) for x in panel.lines[2].get_data()] == [[step], [history[step - 1][name]]]
    assert sentence.startswith(f"score {step - 0.5:.2f}, KL to reference {90 * (step > 7):.2f}, ")
    assert sentence.endswith(plots.health(history, step=step))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: plots.training_run([]), "history must hold at least one step"),
        (lambda: plots.training_run([{"step": 1, "score": 0.0}]), "a step without kl, entropy"),
        (lambda: plots.health(a_run(), step=11), "step must be a step of the run, 1 to 10, got 11"),
    ],
)
def test_a_run_that_cannot_be_drawn_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_the_trainers_statistics_are_those_that_are_drawn():
    """Every curve is a name that the trainer writes."""
    source = (Path(plots.__file__).parents[1] / "trainer.py").read_text(encoding="utf-8")
    source += (Path(plots.__file__).parents[1] / "ppo.py").read_text(encoding="utf-8")
    assert [name for name in BANDS if f'"{name}": ' not in source] == []
