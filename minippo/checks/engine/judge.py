"""Compare what a function did with what it should have done and describe the error."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from minippo.checks.definitions import leaves as flat
from minippo.checks.engine.cases import Case, Nested, shape
from minippo.checks.engine.observe import Observation

TOLERANCE = 1e-5  # relative to max(1, |expected|)
Region = Callable[[dict[str, Nested]], Nested]  # inputs -> True where it holds, per output


@dataclass(frozen=True)
class Expected:
    """The right answer for a case.

    Attributes:
        value: The definition's value.
        slopes: Argument -> gradient of sum(weights * value).
        none: Arguments that no gradient may reach.
    """

    value: Nested
    slopes: dict[str, Nested]
    none: Sequence[str] = ()


@dataclass(frozen=True)
class Failure:
    """One failing case: `part` is "value", "slope of x", ...; `says` describes it."""

    case: Case
    part: str
    says: str
    got: Nested = None
    expected: Nested = None

    @property
    def special(self) -> str:
        """What may fail although the idea is right; "" if it is the idea that is wrong."""
        return self.case.special or (self.says.rstrip(".") if self.part == "leak" else "")


def failure(case: Case, expected: Expected, seen: Observation) -> Failure | None:
    """Return the most basic error on this case; None if there is none."""
    if seen.kind == "raised":
        return Failure(case, "raised", f"It raised an error.\n{seen.message}")
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
        says = f"The shape must be {shape(expected.value)}; {shape(seen.value)} came."
        return Failure(case, "shape", says, seen.value, expected.value)
    kind = _kind(expected.value)
    # A half-precision answer to half-precision inputs is judged by its value.
    if not seen.dtype.startswith(kind) and not (kind == "float" and seen.dtype == "bfloat16"):
        return Failure(case, "dtype", f"The dtype must be {kind}; {seen.dtype} came.")
    if not close(seen.value, expected.value):
        return Failure(case, "value", "The value is wrong.", seen.value, expected.value)
    return _slope_failure(case, expected, seen)


def _slope_failure(case: Case, expected: Expected, seen: Observation) -> Failure | None:
    for name, slope in expected.slopes.items():
        got = seen.slopes.get(name)
        if close(zeros(slope) if got is None else got, slope):
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
    cases: Sequence[Case], failures: Sequence[Failure | None], regions: Mapping[str, Region]
) -> list[str]:
    """Describe in sentences what all failures have in common."""
    wrong = [f for f in failures if f is not None]
    right = [case for case, f in zip(cases, failures, strict=True) if f is None]
    said = []
    if any(case.padding == "zeros" for case in right) and all(
        f.part != "changed" and f.case.padding == "numbers" and not all(flat(f.case.inputs["mask"]))
        for f in wrong
    ):
        said.append("It changes when the padding changes: what is under the mask takes part.")
    said += _numbers(right, wrong)
    values = [f for f in wrong if f.part == "value"]
    if len(values) == len(wrong):
        said += _relation(values) or _places(values, regions)
    return said


def _numbers(right: list[Case], wrong: list[Failure]) -> list[str]:
    """Find the keyword value that decides: wrong in at least half of the cases that have it."""
    said = []
    for name, x in wrong[0].case.inputs.items():
        if not isinstance(x, int | float):
            continue
        fails = Counter(repr(f.case.inputs.get(name)) for f in wrong)
        passes = Counter(repr(case.inputs.get(name)) for case in right)
        good = set(passes) - set(fails)
        if good and all(fails[value] >= passes[value] for value in fails):
            bad = set(fails)
            said.append(f"Right where {name} = {_list(good)}, wrong where {name} = {_list(bad)}.")
    return said


def _list(values: set[str]) -> str:
    return " or ".join(sorted(values))


def _relation(values: list[Failure]) -> list[str]:
    """Is the wrong answer the right one times a factor or plus a constant?"""
    pairs = [
        (a, b) for f in values for a, b in zip(flat(f.got), flat(f.expected), strict=True)
        if math.isfinite(a) and math.isfinite(b)
    ]  # fmt: skip
    big = [(a, b) for a, b in pairs if abs(b) > 0.01]
    if len(big) < 3 or len(pairs) < sum(len(flat(f.got)) for f in values):
        return []
    factor = big[0][0] / big[0][1]
    if all(_near(a, factor * b, 1e-4) for a, b in pairs):
        what = (
            "the right value with the sign turned"
            if _near(factor, -1.0, 1e-4)
            else (f"{factor:.4g} times the right value")
        )
        return [f"Everywhere it is {what}."]
    offset = big[0][0] - big[0][1]
    if all(_near(a, b + offset, 1e-4) for a, b in pairs):
        return [f"Everywhere it is the right value {offset:+.4g}."]
    return []


def _places(values: list[Failure], regions: Mapping[str, Region]) -> list[str]:
    """Find phrases that hold wherever the answer is wrong but not everywhere."""
    said = []
    for phrase, region in (_MASKED | dict(regions)).items():
        inside, outside = list[bool](), list[bool]()
        for f in values:
            where = region(f.case.inputs) if _fits(region, f) else None
            if where is None:
                break
            errors = zip(flat(f.got), flat(f.expected), flat(where), strict=True)
            for a, b, within in errors:
                (inside if within else outside).append(not _near(a, b, TOLERANCE))
        else:
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
        return "[" + ", ".join(map(rounded, x)) + "]"
    if not isinstance(x, float):
        return repr(x)
    return f"{round(x, 4) + 0.0:.4f}".rstrip("0").rstrip(".")
