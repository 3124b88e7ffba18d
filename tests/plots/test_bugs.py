"""The bug zoo's pictures: symptoms are what all seeds of a bug have and no healthy run."""

import numpy as np
import pytest

from minippo import plots
from minippo.plots.bugs import CURVES
from tests.shapes import refuses
from tests.widgets.test_explorers import some_rows

EXPLAINS = {"high": "It is high.", "low": "It is low."}


def rows_ending(*, healthy, bug):
    """One curve's ends, seed by seed; all other curves are the same everywhere."""
    made = []
    for name, ends in (("healthy", healthy), ("bug", bug)):
        for seed, end in enumerate(ends):
            curves = {curve: [0.0, 1.0, 1.0, 1.0] for curve in CURVES}
            made.append(
                {
                    "case": {"bug": name, "seed": seed},
                    "curves": curves | {"kl": [9.0, end - 1, end, end + 1]},
                }
            )
    return made


def test_a_symptom_is_what_all_seeds_have_and_no_healthy_run():
    found = plots.symptoms(rows_ending(healthy=[1.0, 2.0], bug=[3.0, 4.0]), "bug")
    assert found == {"kl": plots.Symptom(3.5, 3.0, 4.0, 1.0, 2.0)}
    below = plots.symptoms(rows_ending(healthy=[1.0, 2.0], bug=[-3.0, 0.5]), "bug")
    assert below == {"kl": plots.Symptom(-1.25, -3.0, 0.5, 1.0, 2.0)}


@pytest.mark.parametrize("bug", [[1.5, 3.0], [2.0, 2.0005], [0.5, 2.5]])
def test_where_one_seed_looks_healthy_there_is_no_symptom(bug):
    assert plots.symptoms(rows_ending(healthy=[1.0, 2.0], bug=bug), "bug") == {}


def test_a_bug_may_have_runs_of_its_own_to_be_compared_with():
    rows = rows_ending(healthy=[1.0, 2.0], bug=[3.0, 4.0])
    rows += [
        row | {"case": row["case"] | {"bug": "done right"}}
        for row in rows_ending(healthy=[], bug=[2.0, 3.5])
    ]
    assert set(plots.symptoms(rows, "bug")) == {"kl"}
    assert plots.symptoms(rows, "bug", control="done right") == {}
    table = plots.symptom_table(rows, ["bug"], controls={"bug": "done right"})
    assert len(plots.symptom_table(rows, ["bug"]).axes[0].lines) == 1
    assert len(table.axes[0].lines) == 0


def test_each_mystery_run_is_drawn_as_it_was_and_its_ends_are_said():
    rows, picture = some_rows(), plots.BugCurves(some_rows(), EXPLAINS)
    assert sorted(picture.letters) == ["A", "B"]
    assert set(picture.letters.values()) == set(EXPLAINS)
    for letter, bug in picture.letters.items():
        for seed in picture.seeds:
            says = picture.move(run=letter, seed=seed)
            (row,) = [r for r in rows if r["case"] == {"bug": bug, "seed": seed}]
            for name, line in picture._lines.items():
                wanted = [np.nan if x is None else x for x in row["curves"][name]]
                assert np.array_equal(line.get_ydata(), wanted, equal_nan=True)
            assert f"score {row['curves']['score'][-1]:.2f} (0.50 to 0.60)" in says
            assert bug not in says.split("healthy runs")[0]


def test_a_guess_is_judged_and_only_the_right_one_is_explained():
    picture = plots.BugCurves(some_rows(), EXPLAINS)
    letter = next(k for k, bug in picture.letters.items() if bug == "high")
    assert picture.move(run=letter).endswith("Guess which bug it is.")
    assert picture.move(run=letter, guess="low").endswith("No, it is not “low”.")
    assert picture.move(run=letter, guess="high").endswith("Yes, “high”: It is high.")


def test_a_run_like_the_healthy_ones_says_so():
    rows = rows_ending(healthy=[1.0, 2.0], bug=[1.5, 1.7])
    says = plots.BugCurves(rows, {"bug": "Nothing."}).move()
    assert "It ends outside the range of healthy runs in: nothing." in says


def test_panels_hold_every_seed_of_every_bug_on_shared_axes():
    curves = ("score", "kl")
    figure = plots.bug_curves_panels(some_rows(), ["high", "low"], curves=curves)
    assert [axes.get_title() for axes in figure.axes[:2]] == ["high", "low"]
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    for axes in figure.axes:
        ends = {line.get_ydata()[-1] for line in axes.lines}
        assert len(ends) == 4  # the edges of the healthy band, and two seeds


def test_dots_stand_where_each_seed_ended():
    left, right = plots.bug_scores(some_rows(), ["high", "low"]).axes
    assert [tick.get_text() for tick in left.get_yticklabels()] == ["high", "low"]
    found = [list(line.get_xdata()) for line in (*left.lines, *right.lines)]
    wanted = [[3.0, 3.1], [-50.0, -49.9], [1.5, 1.55], [-25.0, -24.95]]
    assert [pytest.approx(x) for x in wanted] == found


def test_the_table_of_symptoms_points_up_and_down():
    axes = plots.symptom_table(some_rows(), ["high", "low"]).axes[0]
    found = {(line.get_xdata()[0], line.get_ydata()[0], line.get_marker()) for line in axes.lines}
    assert found == {(x, y, mark) for x in range(8) for y, mark in ((0, "^"), (1, "v"))}


def test_both_kls_are_drawn_seed_by_seed():
    (axes,) = plots.logged_and_true_kl(some_rows(), {"renewed": "high"}).axes
    assert axes.get_title() == "renewed"
    assert [line.get_ydata()[-1] for line in axes.lines] == pytest.approx([9, 3.01, 10, 3.11])
    assert {line.get_linestyle() for line in axes.lines} == {"-", "--"}


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: plots.symptoms(some_rows(), "moth"), ("plots of bugs: bug", "'moth'")),
        (lambda: plots.BugCurves(some_rows(), {}), ("BugCurves: explains", "none")),
        (lambda: plots.bug_curves_panels(some_rows(), []), ("bug_curves_panels: bugs", "none")),
        (
            lambda: plots.bug_curves_panels(some_rows(), ["low"], curves=["fun"]),
            ("bug_curves_panels: curves", "fun"),
        ),
    ],
)
def test_bugs_that_cannot_be_drawn_are_refused(call, says):
    with refuses(*says):
        call()
