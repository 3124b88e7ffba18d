"""No right implementation fails by the seed: the references and other people's styles, on many."""

import functools

import pytest
import torch
from torch import where
from torch.nn import functional

from minippo.checks import CHECKS
from minippo.checks.engine.cases import Case
from minippo.checks.engine.describe import shown
from minippo.checks.engine.judge import failure
from tests.soak import soak

pytestmark = pytest.mark.usefixtures("without_hook")


def values_by(clip, larger):
    """A value loss with this way to clip and this way to take the larger error."""

    def mine(values, returns, *, old_values=None, clip_range=None):
        plain = (values - returns.detach()).square()
        if old_values is None or clip_range is None:
            return 0.5 * plain
        clipped = clip(values, old_values.detach(), clip_range)
        return 0.5 * larger(plain, (clipped - returns.detach()).square())

    return mine


def cleanrl(v, old, c):
    return old + torch.clamp(v - old, -c, c)


def trl(v, old, c):
    """clip_by_value."""
    return torch.max(torch.min(v, old + c), old - c)


def bounds(v, old, c):
    return v.clamp(old - c, old + c)


def with_mse_loss(values, returns, *, old_values=None, clip_range=None):
    def loss(v):
        return functional.mse_loss(v, returns.detach(), reduction="none")

    if old_values is None or clip_range is None:
        return loss(values) / 2
    return torch.fmax(loss(values), loss(cleanrl(values, old_values.detach(), clip_range))) / 2


def surrogate_by(smaller):
    def mine(ratio, advantages, clip_range):
        a = advantages.detach()
        return -smaller(ratio * a, ratio.clamp(1 - clip_range, 1 + clip_range) * a)

    return mine


def by_sign(ratio, advantages, clip_range):
    a = advantages.detach()
    return -where(a >= 0, ratio.clamp(max=1 + clip_range), ratio.clamp(min=1 - clip_range)) * a


def by_standard_deviation(epsilon):
    def mine(scores, *, normalize=True):
        centred = scores - scores.mean(1, keepdim=True)
        return (
            centred / (scores.std(1, keepdim=True, correction=0) + epsilon)
            if normalize
            else centred
        )

    return mine


def whiten_by_standard_deviation(x, mask):
    real = x.float()[mask]
    white = (x.float() - real.mean()) / (real.std(correction=0) + 1e-8)
    return where(mask, white, 0.0)


def by_products(ratio, advantages, clip_range):
    return ratio.clamp(1 - clip_range, 1 + clip_range) * advantages < ratio * advantages


def largest(x, y):
    return where(x > y, x, y)


def stacked(x, y):
    return torch.stack([x, y]).max(0).values


STYLES = [
    *(("value_loss", values_by(clip, larger)) for clip in (cleanrl, trl, bounds)
      for larger in (torch.max, torch.maximum, torch.fmax, largest, stacked)),
    ("value_loss", with_mse_loss),
    *(("clipped_surrogate", surrogate_by(smaller)) for smaller in (
        torch.min, lambda x, y: where(x < y, x, y), lambda x, y: torch.stack([x, y]).min(0).values,
        lambda x, y: -torch.max(-x, -y))),
    ("clipped_surrogate", by_sign),
    ("clip_is_active", by_products),
    ("group_advantages", by_standard_deviation(1e-8)),
    ("group_advantages", by_standard_deviation(1e-6)),
    ("whiten", whiten_by_standard_deviation),
    ("bradley_terry_loss", lambda c, r: -functional.logsigmoid(c.float() - r.float())),
    ("dpo_loss", lambda a, b, c, d, *, beta: functional.softplus(-beta * ((a - c) - (b - d)))),
    ("kl_k3", lambda p, q: torch.expm1(q - p) - (q - p)),
    ("entropy", lambda z, *, temperature=1.0: torch.distributions.Categorical(
        logits=(z.double() / temperature).clamp(min=-1e30)).entropy().float()),
    ("masked_mean", lambda x, mask: x.float()[mask].mean()),
    ("first_ratio_error", lambda p, q, m: (p.float()[m] - q.float()[m]).expm1().abs().max()),
    ("optimal_policy", lambda ref, r, *, beta: (ref + r / beta)
     - torch.logsumexp(ref + r / beta, 0)),
]  # fmt: skip
SEEDS = soak(2, 200)


@functools.cache
def right(name, seed, left_out):
    check = CHECKS[name]
    return [(case, check.expected(case)) for case in check.generate(seed, left_out)]


def wrong_on(name, function, seeds):
    check = CHECKS[name]
    left_out = tuple(check.left_out(function))
    found = []
    for seed in seeds:
        for case, expected in right(name, seed, left_out):
            failed = failure(case, expected, check.observe(function, case))
            found += [f"seed {seed}: {failed.says} {shown(failed)}"] if failed else []
    return found


@pytest.mark.parametrize("name", CHECKS)
def test_a_reference_passes_whatever_the_seed(name):
    cheap = name not in ("ppo_loss", "ppo_update")
    seeds = range(SEEDS if cheap else soak(1, 20))
    assert wrong_on(name, CHECKS[name].reference, seeds) == []


@pytest.mark.parametrize(("name", "function"), STYLES)
def test_another_right_style_passes_whatever_the_seed(name, function):
    assert wrong_on(name, function, range(SEEDS)) == []


def test_at_a_kink_any_slope_between_the_one_sided_ones_is_right():
    """On the clip's edge a smaller value changes the loss, and a larger one does not."""
    check = CHECKS["value_loss"]
    inputs = {"values": [0.5], "returns": [1.0], "old_values": [0.25], "clip_range": 0.25}
    case = Case(inputs)
    for clip in (cleanrl, trl, bounds):
        function = values_by(clip, torch.max)
        assert failure(case, check.expected(case), check.observe(function, case)) is None
    seen = check.observe(with_mse_loss, case)
    for factor in (3.0, -0.5):
        seen.slopes["values"] = [factor * check.expected(case).slopes["values"][0]]
        assert "gradient to values is wrong" in failure(case, check.expected(case), seen).says


def test_no_case_of_the_value_loss_lies_on_an_edge_or_a_tie():
    """The clip's edge is where v is c from old; the tie where R is halfway to the clipped v."""
    for seed in range(50):
        for case in CHECKS["value_loss"].generate(seed):
            if "old_values" not in case.inputs or not isinstance(case.inputs["values"][0], list):
                continue
            v, r, old = (torch.tensor(case.inputs[x]) for x in ("values", "returns", "old_values"))
            c = case.inputs["clip_range"]
            clipped = cleanrl(v, old, c)
            assert ((v - old).abs() - c).abs().min() > 1e-3
            assert where(v == clipped, 1.0, (v + clipped) / 2 - r).abs().min() > 1e-3
