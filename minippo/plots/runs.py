"""Pictures of whole runs and what is healthy in them."""

from collections.abc import Mapping, Sequence
from math import inf, isfinite
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from minippo._validate import fail
from minippo.plots._base import BAND, LINE, Picture, tidy
from minippo.plots._base import COLOURS as SYMBOLS

History = Sequence[Mapping[str, float]]
WINDOW = 3  # steps that are averaged before a curve is judged: one step is noisy
COLOURS = SYMBOLS | {"length": "#444444"}  # not a symbol of PPO's


class Curve(NamedTuple):
    """A curve of a run, and the band in which it is healthy.

    `low` and `high` are values; if `of` is "start", times the first step's value; if "change",
    plus it. `below` and `above` say what leaving the band means.
    """

    label: str
    unit: str
    symbol: str
    style: str
    low: float
    high: float
    of: str
    below: str
    above: str


# The only place for these rules of thumb. "Our demo" is the run of `minippo demo`; "free" is the
# same without KL, with three times the learning rate and a clip range of 0.9. They hold for
# responses of tens of tokens.
CURVES = {
    # The only thing optimised: a run that ends below its start has only got worse.
    "score": Curve("score", "", "reward", "-", 0.0, inf, "change", "it unlearns", ""),
    # lm-human-preferences steers to 6 nats for 24 tokens; our demo ends at 3, free at 430, in text
    # that no annotator has ever judged. Below 0 it is noise of k1 or a sign error.
    "kl": Curve(
        "KL to reference", "nats/response", "kl", "--", -0.5, 25.0, "",
        "a KL is never negative, so a sign is wrong",
        "it writes what the reward model has never judged",
    ),
    # With a third of its entropy left a policy tries nothing new (our demo keeps nine tenths); with
    # far more than at the start it is losing its language.
    "entropy": Curve(
        "entropy", "nats/token", "entropy", "-.", 1 / 3, 1.5, "start",
        "it says the same again and again", "it loses its language",
    ),
    # Clipped tokens teach nothing. Our demo: 0.08 at first, then below 0.03.
    "clip_fraction": Curve(
        "clip fraction", "", "policy", "-", 0.0, 0.3, "", "", "steps are too large for the clip",
    ),
    # It may grow for a while, as the score does; free reaches 2.3 times its start.
    "value_loss": Curve(
        "value loss", "score²", "value", "--", 0.0, 2.0, "start", "", "the values diverge",
    ),
    # 0 is a constant or an untrained value head; below 0 the values mislead (free: -22; our
    # demo, whose c1 is small and whose scores end alike: down to -0.5).
    "explained_variance": Curve(
        "explained variance", "", "value", "-.", -0.1, 1.0, "",
        "the values are worse than a constant", "",
    ),
    # The commonest loophole of a reward model is length (Singhal et al. 2023).
    "response_length": Curve(
        "response length", "tokens", "length", ":", 0.5, 1.5, "start",
        "it is paid for silence", "it is paid for length",
    ),
}  # fmt: skip


def band(name: str, history: History) -> tuple[float, float]:
    """Return the lowest and highest healthy value of a curve of this run."""
    curve, first = CURVES[name], float(history[0][name])
    if curve.of == "start":
        return curve.low * first, curve.high * first
    return (curve.low + first, curve.high + first) if curve.of else (curve.low, curve.high)


def health(history: History, *, step: int | None = None) -> str:
    """Say which curves are outside their healthy band at a step (default: the last).

    A curve is judged by its mean over the step and the two before. The bands are rules of thumb:
    see `CURVES`.
    """
    _check("health", history)
    at = _position("health", history, step)
    wrong = []
    for name, curve in CURVES.items():
        value = float(np.mean([stats[name] for stats in history[max(0, at + 1 - WINDOW) : at + 1]]))
        low, high = band(name, history)
        if value < low or value > high:
            side, edge = ("below", low) if value < low else ("above", high)
            why = curve.below if value < low else curve.above
            wrong.append(f"{curve.label} {value:.2f} is {side} {edge:.2f} ({why})")
    found = "; ".join(wrong) or f"all {len(CURVES)} curves are in their healthy bands"
    n = min(at + 1, WINDOW)
    return f"Step {int(history[at]['step'])}, mean of {n} step{'s' * (n > 1)}: {found}."


