"""Pictures of what KL buys: proxy against gold reward, and several methods' frontiers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from minippo._validate import fail
from minippo.plots._base import COLOURS, LINE, Picture, tidy

Numbers = Sequence[float]
Points = Sequence[tuple[float, float]]
GOLD = "#444444"  # the hidden reward: not a symbol of PPO's
# For methods, which are not symbols: colours, markers and lines all differ.
LOOKS = [
    (COLOURS[name], marker, style)
    for name, marker, style in zip(
        ("policy", "reward", "value", "advantage", "entropy", "kl", "old", "reference"),
        "os^DvP*X",
        ("-", "--", "-.", ":", "-", "--", "-.", ":"),
        strict=True,
    )
]


class OverOptimisation(Picture):
    """Proxy and gold reward against the KL to the reference, with a cursor between them."""

    def __init__(self, kl: Numbers, proxy: Numbers, gold: Numbers) -> None:
        """One point per checkpoint, in any order: KL in nats per response, two rewards."""
        self._kl, self._proxy, self._gold = _sorted("OverOptimisation", kl, proxy, gold)
        figure = Figure(figsize=(9, 3.8), layout="constrained")
        axes = figure.subplots()
        _curves(axes, self._kl, self._proxy, self._gold)
        axes.set_ylabel("reward")
        axes.legend(loc="best", fontsize=9)
        (self._gap,) = axes.plot([], [], color=LINE, lw=6, alpha=0.5, zorder=2)
        dots: dict[str, Any] = {"ls": "", "ms": 11, "mfc": "white", "mew": 2.5, "zorder": 5}
        (self._dot,) = axes.plot([], [], "o", mec=COLOURS["reward"], **dots)
        (self._square,) = axes.plot([], [], "s", mec=GOLD, **dots)
        super().__init__(figure, [self._gap, self._dot, self._square])

    @property
    def span(self) -> tuple[float, float]:
        """Smallest and largest KL."""
        return float(self._kl[0]), float(self._kl[-1])

    def move(self, *, kl: float | None = None) -> str:
        """Go to a KL (default: where gold is highest), interpolating between points."""
        best = int(self._gold.argmax())
        at = float(self._kl[best]) if kl is None else kl
        low, high = self.span
        if not low - 0.01 <= at <= high + 0.01:  # allow for a slider's rounding
            fail("OverOptimisation", "kl", f"lie in [{low:g}, {high:g}]", kl)
        proxy, gold = (float(np.interp(at, self._kl, y)) for y in (self._proxy, self._gold))
        self._gap.set_data([at, at], [gold, proxy])
        self._dot.set_data([at], [proxy])
        self._square.set_data([at], [gold])
        return (
            f"At {at:.1f} nats: proxy {proxy:.2f}, gold {gold:.2f}, gap {proxy - gold:+.2f}; "
            f"gold is highest, {self._gold[best]:.2f}, at {self._kl[best]:.1f} nats."
        )


def over_optimisation(kl: Numbers, proxy: Numbers, gold: Numbers) -> Figure:
    """Plot the reward paid (proxy) and the reward meant (gold) against the KL spent.

    One point per checkpoint. What to see: both rise at first; then the proxy keeps rising while
    gold falls (Goodhart; Gao et al. 2022 measured its shape). The cursor is where gold is highest.
    The gap is meaningful only if both have the same scale and the same zero.
    """
    picture = OverOptimisation(kl, proxy, gold)
    picture.move()
    return picture.figure


def over_optimisation_panels(runs: Mapping[str, tuple[Numbers, Numbers, Numbers]]) -> Figure:
    """Plot several runs side by side: name -> (kl, proxy, gold).

    What to see: how far to the right gold still rises, and how far proxy and gold diverge.
    """
    if not runs:
        fail("over_optimisation_panels", "runs", "hold at least one run", "none")
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    grid = figure.subplots(1, len(runs), sharey=True, squeeze=False)[0]
    for axes, (name, points) in zip(grid, runs.items(), strict=True):
        kl, proxy, gold = _sorted(f"over_optimisation_panels, run {name!r}", *points)
        _curves(axes, kl, proxy, gold)
        axes.axvline(kl[gold.argmax()], color=LINE, ls=":", lw=1.5)
        axes.set_title(name)
    grid[0].set_ylabel("reward")
    grid[0].legend(loc="best", fontsize=9)
    return figure


class Frontier(Picture):
    """Reward against KL for several methods, each a line of settings with ranges over seeds."""

    def __init__(self, methods: Mapping[str, Sequence[Points]], *, reward: str = "gold") -> None:
        """`methods`: name -> per setting (such as each beta) the (kl, reward) of each seed."""
        _check_methods(methods)
        self._points = {
            name: [np.array(setting, float) for setting in settings]
            for name, settings in methods.items()
        }
        figure = Figure(figsize=(9, 4.2), layout="constrained")
        axes = figure.subplots()
        tidy(
            axes, x="KL to reference (nats/response)", y=f"{reward} reward (mean, range over seeds)"
        )
        for (name, settings), (colour, marker, style) in zip(
            self._points.items(), LOOKS, strict=False
        ):
            settings.sort(key=lambda setting: float(setting[:, 0].mean()))
            (x, y), low, high = (
                np.array([f(setting, axis=0) for setting in settings]).T
                for f in (np.mean, np.min, np.max)
            )
            # The mean of equal numbers may differ from them in the last digit.
            xerr, yerr = (np.maximum(0, (m - low[i], high[i] - m)) for i, m in enumerate((x, y)))
            look: dict[str, Any] = {"marker": marker, "ls": style, "color": colour, "label": name}
            axes.errorbar(x, y, yerr, xerr, ms=7, lw=1.8, elinewidth=1, capsize=2, **look)
        axes.legend(loc="best", fontsize=9)
        self._budget = axes.axvline(0, color="#444444", ls=":", lw=1.5, visible=False)
        rings: dict[str, Any] = {"ls": "", "ms": 15, "mfc": "none", "mec": "black", "mew": 1.8}
        (self._best,) = axes.plot([], [], "o", zorder=5, **rings)
        super().__init__(figure, [self._budget, self._best])

    @property
    def span(self) -> tuple[float, float]:
        """Smallest and largest mean KL of all settings."""
        kls = [float(s[:, 0].mean()) for settings in self._points.values() for s in settings]
        return min(kls), max(kls)

    def move(self, *, budget: float | None = None) -> str:
        """Ring each method's best setting within the budget of mean KL (nats; default: none)."""
        limit = np.inf if budget is None else budget + 1e-9
        rings, found = [], []
        for name, settings in self._points.items():
            within = [s for s in settings if s[:, 0].mean() <= limit]
            if not within:
                found.append((-np.inf, f"{name} has nothing"))
                continue
            best = max(within, key=lambda s: float(s[:, 1].mean()))
            rewards, mean = best[:, 1], float(best[:, 1].mean())
            rings.append(best.mean(0))
            seeds = f"{len(rewards)} seed{'s' if len(rewards) > 1 else ''}"
            spread = f"{rewards.min():.2f} to {rewards.max():.2f}, {seeds}"
            found.append((mean, f"{name} reaches {mean:.2f} ({spread})"))
        self._best.set_data(*(np.array(rings).T if rings else ([], [])))
        self._budget.set(visible=budget is not None, xdata=[budget or 0.0] * 2)
        ranked = [text for _, text in sorted(found, key=lambda pair: -pair[0])]
        begins = "With any KL" if budget is None else f"Within {budget:.1f} nats"
        return f"{begins}: {'; '.join(ranked)}."


