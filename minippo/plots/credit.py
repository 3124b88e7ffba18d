"""A picture of credit: one response, token by token, from reward to advantage."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import Tensor

from minippo import gae, monte_carlo_returns, td_errors
from minippo.plots._base import COLOURS, LINE, Picture, tidy

HEAT = colormaps["PuOr_r"].resampled(9)  # few colours: the stored PNG has 16
ROWS = ("reward r", "value V", "TD error", "advantage A", "return G")


def ink(share: float) -> str:
    """Colour of a number on `HEAT` at this share (-1 to 1) of its range: 4.9:1 or more."""
    return "white" if share < -5 / 9 or share > 7 / 9 else "black"


def credit_table(rewards: Tensor, values: Tensor | None, gamma: float, lam: float) -> Tensor:
    """[5, time]: reward, value, TD error, advantage and return per token.

    Without values, [2, time]: reward and return.
    """
    r = rewards.cpu().double().unsqueeze(0)
    mask = torch.ones_like(r).bool()
    if values is None:
        return torch.cat([r, monte_carlo_returns(r, mask, gamma=gamma)])
    v = values.cpu().double().unsqueeze(0)
    parts = [
        r,
        v,
        td_errors(r, v, mask, gamma=gamma),
        gae(r, v, mask, gamma=gamma, lam=lam),
        monte_carlo_returns(r, mask, gamma=gamma),
    ]
    return torch.cat(parts)


class Credit(Picture):
    """A heat strip under the words of a response, one row per quantity."""

    def __init__(self, words: Sequence[str], rewards: Tensor, values: Tensor | None = None) -> None:
        """One response: its words, and [time] rewards and values."""
        self._rewards, self._values, time = rewards, values, len(words)
        names, fix = (ROWS[::4], 1) if values is None else (ROWS, 2)
        figure = Figure(figsize=(9, 1.4 + 0.4 * len(names)), layout="constrained")
        axes = figure.subplots()
        guessed = 0.0 if values is None else float(values.abs().max())
        top = max(1.0, float(rewards.abs().sum()), guessed)
        heat: dict[str, Any] = {"cmap": HEAT, "vmin": -top, "vmax": top, "aspect": "auto"}
        fixed = credit_table(rewards, values, 1.0, 1.0)[:fix]  # rewards and values do not change
        edges = (-0.5, time - 0.5)
        axes.imshow(fixed.numpy(), extent=(*edges, fix - 0.5, -0.5), **heat)
        self._image = axes.imshow(
            fixed.numpy(), extent=(*edges, len(names) - 0.5, fix - 0.5), **heat
        )
        axes.set(ylim=(len(names) - 0.5, -0.5))
        axes.set_yticks(range(len(names)), names)
        axes.set_xticks(range(time), words, rotation=40, ha="right", fontsize=9)
        axes.set_xlabel("token of the response")
        axes.spines[:].set_visible(False)
        centred: dict[str, Any] = {"zorder": 3, **_middle(time)}
        cells = [axes.text(t, i, "", **centred) for i in range(len(names)) for t in range(time)]
        self._top, self._cells, self._fix = top, cells[fix * time :], fix
        self._write(cells[: fix * time], fixed)
        super().__init__(figure, [self._image, *self._cells])

    def _write(self, cells: Sequence[Text], numbers: Tensor) -> None:
        for text, x in zip(cells, numbers.flatten().tolist(), strict=True):
            text.set_text(f"{x + 0.0:.2f}")
            text.set_color(ink(x / self._top))

    def move(self, *, gamma: float = 1.0, lam: float = 0.95) -> str:
        """Show the credit for this discount and this lambda."""
        table = credit_table(self._rewards, self._values, gamma, lam)
        self._image.set_data(table[self._fix :].numpy())
        self._write(self._cells, table[self._fix :])
        if self._values is None:
            first, *_, end = table[1].tolist()
            return f"gamma {gamma:.2f}: return {first:.2f} at the first token, {end:.2f} at EOS."
        last, reach = table.shape[1] - 1, (gamma * lam) ** (table.shape[1] - 1)
        return (
            f"gamma {gamma:.2f}, lambda {lam:.2f}: advantage {table[3, 0] + 0.0:+.2f} at the first "
            f"token, {table[3, last] + 0.0:+.2f} at the last; the last TD error counts "
            f"{reach:.2f} at the first token."
        )


def credit_panels(
    words: Sequence[str], rewards: Tensor, values: Tensor, lams: Sequence[float] = (0.0, 0.95, 1.0)
) -> Figure:
    """Plot the advantages of the same response for several lambdas, gamma = 1.

    What to see: how far to the left the surprise at the end reaches.
    """
    table = {f"lambda {lam:g}": credit_table(rewards, values, 1.0, lam)[3] for lam in lams}
    return credit_rows(words, table)


def credit_rows(words: Sequence[str], rows: Mapping[str, Tensor]) -> Figure:
    """Plot several opinions on the tokens of a response, one coloured row per opinion.

    What to see: to which token each gives credit (orange) or blame (purple).
    """
    middle = _middle(len(words))
    tall = 0.5 if middle["rotation"] else 0.4
    figure = Figure(figsize=(9, 1.1 + tall * len(rows)), layout="constrained")
    axes = figure.subplots()
    table = torch.stack([*rows.values()])
    top = max(1.0, float(table.abs().max()))
    axes.imshow(table.numpy(), cmap=HEAT, vmin=-top, vmax=top, aspect="auto")
    axes.set_yticks(range(len(rows)), [*rows])
    axes.set_xticks(range(len(words)), words, rotation=40, ha="right", fontsize=9)
    axes.set_xlabel("token of the response")
    axes.spines[:].set_visible(False)
    for i, row in enumerate(table.tolist()):
        for t, x in enumerate(row):
            axes.text(t, i, f"{round(x, 2) + 0.0:.2f}", color=ink(x / top), **middle)
    return figure


def surprises(words: Sequence[str], values: Tensor, score: float) -> Figure:
    """Plot the score expected before each token, and the step that each token makes.

    What to see: the steps are TD errors; the last one leads to the score.
    """
    levels, n = [*values.tolist(), score], len(words)
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.hlines(levels, range(n + 1), range(1, n + 2), color=COLOURS["value"], lw=3)
    for t, (a, b) in enumerate(pairwise(levels), 1):
        arrow = {"arrowstyle": "->", "color": COLOURS["advantage"], "lw": 2}
        axes.annotate("", (t, b), (t, a), arrowprops=arrow)
        axes.text(t + 0.06, (a + b) / 2 if abs(b - a) > 0.2 else b + 0.05, f"{b - a:+.1f}")
    axes.text(n + 0.1, score + 0.06, f"the score, {score:.1f}")
    axes.set_xticks(range(1, n + 1), words)
    axes.set_ylim(min(levels) - 0.2, max(levels) + 0.25)
    tidy(axes, x="token", y="expected score")
    return figure


def token_truth(
    words: Sequence[str],
    values: Tensor,
    errors: Tensor,
    score: float,
    guesses: Mapping[str, Tensor] | None = None,
) -> Figure:
    """Plot the measured value before each token, two standard errors up and down, and the score.

    What to see: a token's credit is the step that the line makes above its word. `guesses` are
    other values at the same places.
    """
    places = [t - 0.5 for t in range(len(words) + 1)]
    figure = Figure(figsize=(9, 3.3), layout="constrained")
    axes = figure.subplots()
    axes.plot(places, [*values.tolist(), score], "k-", lw=1.5)
    axes.errorbar(places[:-1], values, 2 * errors, fmt="ko", ms=4, capsize=3, label="measured")
    looks = ((COLOURS["value"], "--"), (LINE, ":"))
    for (name, guess), (colour, style) in zip((guesses or {}).items(), looks, strict=False):
        axes.plot(places[:-1], guess, style, color=colour, lw=2, label=name)
    axes.set_xticks(range(len(words)), words, rotation=40, ha="right", fontsize=9)
    axes.legend(fontsize=9)
    tidy(axes, x="token of the response", y="expected score")
    return figure


def _middle(time: int) -> dict[str, Any]:
    """The look of a number in its cell; where cells are narrow, numbers stand upright."""
    return {"ha": "center", "va": "center", "fontsize": 9, "rotation": 90 if time > 22 else 0}
