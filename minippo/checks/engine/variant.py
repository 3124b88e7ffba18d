"""A check against a different convention, drawn from the catalogue for homework."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

from minippo.checks.engine.cases import Case
from minippo.checks.engine.check import Check
from minippo.checks.engine.judge import Expected, zeros
from minippo.checks.mistakes import Mistake


def _handed_in(name: str, what: str) -> Mistake:
    hint = "Read the specification of this homework once more."
    return Mistake(name, what, hint, source="")


@dataclass(frozen=True)
class Variant(Check):
    """A check for which the flags in `drawn` are right and minippo's version is a named mistake.

    Attributes:
        drawn: Names of the catalogued mistakes that this homework requires.
        previous: Label of another draw, such as last year's -> what it required.
    """

    drawn: frozenset[str] = frozenset()
    previous: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def expected(self, case: Case) -> Expected:
        """Run the flawed function with the drawn flags in double precision."""
        if not self.drawn:
            return super().expected(case)
        wide = replace(case, dtype="float64")
        seen = self.observe(self.flawed.version(self.drawn), wide)
        slopes = {
            name: zeros(case.inputs[name]) if seen.slopes.get(name) is None else seen.slopes[name]
            for name in self.slopes
            if case.slopes and isinstance(case.inputs.get(name), list)
        }
        return Expected(seen.value, slopes, self.no_slopes)

    def candidates(self) -> Iterator[tuple[frozenset[str], tuple[Mistake, ...]]]:
        """Yield the other conventions, then known mistakes on top of the required one."""
        own = _handed_in(
            "minippo's own convention",
            "This is the package's function; the homework asks for another convention.",
        )
        yield frozenset(), (own,)
        for label, flags in self.previous.items():
            what = f"This answers the homework {label}, which asked for another convention."
            yield flags, (_handed_in(f"the answer to {label}", what),)
        for mistakes in self.flawed.combinations():
            flags = frozenset(mistake.name for mistake in mistakes)
            if not flags & self.drawn:
                yield flags | self.drawn, mistakes
                yield flags, (*mistakes, own)


def variant(
    check: Check, drawn: Sequence[str], previous: Mapping[str, Sequence[str]] | None = None
) -> Variant:
    """Return the check with a different right answer."""
    check.flawed.version(drawn)  # raises if a name is unknown
    kept = {f.name: getattr(check, f.name) for f in fields(Check)}
    others = {label: frozenset(flags) for label, flags in (previous or {}).items()}
    return Variant(**kept, drawn=frozenset(drawn), previous=others)
