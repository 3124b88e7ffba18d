"""Checks of the alternatives to PPO."""

from collections.abc import Iterator

import minippo
from minippo.checks import definitions
from minippo.checks.engine.cases import Case, Draw, Nested, each
from minippo.checks.engine.check import Check


def _dpo_cases(draw: Draw) -> Iterator[Case]:
    for beta in (0.1, 1.0, 0.5):
        names = ("policy_chosen", "policy_rejected", "ref_chosen", "ref_rejected")
        log_probs = {name: draw.floats(draw.batch, low=-4.0, high=-1.0) for name in names}
        yield draw.case(**log_probs, beta=beta)
    # Log-probs of whole responses are sums over tokens.
    far = [1000.0 * (-1) ** i for i in range(draw.batch)]
    near = [0.0] * draw.batch
    for chosen, rejected in ((far, near), (near, far)):
        yield draw.case(
            "differences of +-1000", robust=True, policy_chosen=chosen, policy_rejected=rejected,
            ref_chosen=near, ref_rejected=near, beta=0.5,
        )  # fmt: skip


def _stable_dpo(pc: float, pr: float, rc: float, rr: float, beta: float) -> float:
    """Use the asymptote far from 0 and the definition elsewhere."""
    d = beta * ((pc - rc) - (pr - rr))
    return max(0.0, -d) if abs(d) > 400 else definitions.dpo_loss(pc, pr, rc, rr, beta)


dpo_loss = Check(
    reference=minippo.dpo_loss,
    definition=each(_stable_dpo),
    cases=_dpo_cases,
    slopes=("policy_chosen", "policy_rejected"),
)


def _apart(draw: Draw, low: float) -> Nested:
    """Draw groups of scores whose deviation is far above what is added to it."""
    rows = []
    for _ in range(draw.batch):
        row = draw.floats(draw.time + 1, low=low, high=low + 4)
        row[1] = low + (row[0] - low + 2) % 4  # 2 apart
        rows.append(row)
    return rows


def _group_cases(draw: Draw) -> Iterator[Case]:
    size = (draw.batch, draw.time + 1)
    for _ in range(3):
        yield draw.case(scores=_apart(draw, -2.0))
    yield draw.case("scores above 0", scores=_apart(draw, 1.0))
    equal = [[draw.number()] * size[1] for _ in range(size[0])]
    yield draw.case("equal scores", robust=True, scores=equal)


def _switched(draw: Draw) -> Iterator[Case]:
    yield from _group_cases(draw)
    yield draw.case(scores=_apart(draw, -2.0), normalize=False)


group_advantages = Check(
    reference=minippo.group_advantages,
    definition=definitions.group_advantages,
    cases=_switched,
    optional=("normalize",),
)
leave_one_out_advantages = Check(
    reference=minippo.leave_one_out_advantages,
    definition=definitions.leave_one_out_advantages,
    cases=_group_cases,
)
