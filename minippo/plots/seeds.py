"""Pictures of experiments with several seeds: mean and range, never one lucky run."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from minippo._validate import fail
from minippo.plots._base import LINE, tidy
from minippo.plots.rewards import LOOKS

Numbers = Sequence[float]
Curves = Mapping[str, tuple[Numbers, Sequence[Numbers]]]


def over_seeds(
    panels: Mapping[str, Curves], *, x: str = "", marks: Mapping[str, float] | None = None
) -> Figure:
    """Plot curves side by side: panel -> name -> (x, the values per seed).

    A line is the mean over seeds, the band around it their range. `marks`: panel -> position of a
    vertical line. What to see: whether two lines are farther apart than their bands are wide.
    """
    _check("over_seeds", panels)
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    named: list[str] = []  # one legend serves panels with the same curves
    for axes, (title, curves) in zip(grid, panels.items(), strict=True):
        for (name, (places, rows)), (colour, _, style) in zip(curves.items(), LOOKS, strict=False):
            values = np.array(rows, float)
            if values.ndim != 2 or values.shape[1] != len(places):
                must = f"hold {len(places)} values per seed, as many as x"
                fail("over_seeds", f"{title!r}, {name!r}", must, f"shape {list(values.shape)}")
            low, high = values.min(0), values.max(0)
            axes.fill_between(places, low, high, color=colour, alpha=0.2, lw=0)
            axes.plot(places, values.mean(0), style, color=colour, lw=2, label=name)
        if marks and title in marks:
            axes.axvline(marks[title], color=LINE, ls=":", lw=1.5)
        tidy(axes, x=x)
        axes.set_title(title, fontsize=11)
        if len(curves) > 1 and list(curves) != named:
            axes.legend(loc="best", fontsize=9)
        named = list(curves)
    return figure


def each_seed(
    panels: Mapping[str, Mapping[str, Numbers]], *, marks: Mapping[str, float] | None = None
) -> Figure:
    """Plot numbers side by side: panel -> row name -> one value per seed.

    A small dot is a seed, the bar their mean. `marks`: panel -> position of a vertical line. What
    to see: if the dots of two rows do not overlap, no seed contradicts the difference.
    """
    _check("each_seed", panels)
    names = list(next(iter(panels.values())))
    figure = Figure(figsize=(9, 0.9 + 0.32 * len(names)), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (title, rows), (colour, _, _) in zip(grid, panels.items(), LOOKS, strict=False):
        if list(rows) != names:
            fail("each_seed", f"{title!r}", f"have the rows {names}", list(rows))
        for y, values in enumerate(rows.values()):
            axes.plot(values, [y] * len(values), "o", color=colour, ms=5)
            axes.plot([np.mean(values)], [y], "|", color="black", ms=15, mew=2.5)
        if marks and title in marks:
            axes.axvline(marks[title], color=LINE, ls=":", lw=1.5)
        tidy(axes, x=title)
    grid[0].set_yticks(range(len(names)), names)
    grid[0].set_ylim(len(names) - 0.5, -0.5)
    return figure


def _check(caller: str, panels: Mapping[str, Mapping[str, object]]) -> None:
    if not 1 <= len(panels) <= 4 or not all(len(rows) >= 1 for rows in panels.values()):
        must = "be 1 to 4 panels with at least one row each"
        fail(caller, "panels", must, {title: len(rows) for title, rows in panels.items()})
    if caller == "over_seeds" and any(len(curves) > len(LOOKS) for curves in panels.values()):
        fail(caller, "panels", f"hold at most {len(LOOKS)} curves each", "more")
