"""What a lesson tells, by key: questions, alternative texts and captions; reveals are folded.

Keys are "05-first": lesson, then name. The texts are in `lessons/05.toml`, not in the notebook's
cells, where they would give the answer away.
"""

import html
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from IPython.display import display
from matplotlib.figure import Figure

from minippo import plots
from minippo._validate import fail

FOLDER = Path(__file__).with_name("lessons")


@cache
def _lesson(number: str) -> Mapping[str, Any]:
    path = FOLDER / f"{number}.toml"
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def told(caller: str, kind: str, key: str) -> Mapping[str, Any]:
    """Return the entry of this key: `kind` is "ask" or "show"."""
    number, _, name = key.partition("-")
    known = _lesson(number).get(kind, {})
    if name not in known:
        options = ", ".join(f"{number}-{each}" for each in known) or f"a key of {FOLDER.name}/"
        fail(caller, "key", f"be one of {options}", repr(key))
    return known[name]


def show(figure: Figure, key: str) -> plots.Shown:
    """Show a figure, as a cell's last line, with the texts of this key; folded if it reveals."""
    return plots.show(figure, **told("show", "show", key))


class _Folded:
    """Text behind a summary. Its plain text, which tests compare, is not folded."""

    def __init__(self, text: str, label: str) -> None:
        self.text, self.label = text, label

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        page = f"<pre style='font-family: monospace'>{html.escape(self.text)}</pre>"
        return {"text/plain": self.text, "text/html": plots.folded(page, self.label)}


def reveal(*lines: object, label: str = "What came out") -> None:
    """Print lines that answer a prediction: they are folded until the reader opens them."""
    display(_Folded("\n".join(map(str, lines)), label))
