"""Describe a mistake that is not in the catalogue, from all the cases that it fails."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from minippo.checks.definitions import leaves as flat
from minippo.checks.engine.cases import Case, Nested, shape
from minippo.checks.engine.judge import TOLERANCE, Failure, near
from minippo.checks.engine.observe import Observation

EXAMPLE = "the worked example"  # its settings do not vary one at a time
Region = Callable[[dict[str, Nested]], Nested]  # inputs -> True where it holds, per output


def clearest(wrong: Sequence[Failure]) -> Failure:
    """Pick the failure to show: an error, then a shape of several numbers, then the first."""
    errors = [f for f in wrong if f.part == "raised"]
    errors.sort(key=lambda f: -min(9, len(flat([*f.case.inputs.values()]))))  # not one token
    shapes = [f for f in wrong if f.part == "shape"]
    shapes.sort(key=lambda f: -min(3, len(flat(f.expected))))  # one number hides what was done
    return [*errors, *shapes, *wrong][0]


def properties(
    cases: Sequence[Case], seen: Sequence[Observation], failures: Sequence[Failure | None],
    regions: Mapping[str, Region], defaults: Mapping[str, Any],
) -> list[str]:  # fmt: skip
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
    return factor if all(near(a, factor * b, 1e-4) for a, b in pairs) else None


def turned_round(failures: Sequence[Failure | None]) -> bool:
    """Is everything right but for one sign?"""
    wrong = [f for f in failures if f is not None]
    factor = _factor(_pairs(wrong)) if all(f.part == "value" for f in wrong) else None
    return factor is not None and near(factor, -1.0, 1e-4)


def _relation(values: list[Failure], passed: list[Nested]) -> list[str]:
    """Is the wrong answer everywhere the right one times a factor or plus a constant?"""
    pairs = _pairs(values)
    if sum(abs(b) > 0.01 for _, b in pairs) < 3 or any(map(any, map(flat, passed))):
        return []  # right somewhere, and not 0 there
    if (factor := _factor(pairs)) is not None:
        if near(factor, -1.0, 1e-4):
            return ["Everywhere it is the right value with the sign turned."]
        return [f"Everywhere it is {factor:.4g} times the right value."]
    offset = pairs[0][0] - pairs[0][1]
    if math.isfinite(offset) and not passed and all(near(a, b + offset, 1e-4) for a, b in pairs):
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
        if not all(near(a, b, TOLERANCE) for a, b in pairs):
            batches.append(pairs)
    rows = [row for row in rows if sum(abs(b) > 0.01 for _, b in row) > 1]
    if len(rows) > 3 and all(_factor(row) is not None for row in rows):
        return ["Each row is right but for one factor: was it divided by its standard deviation?"]
    if len(batches) < len(values):
        return []  # in some cases what counts is right
    batches = [some for some in batches if len({b for _, b in some}) > 2]
    if len(batches) > 1 and all(map(_straight, batches)):
        return ["In every case it is right but for a shift and a scale. Which, and from where?"]
    return []


def _straight(pairs: Sequence[tuple[float, float]]) -> bool:
    """Do the pairs lie on one rising line?"""
    (a, b), (c, d) = min(pairs, key=lambda x: x[1]), max(pairs, key=lambda x: x[1])
    slope = (c - a) / (d - b)
    return slope > 0.01 and all(near(x, a + slope * (y - b), 1e-4) for x, y in pairs)


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
                (inside if within else outside).append(not near(a, b, TOLERANCE))
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
