"""Checks of log-probabilities and entropy."""

import math
from collections.abc import Iterator
from itertools import accumulate, pairwise

import minippo
from minippo.checks import definitions, solutions
from minippo.checks.engine.cases import Case, Draw, each
from minippo.checks.engine.check import Check

LARGE = "as many tokens as GPT-2 has"


def _sample_cases(draw: Draw) -> Iterator[Case]:
    def shares() -> list[float]:
        """Multiples of 1/64, some of them 0, that add up to 1 without rounding."""
        cuts = sorted(draw.random.randrange(65) for _ in range(draw.vocab - 1))
        return [(b - a) / 64 for a, b in pairwise([0, *cuts, 64])]

    rows = [shares() for _ in range(draw.batch)]
    for _ in range(4):
        darts = [(draw.random.randrange(64) + 0.5) / 64 for _ in rows]  # on no boundary
        yield draw.case(probabilities=rows, darts=darts)
        rows = [shares() for _ in rows]
    ends = [draw.random.choice([0.0, *list(accumulate(row))[:-1]]) % 1 for row in rows]
    yield draw.case("a dart on a boundary", robust=True, probabilities=rows, darts=ends)
    short = [[0.5, *[0.0] * (draw.vocab - 2), 0.5 - 2.0**-20]] * draw.batch
    last = [1 - 2.0**-24] * draw.batch  # the largest number below 1
    yield draw.case("a sum just below 1", robust=True, probabilities=short, darts=last)


sample_tokens = Check(
    reference=solutions.sample_tokens, definition=definitions.sample_tokens, cases=_sample_cases
)


def _token_log_probs_cases(draw: Draw) -> Iterator[Case]:
    for temperature in (1.0, 0.5, 2.0):
        yield draw.case(logits=draw.logits(), tokens=draw.tokens(), temperature=temperature)
    logits, tokens = draw.logits(), draw.tokens()
    logits[0][0][0] = 120.0  # float32 cannot represent the others' probabilities
    tokens[0][0] = 1
    yield draw.case(
        "a token of probability near 0", robust=True,
        logits=logits, tokens=tokens, temperature=1.0,
    )  # fmt: skip
    ruled_out = draw.logits()
    ruled_out[0][0][0] = -math.inf
    yield draw.case(
        "a token ruled out", robust=True, logits=ruled_out, tokens=tokens, temperature=1.0
    )
    half = {"logits": draw.logits(), "tokens": draw.tokens(), "temperature": 1.0}
    yield draw.case("in half precision", dtype="bfloat16", slopes=False, **half)


token_log_probs = Check(
    reference=minippo.token_log_probs,
    definition=definitions.token_log_probs,
    cases=_token_log_probs_cases,
    slopes=("logits",),
)


def _sequence_log_prob_cases(draw: Draw) -> Iterator[Case]:
    for _ in range(3):
        yield draw.case(log_probs=draw.log_probs(), mask=draw.mask)


sequence_log_prob = Check(
    reference=minippo.sequence_log_prob,
    definition=definitions.sequence_log_prob,
    cases=_sequence_log_prob_cases,
    slopes=("log_probs",),
)


def _entropy_cases(draw: Draw) -> Iterator[Case]:
    for temperature in (1.0, 0.5, 2.0):
        yield draw.case(logits=draw.logits(), temperature=temperature)
    equal = [[[0.5] * draw.vocab] * draw.time] * draw.batch
    yield draw.case("all tokens equal", logits=equal, temperature=1.0)
    certain = draw.logits()
    certain[0][0][0] = 30.0
    yield draw.case("nearly certain", logits=certain, temperature=1.0)
    ruled_out = draw.logits()
    ruled_out[0][0][0] = -math.inf
    yield draw.case("a token ruled out", robust=True, logits=ruled_out, temperature=1.0)
    if draw.time == 1:
        many = [[[0.0] * 50257]]
        yield draw.case(LARGE, robust=True, slopes=False, logits=many, temperature=1.0)
    yield draw.case(
        "in half precision", dtype="bfloat16", slopes=False, logits=draw.logits(), temperature=1.0
    )


entropy = Check(
    reference=minippo.entropy,
    definition=each(definitions.entropy, inner=1),
    cases=_entropy_cases,
    slopes=("logits",),
)
