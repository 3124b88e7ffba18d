"""Pictures of the clip, with six regions, two of them flat, and of the penalty instead."""

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from minippo import clip_is_active, clipped_surrogate, kl_k3, penalty_surrogate
from minippo.plots._base import BAND, COLOURS, LINE, Picture, tidy

RATIOS = torch.linspace(0.0, 2.0, 401, dtype=torch.float64)


def objective(ratios: Tensor, advantage: float, epsilon: float) -> tuple[Tensor, Tensor]:
    """PPO-Clip's objective and its slope in the ratio, by autograd from the loss itself."""
    ratios = ratios.clone().requires_grad_()
    value = -clipped_surrogate(ratios, torch.full_like(ratios, advantage), epsilon)
    (slope,) = torch.autograd.grad(value.sum(), ratios)
    return value.detach(), slope


def penalised(ratios: Tensor, advantage: float, coef: float) -> tuple[Tensor, Tensor]:
    """PPO-Penalty's objective and slope, with a single token's KL: k3(old, new), as in training."""
    ratios = ratios.clone().requires_grad_()
    kl = kl_k3(torch.zeros_like(ratios), ratios.log())
    value = -penalty_surrogate(ratios, torch.full_like(ratios, advantage), kl, coef=coef)
    (slope,) = torch.autograd.grad(value.sum(), ratios)
    return value.detach(), slope


class Clipping(Picture):
    """Objective (above) and slope (below) against the ratio, for A > 0 (left) and A < 0 (right)."""

    def __init__(self, ratio: Tensor | None = None, advantages: Tensor | None = None) -> None:
        figure = Figure(figsize=(9, 5.2), layout="constrained")
        self._axes = figure.subplots(2, 2, sharex=True)
        self._tokens = None if ratio is None or advantages is None else (ratio, advantages)
        self._parts: list[dict[str, Any]] = []
        for column, name in enumerate(("A > 0", "A < 0")):
            top, bottom = self._axes[:, column]
            top.set_title(f"{name}: make it {'more' if column == 0 else 'less'} likely")
            tidy(top, y="objective" if column == 0 else "")
            tidy(bottom, x="ratio p / p_old", y="slope" if column == 0 else "")
            top.set(xlim=(0, 2), ylim=(-3, 3))
            bottom.set(ylim=(-1.9, 1.9))
            self._parts.append(self._column(top, bottom))
        moving = [artist for part in self._parts for artist in part.values()]
        super().__init__(figure, moving)

    def _column(self, top: Any, bottom: Any) -> dict[str, Any]:
        part: dict[str, Any] = {}
        for name, axes in (("top", top), ("bottom", bottom)):
            part[f"{name} flat"] = axes.axvspan(0, 1, color=BAND, zorder=0)
            style = {"color": COLOURS["policy"], "lw": 2.5, "zorder": 3}
            (part[f"{name} curve"],) = axes.plot([], [], **style)
            for edge in ("low", "high"):
                part[f"{name} {edge}"] = axes.axvline(1, color=LINE, ls=":", lw=1, zorder=1)
            marker = {
                "marker": "o",
                "ms": 9,
                "mfc": "white",
                "mec": COLOURS["advantage"],
                "mew": 2.5,
            }
            (part[f"{name} point"],) = axes.plot([], [], ls="", zorder=5, **marker)
        dots = {"color": COLOURS["old"], "marker": "|", "ls": "", "ms": 7, "zorder": 4}
        (part["tokens"],) = top.plot([], [], **dots)
        for region in ("below", "inside", "above"):
            part[region] = top.text(1, 2.5, "", ha="center", fontsize=9, zorder=6)
        return part

    def move(self, *, epsilon: float = 0.2, advantage: float = 1.0, ratio: float = 1.35) -> str:
        """Show the band, the advantage's size and one token's ratio."""
        size = abs(advantage) or 1.0
        for part, sign in zip(self._parts, (1.0, -1.0), strict=True):
            self._draw(part, sign * size, epsilon)
            shown = advantage * sign > 0 or advantage == 0
            at = torch.tensor([ratio], dtype=torch.float64)
            for name, y in zip(("top", "bottom"), objective(at, advantage, epsilon), strict=True):
                part[f"{name} point"].set_data(
                    [ratio] if shown else [], [float(y)] if shown else []
                )
        return self._say(epsilon, advantage, ratio)

    def _draw(self, part: dict[str, Any], advantage: float, epsilon: float) -> None:
        low, high = 1 - epsilon, 1 + epsilon
        left, right = (high, 2.0) if advantage > 0 else (0.0, low)
        value, slope = objective(RATIOS, advantage, epsilon)
        for name, y in (("top", value), ("bottom", slope)):
            part[f"{name} curve"].set_data(RATIOS.numpy(), y.numpy())
            part[f"{name} flat"].set_x(left)
            part[f"{name} flat"].set_width(right - left)
            part[f"{name} low"].set_xdata([low, low])
            part[f"{name} high"].set_xdata([high, high])
        flat = "above" if advantage > 0 else "below"
        places = {"below": low / 2, "inside": 1.0, "above": (high + 2) / 2}
        for region, x in places.items():
            part[region].set_position((x, 2.5))
            part[region].set_text("flat" if region == flat else "learns")
        if self._tokens is not None:
            ratios, advantages = self._tokens
            own = ratios[advantages * advantage > 0].cpu().double()
            part["tokens"].set_data(own.numpy(), objective(own, advantage, epsilon)[0].numpy())

    @staticmethod
    def _say(epsilon: float, advantage: float, ratio: float) -> str:
        at = torch.tensor([ratio], dtype=torch.float64)
        a = torch.full_like(at, advantage)
        slope = float(objective(at, advantage, epsilon)[1])
        clipped = bool(clip_is_active(at, a, epsilon))
        word = "clipped" if clipped else "no advantage" if advantage == 0 else "not clipped"
        band = f"band {1 - epsilon:.2f} to {1 + epsilon:.2f}"
        return f"Ratio {ratio:.2f}, A = {advantage:+.2f}, {band}: {word}, slope {slope + 0.0:.2f}."


