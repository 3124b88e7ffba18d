"""Checks of credit. Advantages are numbers to learn from: no gradient is asked for."""

from collections.abc import Iterator
from typing import Any

import minippo
from minippo import definitions
from minippo.checks._cases import Case, Draw, each
from minippo.checks._check import Check


def _episode(draw: Draw) -> dict[str, Any]:
    return {"rewards": draw.token_floats(), "values": draw.token_floats(), "mask": draw.mask}


def _td_cases(draw: Draw) -> Iterator[Case]:
    for gamma in (1.0, 0.9, 0.0):
        yield draw.case(**_episode(draw), gamma=gamma)
    bootstrap = draw.floats(draw.batch)
    yield draw.case("with a bootstrap", **_episode(draw), gamma=0.9, bootstrap=bootstrap)


td_errors = Check(
    reference=minippo.td_errors,
    definition=definitions.td_errors,
    cases=_td_cases,
    optional=("bootstrap",),
)


def _gae_cases(draw: Draw) -> Iterator[Case]:
    for gamma in (1.0, 0.9):
        for lam in (0.95, 0.0, 1.0):
            yield draw.case(**_episode(draw), gamma=gamma, lam=lam)
    bootstrap = draw.floats(draw.batch)
    yield draw.case("with a bootstrap", **_episode(draw), gamma=0.9, lam=0.95, bootstrap=bootstrap)


gae = Check(
    reference=minippo.gae, definition=definitions.gae, cases=_gae_cases, optional=("bootstrap",)
)


def _returns_cases(draw: Draw) -> Iterator[Case]:
    for gamma in (1.0, 0.9, 0.5, 0.0):
        yield draw.case(rewards=draw.token_floats(), mask=draw.mask, gamma=gamma)


monte_carlo_returns = Check(
    reference=minippo.monte_carlo_returns,
    definition=definitions.monte_carlo_returns,
    cases=_returns_cases,
)


def _sequence_cases(draw: Draw) -> Iterator[Case]:
    for _ in range(3):
        yield draw.case(scores=draw.floats(draw.batch), values=draw.floats(draw.batch))


sequence_advantages = Check(
    reference=minippo.sequence_advantages,
    definition=each(definitions.sequence_advantages),
    cases=_sequence_cases,
)


def _reward_cases(draw: Draw) -> Iterator[Case]:
    for kl_coef in (0.1, 0.0, 2.0):
        yield draw.case(
            scores=draw.floats(draw.batch), kl=draw.token_floats(), mask=draw.mask, kl_coef=kl_coef
        )


shape_rewards = Check(
    reference=minippo.shape_rewards, definition=definitions.shape_rewards, cases=_reward_cases
)
