"""Checks of measures of reward hacking."""

from collections.abc import Iterator
from typing import Any

from minippo.checks import definitions, solutions
from minippo.checks.engine.cases import Case, Draw
from minippo.checks.engine.check import Check


def _best_cases(draw: Draw) -> Iterator[Case]:
    size = draw.vocab + draw.time
    for n in (1, 2, size - 1, size):
        proxy = [x / 8 for x in draw.random.sample(range(-32, 32), size)]  # all different
        yield draw.case(f"n = {n} of {size}", proxy=proxy, gold=draw.floats(size), n=n)
    rising = [i / 4 for i in range(size)]
    yield draw.case("gold against proxy", proxy=rising, gold=[-x for x in rising], n=2)


best_of_n_mean = Check(
    reference=solutions.best_of_n_mean, definition=definitions.best_of_n_mean, cases=_best_cases
)


def _distinct_cases(draw: Draw) -> Iterator[Case]:
    for n in (1, 2, 3):
        yield draw.case(f"n = {n}", tokens=draw.tokens(), mask=draw.mask, n=n)
    turns = [[(i + t) % 2 for t in range(draw.time)] for i in range(draw.batch)]
    yield draw.case("two tokens in turn", tokens=turns, mask=draw.mask, n=2)
    same = [[1] * draw.time for _ in range(draw.batch)]
    yield draw.case("one token for ever", tokens=same, mask=draw.mask, n=2)
    long = draw.time + 1
    yield draw.case(
        "no response is so long", robust=True, tokens=draw.tokens(), mask=draw.mask, n=long
    )


distinct_n = Check(
    reference=solutions.distinct_n, definition=definitions.distinct_n, cases=_distinct_cases
)


def _responses_cases(draw: Draw) -> Iterator[Case]:
    first, again, n = draw.tokens(), draw.tokens(), draw.batch
    copied = [[a if m else b for a, b, m in zip(*rows, strict=True)]
              for rows in zip(first, again, draw.mask, strict=True)]  # fmt: skip
    twice: dict[str, Any] = {"tokens": [*first, *copied], "mask": draw.mask * 2}
    yield draw.case("each response twice", **twice, group=2 * n)
    yield draw.case("two groups", **twice, group=n)
    yield draw.case("one response per prompt", **twice, group=1)
    turned = [row[::-1] for row in first]
    full = [[True] * draw.time] * (2 * n)
    yield draw.case(
        "the same words in another order", tokens=[*first, *turned], mask=full, group=2 * n
    )
    zeros: dict[str, Any] = {"tokens": [[0] * draw.time] * n, "mask": draw.mask}
    yield draw.case("lengths differ, words do not", **zeros, group=n)


distinct_responses = Check(
    reference=solutions.distinct_responses,
    definition=definitions.distinct_responses,
    cases=_responses_cases,
)
