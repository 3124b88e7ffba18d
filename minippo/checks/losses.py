"""Checks of the losses."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

import minippo
from minippo.checks import definitions, solutions
from minippo.checks.engine.cases import Case, Draw, Nested, each
from minippo.checks.engine.check import Check
from minippo.checks.engine.describe import Region


def _where(name: str, low: float, high: float) -> Region:
    """The region where an input is strictly between two numbers."""
    inside = each(lambda x: low < x < high)
    return lambda inputs: inside(x=inputs[name])


SIGNS: dict[str, Region] = {
    "where the advantage is negative": _where("advantages", -99, 0),
    "where the advantage is positive": _where("advantages", 0, 99),
}


def _bradley_terry_cases(draw: Draw) -> Iterator[Case]:
    n = draw.batch
    for _ in range(3):
        yield draw.case(chosen=draw.floats(n), rejected=draw.floats(n))
    near = draw.floats(n)
    yield draw.case("equal scores", chosen=near, rejected=near)
    far = [1000.0 * (-1) ** i for i in range(n)]
    yield draw.case(
        "differences of +-1000", robust=True, chosen=[-x for x in far], rejected=[0.0] * n
    )
    pair = {"chosen": draw.floats(n), "rejected": draw.floats(n)}
    yield draw.case("with a margin", **pair, margin=0.5)
    yield draw.case("in half precision", dtype="bfloat16", slopes=False, **pair)


def _stable_bradley_terry(chosen: float, rejected: float, margin: float = 0.0) -> float:
    """Use the asymptote far from 0 and the definition elsewhere."""
    d = chosen - rejected - margin
    return max(0.0, -d) if abs(d) > 500 else definitions.bradley_terry_loss(d, 0.0)


bradley_terry_loss = Check(
    reference=minippo.bradley_terry_loss,
    definition=each(_stable_bradley_terry),
    cases=_bradley_terry_cases,
    slopes=("chosen", "rejected"),
    optional=("margin",),
)


def _ratio_cases(draw: Draw) -> Iterator[Case]:
    size = (draw.batch, draw.time)
    for _ in range(3):
        pair = [draw.floats(*size, low=-3.0, high=-0.0625) for _ in range(2)]
        yield draw.case(log_probs=pair[0], old_log_probs=pair[1])
    same = draw.floats(*size, low=-3.0, high=-0.0625)
    yield draw.case("the same policy", log_probs=same, old_log_probs=same)
    # float32 represents no probability below exp(-103).
    far = [draw.floats(*size, low=-128.0, high=-127.0) for _ in range(2)]
    yield draw.case("far from likely", robust=True, log_probs=far[0], old_log_probs=far[1])
    yield draw.case(
        "in half precision", dtype="bfloat16", slopes=False,
        log_probs=pair[0], old_log_probs=pair[1],
    )  # fmt: skip


probability_ratio = Check(
    reference=minippo.probability_ratio,
    definition=each(definitions.probability_ratio),
    cases=_ratio_cases,
    slopes=("log_probs",),
    no_slopes=("old_log_probs",),
)


def _surrogate_cases(draw: Draw) -> Iterator[Case]:
    size = (draw.batch, draw.time)
    for epsilon in (0.25, 0.125):  # exact in binary, so edges are exact
        # Away from the kinks, where right implementations differ in the gradient.
        near, far = draw.floats(*size, low=0.9, high=1.1), draw.floats(*size, low=1.3, high=2.5)
        below, advantages = draw.floats(*size, low=0.2, high=0.7), draw.floats(*size)
        for ratio in (far, below, near):
            for sign in (1.0, -1.0):
                signed = _map(partial(_with_sign, sign), advantages)
                yield draw.case(ratio=ratio, advantages=signed, clip_range=epsilon)
        zero = _map(partial(_constant, 0.0), advantages)
        yield draw.case("advantage 0", slopes=False, ratio=far, advantages=zero, clip_range=epsilon)
        for edge in (1 - epsilon, 1 + epsilon):
            at = _map(partial(_constant, edge), advantages)
            inputs = {"ratio": at, "advantages": advantages, "clip_range": epsilon}
            yield draw.case("on the edge", slopes=False, **inputs)
    high = draw.floats(*size, low=3.5, high=6.0)
    yield draw.case(
        "with a dual clip", ratio=high, advantages=advantages, clip_range=0.25, dual_clip=3.0
    )


def _with_sign(sign: float, x: float) -> float:
    return sign * (abs(x) + 0.0625)


def _constant(value: float, _: float) -> float:
    return value


def _map(f: Callable[[float], float], x: Nested) -> Nested:
    return each(f)(x=x)


def _surrogate(r: float, a: float, clip_range: float, dual_clip: float | None = None) -> float:
    return definitions.clipped_surrogate(r, a, clip_range, clip_range, dual_clip)


def _active(r: float, a: float, clip_range: float, dual_clip: float | None = None) -> bool:
    return definitions.clip_is_active(r, a, clip_range, clip_range, dual_clip)


BAND: dict[str, Region] = {
    "where the ratio is above the band": _where("ratio", 1.25, 99),
    "where the ratio is below the band": _where("ratio", -1, 0.75),
}
clipped_surrogate = Check(
    reference=minippo.clipped_surrogate,
    definition=each(_surrogate),
    cases=_surrogate_cases,
    slopes=("ratio",),
    no_slopes=("advantages",),
    optional=("dual_clip",),
    regions=SIGNS | BAND,
)
clip_is_active = Check(
    reference=minippo.clip_is_active,
    definition=each(_active),
    cases=_surrogate_cases,
    optional=("dual_clip",),
    regions=SIGNS | BAND,
)


def _penalty_cases(draw: Draw) -> Iterator[Case]:
    size = (draw.batch, draw.time)
    for coef in (0.5, 3.0, 0.0):
        yield draw.case(
            ratio=draw.floats(*size, low=0.25, high=2.0), advantages=draw.floats(*size),
            kl=draw.floats(*size, low=0.0625, high=1.0), coef=coef,
        )  # fmt: skip


penalty_surrogate = Check(
    reference=minippo.penalty_surrogate,
    definition=each(definitions.penalty_surrogate),
    cases=_penalty_cases,
    slopes=("ratio", "kl"),
    no_slopes=("advantages",),
    regions=SIGNS,
)


def _value_cases(draw: Draw) -> Iterator[Case]:
    size = (draw.batch, draw.time)
    for _ in range(3):
        yield draw.case(values=draw.floats(*size), returns=draw.floats(*size))
    for clip_range in (0.21, 0.45):  # no multiple of 1/64: off every edge and tie
        for _ in range(2):
            yield draw.case(
                "with old values", values=draw.floats(*size), returns=draw.floats(*size),
                old_values=draw.floats(*size), clip_range=clip_range,
            )  # fmt: skip


def _value_loss(
    v: float, target: float, old: float | None = None, clip_range: float | None = None
) -> float:
    return definitions.value_loss(v, target, old, clip_range)


value_loss = Check(
    reference=minippo.value_loss,
    definition=each(_value_loss),
    cases=_value_cases,
    slopes=("values",),
    no_slopes=("returns", "old_values"),
    optional=("old_values", "clip_range"),
)


def _reinforce_cases(draw: Draw) -> Iterator[Case]:
    size = (draw.batch, draw.time)
    for _ in range(3):
        yield draw.case(
            log_probs=draw.floats(*size, low=-3.0, high=-0.0625), advantages=draw.floats(*size)
        )


reinforce_loss = Check(
    reference=minippo.reinforce_loss,
    definition=each(definitions.reinforce_loss),
    cases=_reinforce_cases,
    slopes=("log_probs",),
    no_slopes=("advantages",),
    regions=SIGNS,
)


def _call_learn(function: Callable[..., Any], inputs: dict[str, Any]) -> Any:
    """Teach a table of logits what was drawn beforehand; return the curve, then the table."""
    table, drawn = inputs["logits"].clone().requires_grad_(), inputs["drawn"]
    rounds = itertools.cycle(drawn)

    def sample() -> tuple[Tensor, Tensor]:
        answers = next(rounds)
        return answers, table.log_softmax(0)[answers]

    optimizer = torch.optim.SGD([table], inputs["learning_rate"])
    keywords = {"steps": len(drawn), "baseline": inputs["baseline"]}
    try:
        curve = function(sample, lambda answers: inputs["scores"][answers], optimizer, **keywords)
    except RuntimeError as error:
        if "a second time" in str(error):
            says = "backward met log-probs of an earlier step: call sample() in each step"
            raise RuntimeError(says) from None
        raise
    if not isinstance(curve, list | Tensor):
        return curve
    return torch.cat([torch.as_tensor(curve).detach().reshape(-1), table.detach()])


def _learn_cases(draw: Draw) -> Iterator[Case]:
    n = draw.time + 1
    for note, steps, baseline in (
        ("one step", 1, 0.0), ("three steps", 3, 0.0),
        ("a baseline", 3, 0.5), ("a baseline far below the scores", 2, -4.0),
    ):  # fmt: skip
        drawn = [[draw.random.randrange(draw.vocab) for _ in range(n)] for _ in range(steps)]
        yield draw.case(
            note, logits=draw.floats(draw.vocab), drawn=drawn, scores=draw.floats(draw.vocab),
            baseline=baseline, learning_rate=0.5,
        )  # fmt: skip


learn = Check(
    reference=solutions.learn, definition=definitions.learn, cases=_learn_cases, call=_call_learn
)


def _sft_cases(draw: Draw) -> Iterator[Case]:
    for _ in range(3 if draw.batch > 1 else 0):  # one token shifted away would leave none
        yield draw.case(logits=draw.tokens_of(draw.logits()), tokens=draw.tokens(), mask=draw.mask)


sft_loss = Check(
    reference=minippo.sft_loss,
    definition=definitions.sft_loss,
    cases=_sft_cases,
    slopes=("logits",),
)
