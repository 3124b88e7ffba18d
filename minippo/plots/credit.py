"""A picture of credit: one response, token by token, from reward to advantage."""

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import Tensor

from minippo import gae, monte_carlo_returns, td_errors
from minippo.plots._base import Picture

HEAT = colormaps["PuOr_r"].resampled(9)  # few colours: the stored PNG has 16
ROWS = ("reward r", "value V", "TD error", "advantage A", "return R")


def ink(share: float) -> str:
    """Colour of a number on `HEAT` at this share (-1 to 1) of its range: 4.9:1 or more."""
    return "white" if share < -5 / 9 or share > 7 / 9 else "black"


def credit_table(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> Tensor:
    """[5, time]: reward, value, TD error, advantage and Monte-Carlo return per token."""
    r, v = (x.cpu().double().unsqueeze(0) for x in (rewards, values))
    mask = torch.ones_like(r).bool()
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

    def __init__(self, words: Sequence[str], rewards: Tensor, values: Tensor) -> None:
        """One response: its words, and [time] rewards and values."""
        self._rewards, self._values, time = rewards, values, len(words)
        figure = Figure(figsize=(9, 3.4), layout="constrained")
        axes = figure.subplots()
        top = max(1.0, float(rewards.abs().sum()), float(values.abs().max()))
        heat: dict[str, Any] = {"cmap": HEAT, "vmin": -top, "vmax": top, "aspect": "auto"}
        fixed = credit_table(rewards, values, 1.0, 1.0)[:2]  # rewards and values do not change
        axes.imshow(fixed.numpy(), extent=(-0.5, time - 0.5, 1.5, -0.5), **heat)
        self._image = axes.imshow(fixed.numpy(), extent=(-0.5, time - 0.5, 4.5, 1.5), **heat)
        axes.set(ylim=(4.5, -0.5))
        axes.set_yticks(range(5), ROWS)
        axes.set_xticks(range(time), words, rotation=40, ha="right", fontsize=9)
        axes.set_xlabel("token of the response")
        axes.spines[:].set_visible(False)
        centred: dict[str, Any] = {"zorder": 3, **_middle(time)}
        cells = [axes.text(t, i, "", **centred) for i in range(5) for t in range(time)]
        self._top, self._cells = top, cells[2 * time :]
        self._write(cells[: 2 * time], fixed)
        super().__init__(figure, [self._image, *self._cells])

    def _write(self, cells: Sequence[Text], numbers: Tensor) -> None:
        for text, x in zip(cells, numbers.flatten().tolist(), strict=True):
            text.set_text(f"{x + 0.0:.2f}")
            text.set_color(ink(x / self._top))

    def move(self, *, gamma: float = 1.0, lam: float = 0.95) -> str:
        """Show the credit for this discount and this lambda."""
        table = credit_table(self._rewards, self._values, gamma, lam)
        self._image.set_data(table[2:].numpy())
        self._write(self._cells, table[2:])
        last, reach = table.shape[1] - 1, (gamma * lam) ** (table.shape[1] - 1)
        return (
            f"gamma {gamma:.2f}, lambda {lam:.2f}: advantage {table[3, 0] + 0.0:+.2f} at the first "
            f"token, {table[3, last] + 0.0:+.2f} at the last; the last TD error counts "
            f"{reach:.2f} at the first token."
        )


def credit(
    words: Sequence[str], rewards: Tensor, values: Tensor, *, gamma: float = 1.0, lam: float = 0.95
) -> Figure:
    """Plot reward, value, TD error, advantage and return per token of one response.

    What to see: the score is paid at the last token. With lam = 1 it reaches every token
    directly; with lam = 0 only through the values. Each advantage is its TD error plus
    gamma * lam times the advantage to its right.
    """
    picture = Credit(words, rewards, values)
    picture.move(gamma=gamma, lam=lam)
    return picture.figure


def credit_panels(
    words: Sequence[str], rewards: Tensor, values: Tensor, lams: Sequence[float] = (0.0, 0.95, 1.0)
) -> Figure:
    """Plot the advantages of the same response for several lambdas, gamma = 1.

    What to see: how far to the left the surprise at the end reaches.
    """
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    axes = figure.subplots()
    table = torch.stack([credit_table(rewards, values, 1.0, lam)[3] for lam in lams])
    top = max(1.0, float(table.abs().max()))
    axes.imshow(table.numpy(), cmap=HEAT, vmin=-top, vmax=top, aspect="auto")
    axes.set_yticks(range(len(lams)), [f"lambda {lam:g}" for lam in lams])
    axes.set_xticks(range(len(words)), words, rotation=40, ha="right", fontsize=9)
    axes.set_xlabel("token of the response")
    axes.spines[:].set_visible(False)
    for i, row in enumerate(table.tolist()):
        for t, x in enumerate(row):
            axes.text(t, i, f"{x:.2f}", color=ink(x / top), **_middle(len(words)))
    return figure


def _middle(time: int) -> dict[str, Any]:
    """The look of a number in its cell; where cells are narrow, numbers stand upright."""
    return {"ha": "center", "va": "center", "fontsize": 9, "rotation": 90 if time > 22 else 0}
