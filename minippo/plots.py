"""Pictures: numbers in, matplotlib figures out; nothing here calls `plt.show()`.

One colour a symbol throughout the course, from the palette of Okabe and Ito, which readers with
any kind of colour vision can tell apart; line style or marker says it too.
"""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

COLOURS = {
    "policy": "#0072B2",
    "reference": "#999999",
    "old": "#56B4E9",
    "reward": "#D55E00",
    "value": "#009E73",
    "advantage": "#CC79A7",
    "kl": "#E69F00",
    "entropy": "#000000",
}


class Shown:
    """A picture for a notebook: a small PNG whose alt text is the plain text that tests compare."""

    def __init__(self, png: bytes, alt: str, caption: str) -> None:
        self.png, self.alt, self.caption = png, alt, caption

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        data = base64.b64encode(self.png).decode()
        page = (
            f'<figure><img alt="{html.escape(self.alt)}" src="data:image/png;base64,{data}"/>'
            f"<figcaption>{html.escape(self.caption)}</figcaption></figure>"
        )
        return {"text/plain": f"{self.alt}\n{self.caption}", "text/html": page}


def png(figure: Figure, *, colours: int = 16) -> bytes:
    """The figure as a PNG with a small palette: about 12 KB where 16 million colours take 40."""
    raw, small = io.BytesIO(), io.BytesIO()
    figure.savefig(raw, format="png", dpi=100)
    image = (
        Image.open(raw)
        .convert("RGB")
        .quantize(colours, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    )
    image.save(small, format="png", optimize=True)
    return small.getvalue()


def show(figure: Figure, *, alt: str, caption: str) -> Shown:
    """The last line of a notebook's cell: the figure, what it shows (alt) and what it says."""
    return Shown(png(figure), alt, caption)


def training_run(history: Sequence[Mapping[str, float]], *, title: str = "") -> Figure:
    """Score, KL, entropy, clip fraction, value loss and explained variance by step of a PPO run.

    What to see: the score rises while the KL to the reference is paid for; the clip fraction
    stays well below one half; entropy falls slowly, not to zero.
    """
    panels = [
        ("score", "score", "reward", "-"),
        ("kl", "KL to reference\n(nats per response)", "kl", "--"),
        ("entropy", "entropy\n(nats per token)", "entropy", "-."),
        ("clip_fraction", "clip fraction", "policy", "-"),
        ("value_loss", "value loss", "value", "--"),
        ("explained_variance", "explained variance", "value", "-."),
    ]
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    figure.suptitle(title)
    steps = [int(stats["step"]) for stats in history]
    for axes, (name, label, colour, style) in zip(
        figure.subplots(2, 3, sharex=True).flat, panels, strict=True
    ):
        axes.plot(steps, [stats[name] for stats in history], style, color=COLOURS[colour], lw=2)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in figure.axes[3:]:
        axes.set_xlabel("PPO step")
    return figure
