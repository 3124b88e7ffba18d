"""Checks of measures of reward hacking."""

from collections.abc import Iterator

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