def frontier(methods: Mapping[str, Sequence[Points]], *, reward: str = "gold") -> Figure:
    """Plot the reward-KL frontier: what each method gains from the KL it spends.

    `methods`: name -> per setting the (kl, reward) of each seed; KL in nats per response. A marker
    is the mean over seeds, its bars the range. What to see: a method is better where its line is
    higher at the *same* KL; the highest point overall says little by itself.
    """
    return Frontier(methods, reward=reward).figure


def _curves(axes: Any, kl: Any, proxy: Any, gold: Any) -> None:
    tidy(axes, x="KL to reference (nats/response)")
    axes.plot(kl, proxy, "o-", color=COLOURS["reward"], lw=2, ms=5, label="proxy (what is paid)")
    axes.plot(kl, gold, "s--", color=GOLD, lw=2, ms=5, label="gold (what is meant)")


def _sorted(caller: str, kl: Numbers, proxy: Numbers, gold: Numbers) -> list[Any]:
    for name, values in (("kl", kl), ("proxy", proxy), ("gold", gold)):
        if len(values) != len(kl) or len(kl) < 2 or not np.isfinite(values).all():
            must = "be two or more finite numbers, as many as kl"
            fail(caller, name, must, f"{len(values)}: {[float(x) for x in values][:6]}")
    order = np.argsort(kl, kind="stable")
    return [np.array(values, float)[order] for values in (kl, proxy, gold)]


def _check_methods(methods: Mapping[str, Sequence[Points]]) -> None:
    if not 1 <= len(methods) <= len(LOOKS):
        fail("Frontier", "methods", f"be 1 to {len(LOOKS)} methods", len(methods))
    for name, settings in methods.items():
        if not settings:
            fail("Frontier", f"methods[{name!r}]", "hold at least one setting", "none")
        for setting in settings:
            points = [tuple(point) for point in setting]
            if not points or any(len(p) != 2 or not np.isfinite(p).all() for p in points):
                must = "hold finite (kl, reward) pairs for each setting, one per seed"
                fail("Frontier", f"methods[{name!r}]", must, points)
