"""Checks of credit."""

from collections.abc import Iterator

import minippo
from minippo import definitions
from minippo.checks._cases import Case, Draw
from minippo.checks._check import Check


def _gae_cases(draw: Draw) -> Iterator[Case]:
    for gamma, lam in [(1.0, 0.95), (1.0, 0.0), (1.0, 1.0), (0.9, 0.7)]:
        inputs = {
            "rewards": draw.token_floats(),
            "values": draw.token_floats(),
            "mask": draw.mask,
            "gamma": gamma,
            "lam": lam,
        }
        yield draw.case(**inputs)
        if lam == 0.95:
            yield draw.case("with a bootstrap", **inputs, bootstrap=draw.floats(draw.batch))


gae = Check(
    reference=minippo.gae,
    definition=definitions.gae,
    cases=_gae_cases,
    slopes=("rewards", "values"),
    optional=("bootstrap",),
)
