"""The bug zoo: runs with a bug, drawn against the range of healthy runs."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from minippo._validate import fail
from minippo.plots._base import BAND, COLOURS, LINE, STYLES, Picture, tidy

Rows = Sequence[Mapping[str, Any]]
HEALTHY, UNDECIDED = "healthy", "not yet"
TAIL = 3  # a curve's end is the mean of this many last steps
SAME = 1e-3  # a smaller gap does not count
# Statistic -> title, the symbol that gives its colour and line, whether its axis is logarithmic.
CURVES = {
    "score": ("score", "reward", False),
    "kl": ("KL to reference\n(nats/response)", "kl", True),
    "entropy": ("entropy\n(nats/token)", "entropy", False),
    "response_length": ("response length\n(tokens)", "reference", False),
    "clip_fraction": ("clip fraction", "policy", False),
    "approx_kl": ("KL(old || new)\n(nats/token)", "old", True),
    "first_ratio_error": ("first ratio's error", "advantage", True),
    "explained_variance": ("explained variance", "value", False),
}


@dataclass(frozen=True)
class Symptom:
    """A curve whose end separates a bug's runs from the healthy ones.

    Attributes:
        mean, low, high: Mean and range of the bug's seeds.
        healthy_low, healthy_high: Range of the healthy seeds.
    """

    mean: float
    low: float
    high: float
    healthy_low: float
    healthy_high: float


def symptoms(rows: Rows, bug: str, *, control: str = HEALTHY) -> dict[str, Symptom]:
    """Find the curves that end outside the healthy runs' range with *every* seed of a bug.

    A curve's end is its mean over the last three steps. Two sets of five runs separate by chance
    in 2 of 252 cases per curve. `control`: the runs that count as healthy if a bug is in
    something that the others do not have.
    """
    found = {}
    for name in CURVES:
        mine, healthy = (_ends(_runs(rows, which), name) for which in (bug, control))
        if min(mine) > max(healthy) + SAME or max(mine) < min(healthy) - SAME:
            found[name] = Symptom(
                float(np.mean(mine)), min(mine), max(mine), min(healthy), max(healthy)
            )
    return found


class BugCurves(Picture):
    """Eight curves of a run whose bug is to be guessed, against the healthy runs' range."""

    def __init__(self, rows: Rows, explains: Mapping[str, str]) -> None:
        """`rows` of the study of bugs; `explains`: bug to guess -> what gives it away."""
        if not explains:
            fail("BugCurves", "explains", "name at least one bug", "none")
        order = random.Random(0).sample(sorted(explains), len(explains))
        self.letters = {chr(ord("A") + i): bug for i, bug in enumerate(order)}
        self._explains, self._healthy = explains, _runs(rows, HEALTHY)
        self._runs = {bug: _by_seed(rows, bug) for bug in explains}
        self.seeds = sorted(set.intersection(*(set(runs) for runs in self._runs.values())))
        figure = Figure(figsize=(9, 4.5), layout="constrained")
        seen = [run for runs in self._runs.values() for run in runs.values()]
        self._lines = {}
        for axes, name in zip(figure.subplots(2, 4, sharex=True).flat, CURVES, strict=True):
            _prepare(axes, name, self._healthy, seen)
            (self._lines[name],) = axes.plot([], [], **_look(name))
        for axes in figure.axes[4:]:
            axes.set_xlabel("PPO step")
        super().__init__(figure, list(self._lines.values()))

    def move(self, *, run: str = "A", seed: int = 0, guess: str = UNDECIDED) -> str:
        """Show a mystery run of a seed and judge a guess."""
        bug = self.letters[run]
        shown = self._runs[bug][seed]
        outside = []
        for name, line in self._lines.items():
            values = _numbers(shown, name)
            line.set_data(range(1, len(values) + 1), values)
            end, healthy = _end(shown, name), _ends(self._healthy, name)
            if not min(healthy) - SAME <= end <= max(healthy) + SAME:
                title = CURVES[name][0].split("\n")[0]
                outside.append(f"{title} {end:.2f} ({min(healthy):.2f} to {max(healthy):.2f})")
        where = "; ".join(outside) or "nothing"
        says = f"Run {run}, seed {seed}. It ends outside the range of healthy runs in: {where}."
        if guess == UNDECIDED:
            return f"{says} Guess which bug it is."
        if guess != bug:
            return f"{says} No, it is not “{guess}”."
        return f"{says} Yes, “{bug}”: {self._explains[bug]}"


