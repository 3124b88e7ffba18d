"""Checks of credit."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import minippo
from minippo import definitions
from minippo.checks._cases import Case, Draw, Nested, each
from minippo.checks._check import Check

# No value of one of them stands with one value of the other alone.
GAMMA_AND_LAM = [(1.0, 0.95), (0.9, 0.95), (1.0, 0.0), (0.9, 0.0), (1.0, 1.0), (0.5, 1.0)]


def _padded(draw: Draw, *names: str, **others: Any) -> Iterator[Case]:
    """[batch, time] numbers of these names, and a mask, with the keywords of `others`.

    Under the mask stand zeros and then ordinary numbers, which a reader can still follow by hand;
    or NaN and 1000.
    """
    numbers = {name: draw.floats(draw.batch, draw.time) for name in names}
    clean = {name: draw.tokens_of(x) for name, x in numbers.items()}
    yield draw.case(**clean, mask=draw.mask, **others)
    if not draw.junk and not all(map(all, draw.mask)):
        case = draw.case("ordinary numbers under the mask", **numbers, mask=draw.mask, **others)
        yield replace(case, junk=True)


def _monte_carlo_cases(draw: Draw) -> Iterator[Case]:
    for gamma in (1.0, 0.9, 0.5, 0.0):
        yield from _padded(draw, "rewards", gamma=gamma)


def _td_cases(draw: Draw) -> Iterator[Case]:
    for gamma in (1.0, 0.9, 0.0):
        yield from _padded(draw, "rewards", "values", gamma=gamma)
        if gamma:
            yield from _bootstrapped(draw, gamma=gamma)


def _gae_cases(draw: Draw) -> Iterator[Case]:
    for gamma, lam in GAMMA_AND_LAM:
        yield from _padded(draw, "rewards", "values", gamma=gamma, lam=lam)
        if lam == 0.95:
            yield from _bootstrapped(draw, gamma=gamma, lam=lam)


def _bootstrapped(draw: Draw, **numbers: float) -> Iterator[Case]:
    bootstrap = draw.floats(draw.batch)
    for case in _padded(draw, "rewards", "values", **numbers, bootstrap=bootstrap):
        yield replace(case, note=" and ".join(filter(None, ["with a bootstrap", case.note])))


def _sequence_cases(draw: Draw) -> Iterator[Case]:
    if not draw.junk:  # there is no mask here
        yield draw.case(scores=draw.floats(draw.batch), values=draw.floats(draw.batch))
        good = draw.floats(draw.batch)
        yield draw.case("scores as expected", scores=good, values=good)


def _shape_cases(draw: Draw) -> Iterator[Case]:
    for kl_coef in (0.5, 0.0, 0.25):
        scores = draw.floats(draw.batch)
        for case in _padded(draw, "kl", kl_coef=kl_coef):
            yield replace(case, inputs={"scores": scores} | case.inputs)


monte_carlo_returns = Check(
    reference=minippo.monte_carlo_returns,
    definition=definitions.monte_carlo_returns,
    cases=_monte_carlo_cases,
    slopes=("rewards",),
)
td_errors = Check(
    reference=minippo.td_errors,
    definition=definitions.td_errors,
    cases=_td_cases,
    slopes=("rewards", "values"),
    optional=("bootstrap",),
)
gae = Check(
    reference=minippo.gae,
    definition=definitions.gae,
    cases=_gae_cases,
    slopes=("rewards", "values"),
    optional=("bootstrap",),
)
sequence_advantages = Check(
    reference=minippo.sequence_advantages,
    definition=each(lambda score, value: score - value),
    cases=_sequence_cases,
    slopes=("scores", "values"),
)



shape_rewards = Check(
    reference=minippo.shape_rewards,
    definition=definitions.shape_rewards,
    cases=_shape_cases,
    slopes=("scores", "kl"),
    regions={"where the KL is negative": lambda inputs: [
        [x < 0 for x in row] for row in inputs["kl"]
    ]},
)