def clipping(
    *,
    epsilon: float = 0.2,
    advantage: float = 1.0,
    ratio: float = 1.35,
    tokens: tuple[Tensor, Tensor] | None = None,
) -> Figure:
    """Plot PPO-Clip's objective and slope against the ratio, and one token on them.

    What to see: of the six regions (below, inside and above the band, for either sign of A) two
    are flat: above the band for A > 0, and below it for A < 0. Everywhere else there is a slope,
    even outside the band on the way back to it. `tokens` are the ratios and advantages of real
    tokens, drawn as ticks on the curve.
    """
    picture = Clipping(*(tokens or (None, None)))
    picture.move(epsilon=epsilon, advantage=advantage, ratio=ratio)
    return picture.figure


def clipping_panels(epsilons: tuple[float, ...] = (0.0, 0.1, 0.2, 0.4)) -> Figure:
    """Plot the objective for several epsilons side by side, A = +1 and A = -1.

    What to see: epsilon moves the corner, not the slope on the way there. At 0 only tokens on
    their way back are learned from.
    """
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    for axes, epsilon in zip(figure.subplots(1, len(epsilons), sharey=True), epsilons, strict=True):
        for advantage, style in ((1.0, "-"), (-1.0, "--")):
            value = objective(RATIOS, advantage, epsilon)[0]
            axes.plot(
                RATIOS, value, style, color=COLOURS["policy"], lw=2, label=f"A = {advantage:+.0f}"
            )
        axes.axvspan(1 - epsilon, 1 + epsilon, color=BAND, zorder=0)
        axes.set_title(f"epsilon = {epsilon:g}")
        tidy(axes, x="ratio p / p_old")
    figure.axes[0].set_ylabel("objective")
    figure.axes[0].legend(loc="lower left", fontsize=9)
    return figure


