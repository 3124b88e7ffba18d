"""Checks of the KL divergence and of the controllers of its coefficient."""

import math
from collections.abc import Iterator

import minippo
from minippo.checks import definitions
from minippo.checks.engine.cases import Case, Draw, each, settings
from minippo.checks.engine.check import Check
from minippo.checks.mistakes.kl import coefficients


def _sampled_cases(draw: Draw) -> Iterator[Case]:
    size = (draw.batch, draw.time)
    for _ in range(3):
        p, q = (draw.floats(*size, low=-3.0, high=-0.0625) for _ in range(2))
        yield draw.case(log_probs=p, ref_log_probs=q)
    far = draw.floats(*size, low=-12.0, high=-8.0)
    yield draw.case("the policy has gone far", log_probs=far, ref_log_probs=q)
    yield draw.case("the reference has gone far", log_probs=q, ref_log_probs=far)
    yield draw.case("the same policy", log_probs=p, ref_log_probs=p)


kl_k1, kl_k2, kl_k3 = (
    Check(
        reference=reference,
        definition=each(definition),
        cases=_sampled_cases,
        slopes=("log_probs",),
    )
    for reference, definition in (
        (minippo.kl_k1, definitions.kl_k1),
        (minippo.kl_k2, definitions.kl_k2),
        (minippo.kl_k3, definitions.kl_k3),
    )
)


def _exact_cases(draw: Draw) -> Iterator[Case]:
    for temperature in (1.0, 0.5, 2.0):
        yield draw.case(logits=draw.logits(), ref_logits=draw.logits(), temperature=temperature)
    same = draw.logits()
    yield draw.case("the same policy", logits=same, ref_logits=same, temperature=1.0)
    ruled_out, ref = draw.logits(), draw.logits()
    ruled_out[0][0][0] = -math.inf
    yield draw.case(
        "a token ruled out", robust=True, logits=ruled_out, ref_logits=ref, temperature=1.0
    )
    far = [[[-200.0 if i == j == v == 0 else x for v, x in enumerate(z)]
             for j, z in enumerate(row)] for i, row in enumerate(ref)]  # fmt: skip
    yield draw.case(
        "the reference rules out what the policy hardly ever says", robust=True, slopes=False,
        logits=far, ref_logits=ruled_out, temperature=1.0,
    )  # fmt: skip
    both = [[[-math.inf if i == j == v == 0 else x for v, x in enumerate(z)]
             for j, z in enumerate(row)] for i, row in enumerate(ref)]  # fmt: skip
    yield draw.case(
        "a token that both rule out", robust=True,
        logits=ruled_out, ref_logits=both, temperature=1.0,
    )  # fmt: skip
    unlikely = [[[x - 200.0 * (v == 0) for v, x in enumerate(z)] for z in row] for row in ref]
    yield draw.case(
        "a token that the reference hardly ever says",
        logits=ref, ref_logits=unlikely, temperature=1.0,
    )  # fmt: skip
    # A token with zero probability under the reference costs infinitely much.
    yield draw.case(
        "a token that the reference rules out", robust=True, slopes=False,
        logits=ref, ref_logits=ruled_out, temperature=1.0,
    )  # fmt: skip
    yield draw.case(
        "in half precision", dtype="bfloat16", slopes=False,
        logits=draw.logits(), ref_logits=ref, temperature=1.0,
    )  # fmt: skip


exact_kl = Check(
    reference=minippo.exact_kl,
    definition=each(definitions.exact_kl, inner=1),
    cases=_exact_cases,
    slopes=("logits",),
)


def _kls(draw: Draw, target: float) -> list[list[float]]:
    """Single updates below, near, above and far from the target; then several in a row."""
    factors = [0.1, 0.6, 0.95, 1.1, 1.6, 3.0]
    kls = [[target * factor] for factor in factors] if draw.time == 1 else []
    return [*kls, [target * draw.random.choice(factors) for _ in range(2 * draw.time)]]


def _adaptive_cases(draw: Draw) -> Iterator[Case]:
    base = {"coef": 0.5, "target": 6.0, "horizon": 500, "n_episodes": 64}
    for keywords in settings(base, coef=0.25, target=0.5, horizon=1000, n_episodes=192):
        for kls in _kls(draw, keywords["target"]):
            yield draw.case(**keywords, kls=kls)


AdaptiveKL = Check(
    reference=minippo.AdaptiveKL,
    definition=definitions.adaptive_kl,
    cases=_adaptive_cases,
    call=coefficients,
)