def bug_curves_panels(
    rows: Rows,
    bugs: Sequence[str],
    *,
    curves: Sequence[str] = ("score", "kl", "clip_fraction", "first_ratio_error"),
) -> Figure:
    """Plot all seeds of several bugs, one column per bug, against the healthy range (grey).

    What to see: a symptom is what all seeds of a bug show and no healthy run does.
    """
    if not bugs:
        fail("bug_curves_panels", "bugs", "hold at least one bug", "none")
    if unknown := [name for name in curves if name not in CURVES]:
        fail("bug_curves_panels", "curves", f"be among {', '.join(CURVES)}", unknown[0])
    runs = {bug: _runs(rows, bug) for bug in bugs}
    healthy = _runs(rows, HEALTHY)
    figure = Figure(figsize=(9, 1 + 1.5 * len(curves)), layout="constrained")
    grid = figure.subplots(len(curves), len(bugs), sharex=True, sharey="row", squeeze=False)
    for row, name in zip(grid, curves, strict=True):
        for axes, bug in zip(row, bugs, strict=True):
            _prepare(axes, name, healthy, [r for each in runs.values() for r in each])
            axes.set_title("")
            for run in runs[bug]:
                values = _numbers(run, name)
                axes.plot(range(1, len(values) + 1), values, **_look(name) | {"lw": 1.3})
        row[0].set_ylabel(CURVES[name][0].replace(" (", "\n("), fontsize=9)
    for top, bottom, bug in zip(grid[0], grid[-1], bugs, strict=True):
        top.set_title(bug, fontsize=10)
        bottom.set_xlabel("PPO step")
    return figure