class ClipOrPenalty(Picture):
    """The two objectives (left) and their slopes (right) on the same ratio axis."""

    def __init__(self) -> None:
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        self._axes = figure.subplots(1, 2)
        self._lines: dict[str, list[Any]] = {}
        for axes, y in zip(self._axes, ("objective", "slope"), strict=True):
            tidy(axes, x="ratio p / p_old", y=y)
            axes.set(xlim=(0, 2), ylim=(-3, 3))
            axes.axvline(1, color=LINE, ls=":", lw=1)
        for name, symbol, style in (("PPO-Clip", "policy", "-"), ("PPO-Penalty", "kl", "--")):
            drawing = {"color": COLOURS[symbol], "ls": style, "lw": 2.5, "label": name}
            self._lines[name] = [axes.plot([], [], **drawing)[0] for axes in self._axes]
        self._axes[0].legend(loc="upper left", fontsize=9)
        super().__init__(figure, [line for lines in self._lines.values() for line in lines])

    def move(self, *, epsilon: float = 0.2, coef: float = 1.0, advantage: float = 1.0) -> str:
        """Show both for this band, coefficient and advantage."""
        ratios = RATIOS[1:]  # at 0 the KL of the penalty is infinite
        curves = {
            "PPO-Clip": objective(ratios, advantage, epsilon),
            "PPO-Penalty": penalised(ratios, advantage, coef),
        }
        for name, lines in self._lines.items():
            for line, y in zip(lines, curves[name], strict=True):
                line.set_data(ratios.numpy(), y.numpy())
        at = torch.tensor([1.5], dtype=torch.float64)
        clip, penalty = (float(f[1]) + 0.0 for f in (
            objective(at, advantage, epsilon), penalised(at, advantage, coef)
        ))  # fmt: skip
        slopes = f"{clip:.2f} with the clip and {penalty:.2f} with the penalty"
        settings = f"A = {advantage:+.2f}, epsilon {epsilon:.2f}, coefficient {coef:.2f}"
        return f"{settings}: at ratio 1.50 the slope is {slopes}."


def clip_or_penalty(*, epsilon: float = 0.2, coef: float = 1.0, advantage: float = 1.0) -> Figure:
    """Plot PPO-Clip and PPO-Penalty (Schulman et al. 2017, eq. 7 and 8) on the same axis.

    The penalty's KL is that of a single sampled token, k3(old, new) = ratio - 1 - log(ratio), as
    the trainer estimates it. What to see: the clip is linear and then flat; the penalty bends
    smoothly. Its best ratio for A > 0 is coef / (coef - A); with coef <= A there is none, and only
    the step size ends the climb.
    """
    picture = ClipOrPenalty()
    picture.move(epsilon=epsilon, coef=coef, advantage=advantage)
    return picture.figure


def clip_or_penalty_panels(coefs: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)) -> Figure:
    """Plot both objectives for several coefficients side by side, A = +1, epsilon 0.2.

    What to see: the larger the coefficient, the nearer the penalty's best ratio,
    coef / (coef - 1), is to 1; at coefficient 1 there is none.
    """
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    for axes, coef in zip(figure.subplots(1, len(coefs), sharey=True), coefs, strict=True):
        ratios = RATIOS[1:]
        clip, penalty = objective(ratios, 1.0, 0.2)[0], penalised(ratios, 1.0, coef)[0]
        axes.plot(ratios, clip, "-", color=COLOURS["policy"], lw=2, label="PPO-Clip")
        axes.plot(ratios, penalty, "--", color=COLOURS["kl"], lw=2, label="PPO-Penalty")
        axes.set(title=f"coefficient {coef:g}", ylim=(-2, 2))
        tidy(axes, x="ratio p / p_old")
    figure.axes[0].set_ylabel("objective")
    figure.axes[0].legend(loc="lower right", fontsize=9)
    return figure


def token_ratios(
    words: Sequence[str], ratios: Tensor, advantage: float, *, epsilon: float = 0.2
) -> Figure:
    """Plot the ratio of each token of one response, above or below 1, and which are flat.

    What to see: ratios leave the band (grey), most of them in the direction that the advantage
    asks for, where the token is flat (white bar); a bar with a colour still learns.
    """
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots()
    active = clip_is_active(ratios, torch.full_like(ratios, advantage), epsilon).tolist()
    colour = COLOURS["policy"]
    bars = axes.bar(
        range(len(words)), (ratios - 1).tolist(), bottom=1, edgecolor=colour,
        color=["white" if flat else colour for flat in active],
    )  # fmt: skip
    axes.bar_label(bars, [f"{x:.1f}" if abs(x - 1) > epsilon else "" for x in ratios.tolist()])
    axes.axhspan(1 - epsilon, 1 + epsilon, color=BAND, zorder=0)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.margins(y=0.15)
    axes.set_xticks(range(len(words)), words, rotation=60, ha="right", rotation_mode="anchor")
    way = "more" if advantage > 0 else "less"
    axes.set_title(f"A = {advantage:+.2f}: should become {way} likely")
    tidy(axes, y="ratio p / p_old (log scale)")
    handles = [Patch(fc="white", ec=colour, label="flat"), Patch(fc=colour, label="learns")]
    axes.legend(handles=handles, fontsize=9)
    return figure
