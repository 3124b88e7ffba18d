"""Compare what a function did with what it should have done and describe the error."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from minippo.checks.definitions import leaves as flat
from minippo.checks.engine.cases import Case, Nested, shape
from minippo.checks.engine.observe import Observation

TOLERANCE = 1e-5  # relative to max(1, |expected|)
EXAMPLE = "the worked example"  # its settings do not vary one at a time
AMPERSAND = ("bitwise_", "for &:", "for |:")
BRACKETS = "\n`&` and `|` bind more tightly than `>`: put brackets around each comparison."
Region = Callable[[dict[str, Nested]], Nested]  # inputs -> True where it holds, per output


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
            _near(a, b, TOLERANCE) or abs(a - b) <= TOLERANCE + kink
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
        return self.case.special or (self.says.rstrip(".") if self.part == "leak" else "")


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
    if seen.changed:
        return Failure(case, "changed", f"It modified its argument {seen.changed[0]} in place.")
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
            return Failure(case, "leak", f"a gradient reaches {name}, and none may.")
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
        if _near(seen.value, total / len(numbers), TOLERANCE):
            return f"You averaged: {one}."
        if _near(seen.value, total, TOLERANCE):
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


def clearest(wrong: Sequence[Failure]) -> Failure:
    """Pick the failure to show: an error, then a shape of more than one number, then the first."""
    errors = [f for f in wrong if f.part == "raised"]
    shapes = [f for f in wrong if f.part == "shape" and len(flat(f.expected)) > 1]
    return [*errors, *shapes, *wrong][0]


def _kind(value: Nested) -> str:
    leaf = flat(value)[0]
    return "bool" if isinstance(leaf, bool) else "int" if isinstance(leaf, int) else "float"


def zeros(x: Nested) -> Nested:
    """Zeros in the shape of x."""
    return [zeros(part) for part in x] if isinstance(x, list) else 0.0


def close(got: Nested, expected: Nested, tolerance: float = TOLERANCE) -> bool:
    """Are all numbers within the tolerance? NaN equals NaN and inf equals inf."""
    pairs = zip(flat(got), flat(expected), strict=True)
    return all(_near(a, b, tolerance) for a, b in pairs)


def _near(a: float, b: float, tolerance: float) -> bool:
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


# ---- describing a mistake that is not in the catalogue ---------------------------------------


def properties(
    cases: Sequence[Case],
    seen: Sequence[Observation],
    failures: Sequence[Failure | None],
    regions: Mapping[str, Region],
    defaults: Mapping[str, Any],
) -> list[str]:
    """Describe in sentences what all failures have in common."""
    wrong = [f for f in failures if f is not None]
    right = [case for case, f in zip(cases, failures, strict=True) if f is None]
    passed = [one.value for one, f in zip(seen, failures, strict=True) if f is None]
    said = []
    if any(case.padding == "zeros" for case in right) and all(
        f.part != "changed" and f.case.padding == "numbers" and not all(flat(f.case.inputs["mask"]))
        for f in wrong
    ):
        said.append("It changes when the padding changes: what is under the mask takes part.")
    said += _settings(right, [f.case for f in wrong], defaults)
    said += _notes(right, [f.case for f in wrong])
    values = [f for f in wrong if f.part == "value"]
    if len(values) == len(wrong):
        said += _gradients(values)
        said += _relation(values, passed) or _scaled(values) or _places(values, regions)
    return said


def _settings(right: list[Case], wrong: list[Case], defaults: Mapping[str, Any]) -> list[str]:
    """Find the keywords that alone decide: a value is right, or wrong, whatever the others are."""
    cases = [case for case in right + wrong if case.note != EXAMPLE]
    given = [name for name in defaults if any(name in case.inputs for case in cases)]
    given = list(dict.fromkeys([*given, *_numbers(wrong[0])]))

    def settings(case: Case) -> tuple[str, ...]:
        values = [case.inputs.get(name, defaults.get(name)) for name in given]
        return tuple("given" if isinstance(value, list) else repr(value) for value in values)

    bad = {settings(case) for case in wrong if case.note != EXAMPLE}
    good = {settings(case) for case in cases} - bad
    said = []
    for i, name in enumerate(given):
        rights, wrongs = ({values[i] for values in some} for some in (good, bad))
        if rights & wrongs or not rights or not wrongs:
            continue
        if wrongs == {"given"} or rights == {"given"}:
            said.append(f"Right {'without' if 'given' in wrongs else 'with'} {name}, else wrong.")
        else:
            good_ones, bad_ones = _list(rights), _list(wrongs)
            said.append(f"Right where {name} = {good_ones}, wrong where {name} = {bad_ones}.")
    return said


def _numbers(case: Case) -> list[str]:
    return [name for name, x in case.inputs.items() if isinstance(x, int | float)]


def _notes(right: list[Case], wrong: list[Case]) -> list[str]:
    """Kinds of case that are all right, and those that are wrong."""
    bad = dict.fromkeys(case.note for case in wrong if case.note not in ("", EXAMPLE))
    good = dict.fromkeys(c.note for c in right if c.note not in ("", EXAMPLE) and c.note not in bad)
    if not good or not bad:
        return []
    more = ", and more" if any(not case.note for case in wrong) else ""
    return [f"Right: {', '.join(good)}. Wrong: {', '.join(bad)}{more}."]


def _gradients(values: list[Failure]) -> list[str]:
    """Is the gradient right to some arguments, in every case, and wrong to others?"""
    slopes = [f for f in values if f.right or f.wrong]
    good = set.intersection(*(set(f.right) for f in slopes)) if slopes else set()
    bad = {name for f in slopes for name in f.wrong}
    if not good or not bad:
        return []
    right, wrong = _list(good, "and"), _list(bad, "and")
    return [f"The gradient to {right} is right; the one to {wrong} is wrong."]


def _list(values: set[str], word: str = "or") -> str:
    return f" {word} ".join(sorted(values))


def _pairs(values: Sequence[Failure]) -> list[tuple[float, float]]:
    return [pair for f in values for pair in zip(flat(f.got), flat(f.expected), strict=True)]


def _factor(pairs: Sequence[tuple[float, float]]) -> float | None:
    """How many times the right value is the wrong one? None if not everywhere as many."""
    big = [(a, b) for a, b in pairs if math.isfinite(a) and abs(b) > 0.01]
    if not big or not all(math.isfinite(a) and math.isfinite(b) for a, b in pairs):
        return None
    factor = big[0][0] / big[0][1]
    return factor if all(_near(a, factor * b, 1e-4) for a, b in pairs) else None


def turned_round(failures: Sequence[Failure | None]) -> bool:
    """Is everything right but for one sign?"""
    wrong = [f for f in failures if f is not None]
    factor = _factor(_pairs(wrong)) if all(f.part == "value" for f in wrong) else None
    return factor is not None and _near(factor, -1.0, 1e-4)


def _relation(values: list[Failure], passed: list[Nested]) -> list[str]:
    """Is the wrong answer everywhere the right one times a factor or plus a constant?"""
    pairs = _pairs(values)
    if sum(abs(b) > 0.01 for _, b in pairs) < 3 or any(map(any, map(flat, passed))):
        return []  # right somewhere, and not 0 there
    if (factor := _factor(pairs)) is not None:
        if _near(factor, -1.0, 1e-4):
            return ["Everywhere it is the right value with the sign turned."]
        return [f"Everywhere it is {factor:.4g} times the right value."]
    offset = pairs[0][0] - pairs[0][1]
    if math.isfinite(offset) and not passed and all(_near(a, b + offset, 1e-4) for a, b in pairs):
        return [f"Everywhere it is the right value {offset:+.4g}."]
    return []


def _scaled(values: list[Failure]) -> list[str]:
    """Is each row the right one times a number of its own, or each case shifted and scaled?"""
    rows, batches = list[list[tuple[float, float]]](), list[list[tuple[float, float]]]()
    for f in values:
        real = f.case.inputs.get("mask")
        pairs = _pairs([f])
        if len(shape(f.expected)) == 2:
            n = len(f.expected[0])
            rows += [pairs[i : i + n] for i in range(0, len(pairs), n)]
        if shape(real) == shape(f.expected):
            pairs = [pair for pair, m in zip(pairs, flat(real), strict=True) if m]
        batches.append(pairs)
    rows = [row for row in rows if sum(abs(b) > 0.01 for _, b in row) > 1]
    if len(rows) > 3 and all(_factor(row) is not None for row in rows):
        return ["Each row is right but for one factor: was it divided by its standard deviation?"]
    batches = [some for some in batches if len({b for _, b in some}) > 2]
    if len(batches) > 1 and all(map(_straight, batches)):
        return ["In every case it is right, but shifted and scaled: was it whitened?"]
    return []


def _straight(pairs: Sequence[tuple[float, float]]) -> bool:
    """Do the pairs lie on one rising line?"""
    (a, b), (c, d) = min(pairs, key=lambda x: x[1]), max(pairs, key=lambda x: x[1])
    slope = (c - a) / (d - b)
    return slope > 0.01 and all(_near(x, a + slope * (y - b), 1e-4) for x, y in pairs)


def _places(values: list[Failure], regions: Mapping[str, Region]) -> list[str]:
    """Find phrases that hold wherever the answer is wrong but not everywhere."""
    said = []
    for phrase, region in (_MASKED | dict(regions)).items():
        inside, outside = list[bool](), list[bool]()
        for f in values:
            if not _fits(region, f):
                continue
            errors = zip(flat(f.got), flat(f.expected), flat(region(f.case.inputs)), strict=True)
            for a, b, within in errors:
                (inside if within else outside).append(not _near(a, b, TOLERANCE))
        if any(inside) and outside and not any(outside):
            said.append(f"It is wrong only {phrase}.")
    return said


def _fits(region: Region, f: Failure) -> bool:
    try:
        return shape(region(f.case.inputs)) == shape(f.expected)
    except KeyError:
        return False


def _last(inputs: dict[str, Nested]) -> Nested:
    return [[t + 1 == sum(row) for t in range(len(row))] for row in inputs["mask"]]


def _padding(inputs: dict[str, Nested]) -> Nested:
    return [[not real for real in row] for row in inputs["mask"]]


_MASKED: dict[str, Region] = {
    "on the padding": _padding,
    "at the last real token of a response": _last,
    "at the first token of a response": lambda inputs: [
        [t == 0 for t in range(len(row))] for row in inputs["mask"]
    ],
    "in rows that end early": lambda inputs: [[not all(row)] * len(row) for row in inputs["mask"]],
}


def shown(f: Failure) -> list[str]:
    """Show the case line by line, short enough to work through by hand."""
    lines = [f"The smallest case that fails{f': {f.case.note}' if f.case.note else ''}"]
    lines += [f"  {name} = {rounded(x)}" for name, x in f.case.inputs.items()]
    if f.case.dtype != "float32":
        lines.append(f"  (in {f.case.dtype})")
    label = "gradient " if f.part.startswith("slope") and f.expected is not None else ""
    if f.expected is not None:
        lines += [f"  {label}got      {rounded(f.got)}", f"  {label}expected {rounded(f.expected)}"]
    return lines


def rounded(x: Nested) -> str:
    """Round nested lists to four decimals."""
    if isinstance(x, list):
        more = [f"... {len(x)} in all"] if len(x) > 20 else []
        return "[" + ", ".join([*map(rounded, x[: 8 if more else 20]), *more]) + "]"
    if not isinstance(x, float):
        return repr(x)
    return f"{round(x, 4) + 0.0:.4f}".rstrip("0").rstrip(".")
