"""What all pictures share: colours, a small PNG with its text, and redrawing only what moves.

One colour per symbol throughout the course, in formulas, pictures and frames. Each stands out 3:1
or more from white pages, from dark ones (#111, #131416) and from a picture's `BAND`; 4.5:1 on white
and black alike no colour can reach. Readers with any kind of colour vision can tell them apart, and
line style, marker or a label always says it too. A picture is a white card on every page.
"""

import base64
import html
import io
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache
from typing import Any

from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from PIL import Image

COLOURS = {
    "policy": "#0072B2",
    "reference": "#696969",
    "old": "#1C91DC",
    "reward": "#D55E00",
    "value": "#009E73",
    "advantage": "#C96BA2",
    "kl": "#8E5500",
    "entropy": "#8A3FD0",
}
BAND, LINE = "#F0F0F0", "#777777"  # not symbols: what is healthy or flat, and marks
STYLES = {
    "policy": "-",
    "reference": "--",
    "old": ":",
    "reward": "-",
    "value": "--",
    "advantage": "-.",
    "kl": "--",
    "entropy": "-.",
}


class Shown:
    """A picture for a notebook: a PNG whose alt text is the plain text that tests compare.

    It is stored as lossless WebP, a third smaller: notebooks are most of a clone's text.
    """

    def __init__(self, png: bytes, alt: str, caption: str, fold: str = "") -> None:
        self.png, self.alt, self.caption, self.fold = png, alt, caption, fold

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        small = io.BytesIO()
        picture = Image.open(io.BytesIO(self.png)).convert("RGB")
        picture.save(small, format="webp", lossless=True, quality=100)
        data = base64.b64encode(small.getvalue()).decode()
        page = (
            f'<figure><img alt="{html.escape(self.alt)}" src="data:image/webp;base64,{data}"/>'
            f"<figcaption>{html.escape(self.caption)}</figcaption></figure>"
        )
        page = folded(page, self.fold) if self.fold else page
        return {"text/plain": f"{self.alt}\n{self.caption}", "text/html": page}


def folded(page: str, label: str) -> str:
    """HTML that the reader opens: JupyterLab, VS Code, Colab and the site all fold it."""
    return f"<details><summary>{html.escape(label)}</summary>{page}</details>"


def png(figure: Figure, *, colours: int = 16) -> bytes:
    """Render the figure as a PNG with a small palette: 12 KB instead of 40 in full colour.

    The palette is the figure's commonest colours, no two of them similar, so that a symbol keeps
    its exact colour.
    """
    raw, small = io.BytesIO(), io.BytesIO()
    figure.savefig(raw, format="png", dpi=100)
    image = Image.open(raw).convert("RGB")
    palette: list[Any] = []
    found: list[tuple[int, Any]] = image.getcolors(image.width * image.height) or []
    for _, colour in sorted(found, reverse=True):
        if len(palette) < colours and all(math.dist(colour, c) > 20 for c in palette):
            palette.append(colour)
    swatch = Image.new("P", (1, 1))
    swatch.putpalette([level for colour in palette for level in colour])
    quantized = image.quantize(palette=swatch, dither=Image.Dither.NONE)
    quantized.save(small, format="png", optimize=True)
    return small.getvalue()


def show(figure: Figure, *, alt: str, caption: str, fold: str = "") -> Shown:
    """Show the figure, as a cell's last line, with alternative text (alt) and caption.

    `fold` folds it under this summary, for a picture that answers a question.
    """
    return Shown(png(figure), alt, caption, fold)


class Picture(ABC):
    """A figure that redraws only its moving parts, for a widget that follows a slider.

    Axes, labels and limits are drawn once. A subclass makes its artists in `__init__` and passes on
    those that move; `move` gives them new data and returns one sentence that says in words and
    numbers what the picture shows.
    """

    def __init__(self, figure: Figure, moving: Sequence[Artist]) -> None:
        self.figure, self._canvas = figure, FigureCanvasAgg(figure)
        self._moving = sorted(moving, key=lambda artist: artist.get_zorder())
        self._background: Any = None

    @abstractmethod
    def move(self) -> str:
        """Show the settings, a subclass's keywords, and return the sentence that describes them."""

    def png(self) -> bytes:
        """Render the picture as it is now, with the fixed parts from a cached copy."""
        if self._background is None:
            for artist in self._moving:
                artist.set_animated(True)
            self._canvas.draw()
            self._background = self._canvas.copy_from_bbox(self.figure.bbox)
            for artist in self._moving:
                artist.set_animated(False)
        self._canvas.restore_region(self._background)
        for artist in self._moving:
            artist.draw(self._canvas.get_renderer())
        image = Image.frombuffer(
            "RGBA", self._canvas.get_width_height(), self._canvas.buffer_rgba()
        )
        made = io.BytesIO()
        image.convert("RGB").save(made, format="png", compress_level=1)
        return made.getvalue()


def tidy(axes: Any, *, x: str = "", y: str = "") -> None:
    """Set labels with units, a light grid and no box."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def drawable(text: str) -> str:
    """Replace characters missing from the font, about which matplotlib would warn."""
    return "".join(sign if ord(sign) in _signs() else "\ufffd" for sign in text)


@cache
def _signs() -> set[int]:
    return set(get_font(findfont("DejaVu Sans")).get_charmap())
