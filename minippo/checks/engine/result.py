"""A check's report, for a notebook or a terminal."""

import html
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from IPython.display import display

from minippo.checks.mistakes import NOBODY, Mistake


@dataclass(frozen=True, repr=False)
class Result:
    """The verdict on a function. It displays itself; `.require()` is for graders.

    Attributes:
        name: Name of the function checked.
        passed: True if value and gradient are right on every case.
        headline: The verdict in one line.
        mistakes: Catalogued mistakes that explain all observations; usually none or one.
        lines: Further lines of the report.
        finished: False while there is nothing to judge.
        idea: Whether the idea is right, on clean float32 numbers; "right; not yet robust" is.
        function: The function checked.
        reference: minippo's.
    """

    name: str
    passed: bool
    headline: str
    mistakes: tuple[Mistake, ...] = ()
    lines: tuple[str, ...] = ()
    finished: bool = True
    idea: bool = False
    function: Callable[..., Any] | None = field(default=None, compare=False)
    reference: Callable[..., Any] | None = field(default=None, compare=False)

    def use(self) -> Callable[..., Any]:
        """Show the verdict; return your function if its idea is right, minippo's until then.

        In a lesson the function is then added to my_ppo.py.
        """
        if not self.idea:
            display(self)
            return _given(self.reference)
        function = _given(self.function)
        kept = [keep(self.name, function) for keep in KEEP]
        display(replace(self, headline="; ".join([self.headline.rstrip("."), *kept])))
        return function

    @property
    def mistake(self) -> str | None:
        """Name of the recognised mistake, if any."""
        return " and ".join(mistake.name for mistake in self.mistakes) or None

    def require(self) -> None:
        """Raise AssertionError with the full message unless the check passed."""
        if not self.passed:
            raise AssertionError(str(self))

    def _explained(self) -> list[tuple[str, str]]:
        """Return (label, sentence) pairs of the recognised mistakes."""
        pairs = []
        for mistake in self.mistakes:
            parts = {
                "What was done": mistake.what,
                "In training": mistake.symptom,
                "Seen in": "" if mistake.source == NOBODY else mistake.source,
                "Hint": mistake.hint,
            }
            pairs += [(label, text) for label, text in parts.items() if text]
        return pairs

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.headline}"]
        lines += [f"  {label}: {text}" for label, text in self._explained()]
        return "\n".join(lines + [f"  {line}" for line in self.lines])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        mark, colour = ("✓", "#009E73") if self.idea else ("✗", "#D55E00")
        if not self.finished:
            mark, colour = "…", "#0072B2"
        style = f"border-left: 4px solid {colour}; padding: 0.3em 0.8em; margin: 0.3em 0"
        name, headline = html.escape(self.name), html.escape(self.headline)
        parts = [f"<p style='margin:0.2em 0'>{mark} <b>{name}</b>: {headline}</p>"]
        if explained := self._explained():
            rows = [f"<dt><b>{k}</b></dt><dd>{html.escape(text)}</dd>" for k, text in explained]
            parts.append(f"<dl style='margin:0.2em 0'>{''.join(rows)}</dl>")
        if self.lines:
            text = html.escape("\n".join(self.lines))
            parts.append(f"<pre style='margin:0.2em 0; white-space: pre-wrap'>{text}</pre>")
        return f"<div role='status' style='{style}'>{''.join(parts)}</div>"


def _given(function: Callable[..., Any] | None) -> Callable[..., Any]:
    if function is None:
        raise ValueError("use: the result must come from a check, as in checks.gae(my_gae).use().")
    return function


# What else is done with a function that is right; a lesson's start enters `course.mine.keep`.
KEEP: list[Callable[[str, Callable[..., Any]], str]] = []


class Solution:
    """A right answer, shown as source that can be pasted over the stub."""

    def __init__(self, name: str, source: str) -> None:
        self.name, self.source = name, source

    def __repr__(self) -> str:
        return self.source or (
            f"{self.name}: try it first; the check beside it says what is missing. "
            "To see the solution all the same, ask once more."
        )

    def _repr_markdown_(self) -> str:
        return f"```python\n{self.source}```" if self.source else repr(self)