def _prepare(axes: Any, name: str, healthy: Sequence[Any], seen: Sequence[Any]) -> None:
    """Draw the band of the healthy runs, with limits that fit all runs."""
    title, _, logarithmic = CURVES[name]
    tidy(axes)
    axes.set_title(title, fontsize=10)
    values = np.array([_numbers(run, name) for run in healthy])
    steps = np.arange(1, values.shape[1] + 1)
    axes.fill_between(steps, values.min(0), values.max(0), color=BAND, lw=0, zorder=1)
    for edge in (values.min(0), values.max(0)):
        axes.plot(steps, edge, color=LINE, lw=1, zorder=1)  # makes a band of zero width visible
    every = np.concatenate([values.ravel(), *(_numbers(run, name) for run in seen)])
    if logarithmic:
        axes.set_yscale("symlog", linthresh=0.1)
    low, high = np.nanmin(every), np.nanmax(every)
    margin = 0.08 * (high - low) or 0.1
    axes.set_ylim(low - min(margin, 0.05) if logarithmic else low - margin, high + margin)
    if logarithmic:
        powers = [0, *(10.0**k for k in range(-1, 9)), *(-(10.0**k) for k in range(-1, 9))]
        ticks = sorted(x for x in powers if low <= x <= high)
        axes.set_yticks(ticks[:: max(1, len(ticks) // 4)], minor=False)
        axes.set_yticks([], minor=True)


def _look(name: str) -> dict[str, Any]:
    symbol = CURVES[name][1]
    return {"color": COLOURS[symbol], "ls": STYLES[symbol], "lw": 2, "zorder": 3}


def _by_seed(rows: Rows, bug: str) -> dict[int, Mapping[str, Any]]:
    found = {row["case"]["seed"]: row["curves"] for row in rows if row["case"]["bug"] == bug}
    if not found:
        known = ", ".join(sorted({row["case"]["bug"] for row in rows}))
        fail("plots of bugs", "bug", f"be one of {known}", repr(bug))
    return found


def _runs(rows: Rows, bug: str) -> list[Mapping[str, Any]]:
    return list(_by_seed(rows, bug).values())


def _numbers(run: Mapping[str, Any], name: str) -> Any:
    """Return a curve; non-finite numbers become gaps."""
    values = run[name] if isinstance(run[name], list) else [run[name]]
    return np.array([np.nan if x is None else x for x in values], float)


def _end(run: Mapping[str, Any], name: str) -> float:
    """Mean of a curve's last steps; a single number is its own mean."""
    values = _numbers(run, name)[-TAIL:]
    return float(np.nanmean(values)) + 0.0


def _ends(runs: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [_end(run, name) for run in runs]


def bug_scores(rows: Rows, bugs: Sequence[str]) -> Figure:
    """Plot where each seed of each bug ended: training score and gold on held-out prompts.

    Grey: the range of the healthy runs. What to see: a score in the grey is no sign of health.
    """
    figure = Figure(figsize=(9, 1 + 0.28 * len(bugs)), layout="constrained")
    panels = {"score in training": ("truth", "score"), "gold reward, held out": ("end", "gold")}
    for axes, (title, (kind, name)) in zip(
        figure.subplots(1, 2, sharey=True), panels.items(), strict=True
    ):
        ends = {
            bug: [_end(row[kind], name) for row in rows if row["case"]["bug"] == bug]
            for bug in (HEALTHY, *bugs)
        }
        axes.axvspan(min(ends[HEALTHY]), max(ends[HEALTHY]), color=BAND)
        for y, bug in enumerate(bugs):
            axes.plot(ends[bug], [y] * len(ends[bug]), "o", ms=5, color=COLOURS["reward"])
        tidy(axes, x=title)
    figure.axes[0].set_yticks(range(len(bugs)), bugs)
    figure.axes[0].invert_yaxis()
    return figure


def symptom_table(
    rows: Rows, bugs: Sequence[str], *, controls: Mapping[str, str] | None = None
) -> Figure:
    """Plot bugs by curves: a triangle where all seeds end above, or below, all healthy runs.

    `controls`: bug -> the runs that count as healthy for it, if it has its own.

    What to see: how few bugs the score reveals, and which rows are empty.
    """
    figure = Figure(figsize=(9, 1.3 + 0.28 * len(bugs)), layout="constrained")
    axes, names = figure.subplots(), list(CURVES)
    for y, bug in enumerate(bugs):
        control = (controls or {}).get(bug, HEALTHY)
        for name, symptom in symptoms(rows, bug, control=control).items():
            marker, symbol = (
                ("^", "reward") if symptom.mean > symptom.healthy_high else ("v", "policy")
            )
            axes.plot(names.index(name), y, marker, ms=9, color=COLOURS[symbol])
    axes.set_yticks(range(len(bugs)), bugs)
    axes.set_xticks(range(len(names)), [name.replace("_", "\n") for name in names], fontsize=9)
    tidy(axes)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(len(bugs) - 0.5, -0.5)
    return figure


def logged_and_true_kl(rows: Rows, cases: Mapping[str, str]) -> Figure:
    """Plot the logged KL and the KL to the initial policy per seed; `cases`: title -> case.

    What to see: if the reference is renewed, the logged KL forgets the distance covered so far.
    """
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    grid = figure.subplots(1, len(cases), sharey=True, squeeze=False)[0]
    for axes, (title, case) in zip(grid, cases.items(), strict=True):
        for row in (row for row in rows if row["case"]["bug"] == case):
            for kind, symbol in (("truth", "policy"), ("curves", "kl")):
                values = _numbers(row[kind], "kl")
                look = {"color": COLOURS[symbol], "ls": STYLES[symbol]}
                axes.plot(range(1, len(values) + 1), values, **look)
        tidy(axes, x="PPO step")
        axes.set_title(title)
    grid[0].set_ylabel("nats per response")
    return figure