class TrainingRun(Picture):
    """The seven curves of a run over its steps, with their healthy bands, and a cursor."""

    def __init__(self, history: History, *, title: str = "", n_steps: int | None = None) -> None:
        """`history`: the statistics of each step, as in `PPOTrainer.history`.

        `n_steps` fixes the x axis to a run that is not over, or has not yet begun.
        """
        if history or n_steps is None:
            _check("TrainingRun", history)
        self._history = history
        self.steps = [int(stats["step"]) for stats in history]
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        figure.suptitle(title)
        grid = list(figure.subplots(2, 4, sharex=True).flat)
        legend = grid.pop(3)
        legend.axis("off")
        box = {"facecolor": BAND, "edgecolor": LINE}
        words = "grey: healthy\nno grey: always healthy"
        legend.text(0.5, 0.5, words, ha="center", va="center", transform=legend.transAxes, bbox=box)
        self._cursors: list[tuple[str, Any, Any]] = []
        for axes, (name, curve) in zip(grid, CURVES.items(), strict=True):
            if history:
                _draw(axes, name, history, history)
            else:
                tidy(axes)
                axes.set_yticks([])
            axes.set_title(curve.label + (f"\n({curve.unit})" if curve.unit else ""), fontsize=10)
            line = axes.axvline(
                (self.steps or [1])[0], color="#444444", ls=":", lw=1.2, visible=False
            )
            (dot,) = axes.plot([], [], "o", ms=7, mfc="white", mec="black", mew=1.5, zorder=4)
            self._cursors.append((name, line, dot))
        for axes in grid[3:]:
            axes.set_xlabel("PPO step")
        if n_steps is not None:  # the axes share it
            grid[0].set_xlim(0, max(n_steps, *self.steps, 1) + 1)
        super().__init__(figure, [part for _, *parts in self._cursors for part in parts])

    def move(self, *, step: int | None = None) -> str:
        """Move the cursor to a step (default: the last); return its numbers and health."""
        at = _position("TrainingRun", self._history, step)
        stats, place = self._history[at], self.steps[at]
        for name, line, dot in self._cursors:
            line.set(xdata=[place, place], visible=True)
            dot.set_data([place], [stats[name]])
        numbers = ", ".join(
            f"{curve.label} {stats[name] + 0.0:.2f}" for name, curve in CURVES.items()
        )
        return f"{numbers}. {health(self._history, step=place)}"


def training_run(history: History, *, title: str = "", n_steps: int | None = None) -> Figure:
    """Plot a run's score, KL, entropy, clip fraction, value loss, explained variance, length.

    `history` as in `PPOTrainer.history`; `n_steps` fixes the x axis to the length of a run that is
    not over, or has not yet begun. What to see: the score rises at a price in KL to the reference;
    a panel is grey where a curve is healthy, if it was ever not. `health` says it in words.
    """
    return TrainingRun(history, title=title, n_steps=n_steps).figure


def _draw(axes: Any, name: str, history: History, seen: History) -> None:
    """Draw a curve, on its band if a value in `seen` is outside; the axis spans all of `seen`.

    A band that nothing leaves would fill the panel and flatten the curve.
    """
    curve, (low, high) = CURVES[name], band(name, history)
    values = [x for stats in seen if isfinite(x := float(stats[name]))]  # NaN: constant returns
    bottom, top = min(values, default=0.0), max(values, default=1.0)
    left = bottom < low or top > high
    bottom, top = min(bottom, high), max(top, low)  # a band that was left is in sight
    margin = 0.05 * (top - bottom) or 1.0
    tidy(axes, y=axes.get_ylabel())
    if left:
        axes.axhspan(low, min(high, top + 2 * margin), fc=BAND, ec=LINE, lw=0.8, zorder=0)
    axes.plot(
        [int(stats["step"]) for stats in history], [float(stats[name]) for stats in history],
        curve.style, color=COLOURS[curve.symbol], lw=1.5, zorder=3, marker=".", markevery=[-1],
        antialiased=False,  # soft edges make it up to 40 % larger
    )  # fmt: skip
    axes.set_ylim(bottom - margin, top + margin)


def _check(caller: str, history: History) -> None:
    if not history:
        fail(caller, "history", "hold at least one step", "none")
    wanted = ["step", *CURVES]
    for stats in history:
        if missing := [name for name in wanted if name not in stats]:
            must = f"have {', '.join(wanted)} in every step"
            fail(caller, "history", must, f"a step without {', '.join(missing)}")


def _position(caller: str, history: History, step: int | None) -> int:
    steps = [int(stats["step"]) for stats in history]
    if step is not None and step not in steps:
        fail(caller, "step", f"be a step of the run, {steps[0]} to {steps[-1]}", step)
    return len(steps) - 1 if step is None else steps.index(step)
