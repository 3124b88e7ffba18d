"""Checks of log-probabilities and entropy."""

import math
from collections.abc import Iterator

import minippo
from minippo.checks import definitions, solutions
from minippo.checks.engine.cases import Case, Draw, each
from minippo.checks.engine.check import Check

LARGE = "as many tokens as GPT-2 has"


def _sample_cases(draw: Draw) -> Iterator[Case]:
    for _ in range(4):
        logits = draw.floats(draw.batch, draw.vocab)
        p = [[math.exp(x) for x in definitions.log_softmax(row)] for row in logits]
        yield draw.case(probabilities=p, darts=draw.floats(draw.batch, low=0.0, high=0.99))
    p = [[0.0, 0.5, 0.25, 0.25]] * 2
    yield draw.case("a dart on a boundary", robust=True, probabilities=p, darts=[0.0, 0.5])
    p = [[0.5, 0.4998]]
    yield draw.case("a sum just below 1", robust=True, probabilities=p, darts=[0.9999])


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
