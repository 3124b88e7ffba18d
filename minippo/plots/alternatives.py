"""Pictures of the alternatives to PPO: DPO's pull, and several methods' numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from minippo._validate import fail
from minippo.losses import bradley_terry_loss
from minippo.plots._base import COLOURS, tidy
from minippo.plots.rewards import LOOKS

HATCHES = ("", "//", "..", "xx", "--", "++", "oo", "**")


def preference_loss() -> Figure:
    """Plot a pair's loss and pull against its margin, for reward models and for DPO.

    What to see: a clearly right pair hardly pulls; a wrong one pulls with all its weight.
    """
    margins = torch.linspace(-4, 4, 161, requires_grad=True)
    losses = bradley_terry_loss(margins, torch.zeros(161))
    (slopes,) = torch.autograd.grad(losses.sum(), margins)
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots()
    x = margins.detach()
    axes.plot(x, losses.detach(), color=COLOURS["policy"], lw=2.5, label="loss (nats)")
    axes.plot(x, -slopes, "--", color=COLOURS["reward"], lw=2.5, label="pull (minus the slope)")
    tidy(axes, x="margin: implicit reward of the chosen response minus the rejected one's")
    axes.legend()
    return figure


def grouped_bars(
    series: Mapping[str, Sequence[float]],
    names: Sequence[str],
    *,
    y: str,
    colours: Mapping[str, str] | None = None,
) -> Figure:
    """Plot bars side by side: one group per name, with one bar per series.

    `colours` maps a series to its symbol in `COLOURS`.
    """
    sizes = {name: len(values) for name, values in series.items()}
    if not 1 <= len(series) <= len(LOOKS) or set(sizes.values()) != {len(names)}:
        must = f"be 1 to {len(LOOKS)} series of {len(names)} numbers, one for each name"
        fail("grouped_bars", "series", must, sizes)
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes, width = figure.subplots(), 0.8 / len(series)
    places = np.arange(len(names))
    for k, ((label, values), (colour, _, _)) in enumerate(zip(series.items(), LOOKS, strict=False)):
        look: dict[str, Any] = {
            "color": COLOURS[colours[label]] if colours else colour,
            "hatch": HATCHES[k],
            "edgecolor": "black",
            "label": label,
        }
        axes.bar(places + k * width, values, width, **look)
    axes.axhline(0, color="black", lw=1)
    axes.set_xticks(places + 0.4 - width / 2, names)
    tidy(axes, y=y)
    figure.legend(loc="outside upper right", ncols=len(series), fontsize=9)
    return figure
