"""Compare what a function did with what it should have done."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from minippo.checks.definitions import leaves as flat
from minippo.checks.engine.cases import Case, Nested, shape
from minippo.checks.engine.observe import Observation

TOLERANCE = 1e-5  # relative to max(1, |expected|)
AMPERSAND = ("bitwise_", "for &:", "for |:")
BRACKETS = "\n`&` and `|` bind more tightly than `>`: put brackets around each comparison."


@dataclass(frozen=True)
class Expected:
    """The right answer for a case.

    Attributes:
        value: The definition's value.
        slopes: Argument -> gradient of sum(weights * value).
        none: Arguments that no gradient may reach.
        kinks: Argument -> how far, for each number, the one-sided gradients are from `slopes`.
    """

    value: Nested
    slopes: dict[str, Nested]
    none: Sequence[str] = ()
    kinks: dict[str, list[float]] = field(default_factory=dict)

    def has_slope(self, name: str, got: Nested) -> bool:
        """Is this the gradient? At a kink it may be anything between the one-sided ones."""
        slope = self.slopes[name]
        found, right = flat(zeros(slope) if got is None else got), flat(slope)
        kinks = self.kinks.get(name) or [0.0] * len(right)
        return len(found) == len(right) and all(
            near(a, b, TOLERANCE) or abs(a - b) <= TOLERANCE + kink
            for a, b, kink in zip(found, right, kinks, strict=True)
        )


@dataclass(frozen=True)
class Failure:
    """One failing case: `part` is "value", "slope of x", ...; `says` describes it.

    `right` and `wrong` are the arguments to which the gradient is right and wrong.
    """

    case: Case
    part: str
    says: str
    got: Nested = None
    expected: Nested = None
    right: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()

    @property
    def special(self) -> str:
        """What may fail although the idea is right; "" if it is the idea that is wrong."""
        if self.part == "changed":
            return self.says
        return self.case.special or (self.says if self.part == "leak" else "")


def failure(case: Case, expected: Expected, seen: Observation) -> Failure | None:
    """Return the most basic error on this case; None if there is none."""
    if seen.kind == "raised":
        hint = BRACKETS if any(word in seen.message for word in AMPERSAND) else ""
        return Failure(case, "raised", f"It raised an error.\n{seen.message}{hint}")
    if seen.kind == "none":
        return Failure(case, "nothing", "It returned None: is `return` missing?")
    if seen.kind == "unfinished":
        return Failure(case, "nothing", "It returned nothing here.")
    if seen.kind == "wrong type":
        return Failure(case, "type", f"It must return a tensor; {seen.message} came.")
    if seen.touched:
        what = f"It moved the global random state of {seen.touched[0]}."
        return Failure(case, "touched", what)
    if shape(seen.value) != shape(expected.value):
        return Failure(case, "shape", _shapes(seen, expected), seen.value, expected.value)
    kind = _kind(expected.value)
    # A half-precision answer to half-precision inputs is judged by its value.
    if not seen.dtype.startswith(kind) and not (kind == "float" and seen.dtype == "bfloat16"):
        return Failure(case, "dtype", f"The dtype must be {kind}; {seen.dtype} came.")
    if not close(seen.value, expected.value):
        if seen.changed:
            what = f"It modified its argument {seen.changed[0]} in place."
            return Failure(case, "altered", what)
        fits = {name: expected.has_slope(name, seen.slopes.get(name)) for name in expected.slopes}
        right, wrong = (tuple(n for n, ok in fits.items() if ok is kept) for kept in (True, False))
        says = "The value is wrong."
        return Failure(case, "value", says, seen.value, expected.value, right, wrong)
    return _slope_failure(case, expected, seen)


def _slope_failure(case: Case, expected: Expected, seen: Observation) -> Failure | None:
    for name, slope in expected.slopes.items():
        got = seen.slopes.get(name)
        if expected.has_slope(name, got):
            continue
        if got is None or not any(flat(got)):
            says = f"The value is right, but no gradient reaches {name}."
        elif any(math.isnan(x) for x in flat(got)):
            says = f"The value is right, but the gradient to {name} is NaN."
        else:
            says = f"The value is right, but the gradient to {name} is wrong."
        return Failure(case, f"slope of {name}", says, got, slope)
    for name in expected.none:
        if any(flat(seen.slopes.get(name) or 0.0)):
            return Failure(case, "leak", f"a gradient reaches {name}, and none may")
    if seen.changed:
        return Failure(case, "changed", f"it modifies its argument {seen.changed[0]} in place")
    return None


def _shapes(seen: Observation, expected: Expected) -> str:
    """Say what became of the axes."""
    asked, came = shape(expected.value), shape(seen.value)
    numbers = flat(expected.value)
    if asked == []:
        what = "was it taken row by row" if len(came) == 1 else "is the mean missing"
        return f"One number is asked; {came} came: {what}?"
    if came == []:
        total = sum(numbers)
        one = f"one number came where {asked} is asked"
        if near(seen.value, total / len(numbers), TOLERANCE):
            return f"You averaged: {one}."
        if near(seen.value, total, TOLERANCE):
            return f"You summed: {one}."
        return f"{one.capitalize()}: was it averaged or summed?"
    says = f"The shape must be {asked}; {came} came"
    if [n for n in came if n != 1] == [n for n in asked if n != 1]:
        return f"{says}: an axis of length 1 was added or squeezed away."
    if len(came) == len(asked) - 1:
        return f"{says}: was an axis averaged or summed away?"
    if came == [*asked[:-1], asked[-1] - 1]:
        return f"{says}: a column is lost. Was it shifted?"
    return f"{says}."


def _kind(value: Nested) -> str:
    leaf = flat(value)[0]
    return "bool" if isinstance(leaf, bool) else "int" if isinstance(leaf, int) else "float"


def zeros(x: Nested) -> Nested:
    """Zeros in the shape of x."""
    return [zeros(part) for part in x] if isinstance(x, list) else 0.0


def close(got: Nested, expected: Nested, tolerance: float = TOLERANCE) -> bool:
    """Are all numbers within the tolerance? NaN equals NaN and inf equals inf."""
    pairs = zip(flat(got), flat(expected), strict=True)
    return all(near(a, b, tolerance) for a, b in pairs)


def near(a: float, b: float, tolerance: float) -> bool:
    """Are two numbers within the tolerance? NaN equals NaN and inf equals inf."""
    if math.isfinite(a) and math.isfinite(b):
        return abs(a - b) <= tolerance * max(1.0, abs(b))
    return a == b or (math.isnan(a) and math.isnan(b))


def alike(a: Observation, b: Observation, case: Case, slopes: Sequence[str]) -> bool:
    """Did two functions do the same on a case, up to rounding, in value and these gradients?"""
    # In half precision the rounding error depends on the order of operations.
    tolerance = 10 * TOLERANCE if case.dtype == "float32" else 0.03
    if a.kind != b.kind or shape(a.value) != shape(b.value):
        return False
    if (a.changed, a.touched) != (b.changed, b.touched):
        return False
    if a.kind != "value":
        return a.kind != "raised"  # two errors may have two causes
    if not close(a.value, b.value, tolerance):
        return False
    if not case.slopes:
        return True
    for name in {*slopes} & {*a.slopes, *b.slopes}:
        left, right = a.slopes.get(name), b.slopes.get(name)
        some = left if left is not None else right
        left, right = (zeros(some) if x is None else x for x in (left, right))
        if not close(left, right, tolerance):
            return False
    return True
