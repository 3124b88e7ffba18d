"""Checks of averages over real tokens."""

from collections.abc import Iterator

import minippo
from minippo.checks import definitions
from minippo.checks.engine.cases import Case, Draw
from minippo.checks.engine.check import Check


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
    if sum(map(sum, draw.mask)) == 1:
        return  # a single number has no scale: minippo's choice, not asked for
    high = {"x": draw.token_floats(2.0, 4.0), "mask": draw.mask}
    yield draw.case(x=draw.token_floats(), mask=draw.mask)
    yield draw.case("numbers above 2", **high)
    yield draw.case("mean kept", **high, keep_mean=True)
    yield draw.case("in half precision", dtype="bfloat16", **high)


# Advantages are constants in the loss: no gradient is checked.
whiten = Check(
    reference=minippo.whiten,
    definition=definitions.whiten,
    cases=_whiten_cases,
    optional=("keep_mean",),
)
