"""The catalogue of wrong implementations: what people do, what it causes, and who did it.

Each function of the course has one flawed version here whose mistakes are flags: with no flag set
it is right, with one set it makes that mistake, with two set it makes both. So a check can
recognise what a student did, the bug zoo can run it, and homework can require a mistake as a
convention. `CATALOGUE["gae"].version({"name of a mistake"})` returns such a function.
"""

import functools
import itertools
import tomllib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ATTACHED = "data not detached"
NOBODY = "a first-time solver"  # not shown


@dataclass(frozen=True)
class Mistake:
    """One mistake.

    Attributes:
        name: The mistake's name, which is also its flag.
        what: One sentence on what was done.
        hint: One sentence that points towards the fix without giving it away.
        symptom: Its effect on training; "" if no run or derivation of ours shows it.
        source: The paper or library that got it wrong, or that does it on purpose.
        convention: The sentence that requires it on purpose, in homework; "" if nobody would.
    """

    name: str
    what: str
    hint: str
    symptom: str = ""
    source: str = NOBODY
    convention: str = ""


@dataclass(frozen=True)
class Flawed:
    """A function with all its known mistakes."""

    name: str
    function: Callable[..., Any]
    mistakes: tuple[Mistake, ...]

    def __getitem__(self, name: str) -> Mistake:
        return next(mistake for mistake in self.mistakes if mistake.name == name)

    def version(self, flags: Collection[str]) -> Callable[..., Any]:
        """Return the function with these mistakes."""
        if unknown := set(flags) - {mistake.name for mistake in self.mistakes}:
            raise ValueError(
                f"version: flags must be mistakes of {self.name}, got {sorted(unknown)}."
            )
        return functools.partial(self.function, frozenset(flags))

    def combinations(self, at_most: int = 2) -> Iterator[tuple[Mistake, ...]]:
        """Yield each mistake alone, then each pair; a leak is named once the idea is right."""
        for size in range(1, at_most + 1):
            kept = [m for m in self.mistakes if size == 1 or m.name != ATTACHED]
            yield from itertools.combinations(kept, size)


CATALOGUE: dict[str, Flawed] = {}


def flawed(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter a function `f(flags, *args, **kwargs)` and its mistakes in the catalogue.

    A mistake's sentences are in the .toml next to the function's file, under its name, or under
    "function: name" if another function's mistake has the same name.
    """

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        name, topic = function.__name__, function.__module__.rpartition(".")[2]
        said = _sentences("shared") | _sentences(topic)
        own = {mistake: said.get(f"{name}: {mistake}") or said[mistake] for mistake in names}
        mistakes = tuple(Mistake(mistake, **sentences) for mistake, sentences in own.items())
        CATALOGUE[name] = Flawed(name, function, mistakes)
        return function

    return enter


@functools.cache
def _sentences(topic: str) -> dict[str, dict[str, str]]:
    return tomllib.loads(Path(__file__).with_name(f"{topic}.toml").read_text(encoding="utf-8"))


# Importing the modules fills the catalogue; they need `flawed` from above.
from minippo.checks.mistakes import (  # noqa: E402
    advantages,  # noqa: F401
    alternatives,  # noqa: F401
    exercises,  # noqa: F401
    hacking,  # noqa: F401
    kl,  # noqa: F401
    log_probs,  # noqa: F401
    losses,  # noqa: F401
    masking,  # noqa: F401
    ppo,  # noqa: F401
    practice,  # noqa: F401
)
