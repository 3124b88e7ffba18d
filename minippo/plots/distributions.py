"""Pictures of distributions: the next token under temperature, and KL between two."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from minippo import entropy, exact_kl, kl_k1, kl_k2, kl_k3
from minippo.plots._base import COLOURS, Picture, drawable, tidy

MOST = 12  # at most this many bars, for the likeliest tokens
ESTIMATORS = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}
SIZES = (1, 4, 16, 64, 256)


class NextToken(Picture):
    """Bars of the likeliest next tokens at one position and temperature."""

    def __init__(self, logits: Tensor, words: Sequence[str], *, show_entropy: bool = True) -> None:
        """`logits` [time, vocab] may be replaced; `words` names the whole vocabulary."""
        self.logits, self._words, self._show_entropy = logits, words, show_entropy
        figure = Figure(figsize=(9, 3.6))
        figure.subplots_adjust(left=0.08, right=0.98, top=0.96, bottom=0.27)  # room for words
        axes = figure.subplots()
        tidy(axes, x="", y="probability")
        axes.set(xlim=(-0.6, MOST - 0.4), ylim=(0, 1), xticks=[])
        self._bars = axes.bar(range(MOST), [0.0] * MOST, color=COLOURS["policy"], zorder=3)
        names: dict[str, Any] = {
            "ha": "center",
            "va": "top",
            "rotation": 35,
            "fontsize": 10,
            "zorder": 4,
            "parse_math": False,
        }
        self._names = [axes.text(i, -0.03, "", clip_on=False, **names) for i in range(MOST)]
        (self._level,) = axes.plot([], [], ls="--", lw=1.5, color=COLOURS["entropy"], zorder=2)
        self._note = axes.text(MOST - 0.5, 0.95, "", ha="right", va="top", fontsize=11)
        super().__init__(figure, [*self._bars, *self._names, self._level, self._note])

    def move(self, *, position: int = 0, temperature: float = 1.0) -> str:
        """Show the distribution after `position` response tokens."""
        z = self.logits[position].cpu().double()
        p = (z / temperature).softmax(-1)
        top = p.topk(min(MOST, len(p)))
        for i in range(MOST):
            shown = i < len(top.values)
            self._bars[i].set_height(float(top.values[i]) if shown else 0.0)
            self._names[i].set_text(drawable(self._words[int(top.indices[i])]) if shown else "")
        likeliest, share = self._words[int(top.indices[0])], float(top.values[0])
        said = f"Position {position}, temperature {temperature:.2f}: {likeliest!r} is likeliest "
        if not self._show_entropy:
            return f"{said}with {share:.2f}."
        h = float(entropy(z, temperature=temperature))
        level = float(torch.tensor(-h).exp())
        self._level.set_data([-0.6, MOST - 0.4], [level, level])
        self._note.set_text(f"entropy {h:.2f} nats (dashed: exp(-H) = {level:.2f})")
        most = float(torch.tensor(len(p)).log())
        return f"{said}with {share:.2f}; entropy {h:.2f} of at most {most:.2f} nats."


def darts(stretches: Mapping[str, float], thrown: Sequence[float]) -> Figure:
    """Plot probabilities end to end from 0 to 1, and the darts thrown at them.

    What to see: the longer a token's stretch, the more darts it catches.
    """
    figure = Figure(figsize=(9, 1.8), layout="constrained")
    axes, start = figure.subplots(), 0.0
    for word, p in stretches.items():
        axes.barh(0, p, left=start, color=COLOURS["old"], edgecolor="black", lw=2)
        axes.text(start + p / 2, -0.62, word, ha="center", va="center")
        start += p
    axes.plot(thrown, [0.6] * len(thrown), "v", color="black", ms=10)
    axes.set(xlim=(0, 1), ylim=(-0.9, 0.9))
    axes.set_yticks([0.6, 0, -0.62], ["dart", "stretch", "token"])
    tidy(axes, x="probabilities, end to end")
    return figure


def next_token_panels(
    logits: Tensor,
    words: Sequence[str],
    *,
    position: int = 0,
    temperatures: Sequence[float] = (0.5, 1.0, 2.0),
    show_entropy: bool = True,
) -> Figure:
    """Plot one position at several temperatures side by side, with the same token order.

    What to see: the order never changes; the distances do.
    """
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    z = logits[position].cpu().double()
    order = z.topk(min(8, len(z))).indices
    for axes, t in zip(
        figure.subplots(1, len(temperatures), sharey=True), temperatures, strict=True
    ):
        axes.bar(range(len(order)), (z / t).softmax(-1)[order].numpy(), color=COLOURS["policy"])
        names = [words[int(i)] for i in order]
        axes.set_xticks(range(len(order)), names, rotation=60, ha="right", fontsize=9)
        nats = f": {float(entropy(z, temperature=t)):.2f} nats" if show_entropy else ""
        axes.set_title(f"temperature {t:g}{nats}")
        tidy(axes)
    figure.axes[0].set_ylabel("probability")
    return figure


class KLTwoWays(Picture):
    """Two distributions over five tokens, the KL in both directions, and its three estimators.

    The points are exact means over tokens sampled from p, the bars exact standard deviations of
    averages of n tokens. What to see: the two directions differ; k1 and k3 are on the exact
    KL(p || q) (the line), k2 is beside it. k1 spreads most when q is near, k3 when it is far;
    single values of k1 may be negative.
    """

    WORDS = ("good", "fine", "bad", "odd", "!")
    Z = torch.tensor([0.9, 0.5, 0.0, -0.6, -1.2], dtype=torch.float64)

    def __init__(self) -> None:
        figure = Figure(figsize=(9, 3.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        tidy(left, y="probability")
        left.set(xlim=(-0.6, 4.6), ylim=(0, 1))
        left.set_xticks(range(5), self.WORDS)
        places, none = [i - 0.2 for i in range(5)], [0.0] * 5
        self._p = left.bar(places, none, 0.4, color=COLOURS["policy"], label="policy p", zorder=3)
        places = [i + 0.2 for i in range(5)]
        outline = {"hatch": "//", "fill": False, "edgecolor": COLOURS["reference"], "zorder": 3}
        self._q = left.bar(places, none, 0.4, label="reference q", **outline)
        left.legend(loc="upper right", fontsize=9)
        tidy(right, x="tokens averaged", y="mean ± one standard deviation (nats)")
        right.set(xscale="log", xlim=(0.7, 400), ylim=(-1.5, 2.5))
        (self._exact,) = right.plot([], [], color=COLOURS["kl"], lw=2, zorder=2)
        self._spread: dict[str, list[Any]] = {}
        for i, (name, marker) in enumerate(zip(ESTIMATORS, "o^s", strict=True)):
            shift = 0.82 * 1.22**i
            style = {"color": "black", "zorder": 3}
            (points,) = right.plot([], [], marker, ms=6, label=name, **style)
            bars = [right.plot([n * shift] * 2, [0, 0], lw=1.2, **style)[0] for n in SIZES]
            points.set_xdata([n * shift for n in SIZES])
            self._spread[name] = [points, *bars]
        right.legend(loc="upper right", fontsize=9, ncols=3)
        parts = [artist for parts in self._spread.values() for artist in parts]
        super().__init__(figure, [*self._p, *self._q, self._exact, *parts])

    def move(self, *, shift: float = 1.5, sharpen: float = 1.0) -> str:
        """Move the policy towards "good" by `shift` nats and sharpen it."""
        ref = self.Z
        z = sharpen * self.Z + shift * torch.tensor([1.0, 0, 0, 0, -0.5], dtype=torch.float64)
        p, q = z.softmax(-1), ref.softmax(-1)
        for i in range(5):
            self._p[i].set_height(float(p[i]))
            self._q[i].set_height(float(q[i]))
        forward, backward = float(exact_kl(z, ref)), float(exact_kl(ref, z))
        self._exact.set_data([0.7, 400], [forward, forward])
        log_p, log_q = z.log_softmax(-1), ref.log_softmax(-1)
        means = {}
        for name, parts in self._spread.items():
            k = ESTIMATORS[name](log_p, log_q)
            mean = float((p * k).sum())  # over tokens from p: exact, as is the spread
            sd = float((p * (k - mean) ** 2).sum().sqrt())
            means[name] = mean
            parts[0].set_ydata([mean] * len(SIZES))
            for bar, n in zip(parts[1:], SIZES, strict=True):
                bar.set_ydata([mean - sd / n**0.5, mean + sd / n**0.5])
        return (
            f"KL(p || q) = {abs(forward):.2f} nats, KL(q || p) = {abs(backward):.2f}; the means of "
            f"k1, k2, k3 are {abs(means['k1']):.2f}, {means['k2']:.2f}, {abs(means['k3']):.2f}."
        )


def kl_estimators() -> Figure:
    """Plot k1, k2 and k3 of one token over d, the log-ratio of policy and reference.

    What to see: near 0, k2 and k3 are the same parabola, while k1 is a line through 0, negative on
    the left; far to the left, where the reference likes the token better, k3 explodes.
    """
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots()
    d = torch.linspace(-3, 3, 121)
    for (name, k), style in zip(ESTIMATORS.items(), ("-", "--", "-."), strict=True):
        axes.plot(d, k(d, torch.zeros_like(d)), style, color=COLOURS["kl"], lw=2, label=name)
    axes.axhline(0, color="black", lw=0.8)
    axes.set_ylim(-3, 8)
    axes.legend()
    tidy(axes, x="d: log-prob under the policy minus under the reference", y="nats")
    return figure
