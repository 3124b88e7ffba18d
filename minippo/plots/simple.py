"""Lines and bars: what a lesson measured, in one call."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from minippo._validate import fail
from minippo.plots._base import COLOURS, LINE, STYLES, tidy
from minippo.plots.rewards import LOOKS

Numbers = Sequence[float]


def lines(
    series: Mapping[str, Numbers],
    *,
    at: Numbers | None = None,
    x: str,
    y: str,
    colours: Mapping[str, str] | None = None,
    marks: Mapping[str, float] | None = None,
) -> Figure:
    """Plot each series over `at` (by default 0, 1, 2, …) in one picture.

    `colours` maps a series to its symbol in `COLOURS`; `marks` names horizontal lines, such as the
    null that a measurement is compared with.
    """
    if not 1 <= len(series) <= len(LOOKS):
        fail("lines", "series", f"be 1 to {len(LOOKS)} lines", len(series))
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots()
    for (name, values), (colour, _, style) in zip(series.items(), LOOKS, strict=False):
        symbol = (colours or {}).get(name)
        colour, style = (COLOURS[symbol], STYLES[symbol]) if symbol else (colour, style)
        places = range(len(values)) if at is None else at
        if len(places) != len(values):
            fail("lines", f"{name!r}", f"hold {len(places)} numbers, as many as at", len(values))
        axes.plot(places, values, style, color=colour, lw=2, label=name)
    for name, height in (marks or {}).items():
        axes.axhline(height, color=LINE, ls=":", lw=1.5, label=name)
    tidy(axes, x=x, y=y)
    if len(series) + len(marks or {}) > 1:
        axes.legend(fontsize=9)
    return figure


def two_lines(
    series: Mapping[str, tuple[Numbers, Numbers]],
    *,
    x: str,
    y: tuple[str, str],
    marks: Mapping[str, float] | None = None,
    log: tuple[bool, bool] = (False, False),
) -> Figure:
    """Plot two quantities of each series over steps 1, 2, 3, … side by side.

    What to see: how one follows the other. `marks` names horizontal lines in the left panel; `log`
    makes an axis logarithmic.
    """
    figure = Figure(figsize=(9, 3), layout="constrained")
    for k, axes in enumerate(figure.subplots(1, 2)):
        for (name, pair), (colour, _, style) in zip(series.items(), LOOKS, strict=False):
            axes.plot(range(1, len(pair[k]) + 1), pair[k], style, color=colour, lw=2, label=name)
        for name, height in (marks or {}).items() if k == 0 else ():
            axes.axhline(height, color=LINE, ls=":", lw=1.5, label=name)
        axes.set_yscale("log" if log[k] else "linear")
        tidy(axes, x=x, y=y[k])
    figure.axes[0].legend(fontsize=9)
    return figure


def bars(
    values: Mapping[str, float],
    *,
    x: str,
    errors: Mapping[str, float] | None = None,
    marks: Mapping[str, float] | None = None,
    symbol: str = "policy",
) -> Figure:
    """Plot one bar per name with its number, from the left; `errors` are half-widths.

    `marks` names vertical lines, such as the null that a measurement is compared with.
    """
    if not values:
        fail("bars", "values", "hold at least one number", "none")
    figure = Figure(figsize=(9, 0.9 + 0.4 * len(values)), layout="constrained")
    axes = figure.subplots()
    half = [(errors or {}).get(name, 0.0) for name in values]
    shown = axes.barh(
        [*values], [*values.values()], 0.6, color=COLOURS[symbol],
        xerr=half if errors else None, ecolor=LINE, capsize=3,
    )  # fmt: skip
    axes.bar_label(shown, [f"{value:.3g}" for value in values.values()], padding=4, fontsize=9)
    for name, place in (marks or {}).items():
        axes.axvline(place, color=LINE, ls="--", lw=1.5, label=name)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    tidy(axes, x=x)
    if marks:
        axes.legend(fontsize=9)
    return figure
