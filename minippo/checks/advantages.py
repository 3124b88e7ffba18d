"""Checks of credit. Advantages are constants in the loss: no gradient is checked."""

from collections.abc import Iterator
from typing import Any

import minippo
from minippo.checks import definitions
from minippo.checks.engine.cases import Case, Draw, settings
from minippo.checks.engine.check import Check


def _padded(draw: Draw, names: str, **others: Any) -> Case:
    """Make a case of [batch, time] numbers with these names and a mask."""
    numbers = {name: draw.token_floats() for name in names.split()}
    return draw.case(**numbers, mask=draw.mask, **others)


def _td_cases(draw: Draw) -> Iterator[Case]:
    end = draw.floats(draw.batch)
    some = [{"gamma": 1.0}, {"gamma": 0.0}]
    for keywords in [*settings({"gamma": 0.9}, gamma=0.5, bootstrap=end), *some]:
        yield _padded(draw, "rewards values", **keywords)


td_errors = Check(
    reference=minippo.td_errors,
    definition=definitions.td_errors,
    cases=_td_cases,
    optional=("bootstrap",),
)


def _gae_cases(draw: Draw) -> Iterator[Case]:
    end, plain = draw.floats(draw.batch), {"gamma": 0.9, "lam": 0.95}
    some = [plain | change for change in ({"gamma": 1.0}, {"lam": 0.0}, {"lam": 1.0})]
    for keywords in [*settings(plain, gamma=0.5, lam=0.5, bootstrap=end), *some]:
        yield _padded(draw, "rewards values", **keywords)


gae = Check(
    reference=minippo.gae, definition=definitions.gae, cases=_gae_cases, optional=("bootstrap",)
)


def _returns_cases(draw: Draw) -> Iterator[Case]:
    for gamma in (1.0, 0.9, 0.5, 0.0):
        yield _padded(draw, "rewards", gamma=gamma)


monte_carlo_returns = Check(
    reference=minippo.monte_carlo_returns,
    definition=definitions.monte_carlo_returns,
    cases=_returns_cases,
)


def _reward_cases(draw: Draw) -> Iterator[Case]:
    for kl_coef in (0.1, 0.0, 2.0):
        scores = draw.floats(draw.batch)
        kl = draw.token_floats()
        yield draw.case(scores=scores, kl=kl, mask=draw.mask, kl_coef=kl_coef)


shape_rewards = Check(
    reference=minippo.shape_rewards,
    definition=definitions.shape_rewards,
    cases=_reward_cases,
    regions={
        "where the KL is negative": lambda inputs: [[x < 0 for x in row] for row in inputs["kl"]]
    },
)
