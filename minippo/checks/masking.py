"""Checks of averages over real tokens."""

from collections.abc import Iterator

import minippo
from minippo import definitions
from minippo.checks._cases import Case, Draw
from minippo.checks._check import Check


def _masked_mean_cases(draw: Draw) -> Iterator[Case]:
    for _ in range(3):
        yield draw.case(x=draw.token_floats(), mask=draw.mask)
    yield draw.case(
        "in half precision", dtype="bfloat16", slopes=False, x=draw.token_floats(), mask=draw.mask
    )


masked_mean = Check(
    reference=minippo.masked_mean,
    definition=definitions.masked_mean,
    cases=_masked_mean_cases,
    slopes=("x",),
)


def _whiten_cases(draw: Draw) -> Iterator[Case]:
    # One token alone is divided by 1e-4, and rounding shows in the gradient.
    slopes = sum(map(sum, draw.mask)) > 1
    plain = {"x": draw.token_floats(), "mask": draw.mask}
    yield draw.case(slopes=slopes, **plain)
    high = {"x": draw.token_floats(2.0, 5.0), "mask": draw.mask}
    yield draw.case("numbers above 2", slopes=slopes, **high)
    yield draw.case("mean kept", slopes=slopes, **high, keep_mean=True)
    yield draw.case("in half precision", dtype="bfloat16", slopes=False, **plain)


whiten = Check(
    reference=minippo.whiten,
    definition=definitions.whiten,
    cases=_whiten_cases,
    slopes=("x",),
    optional=("keep_mean",),
)
