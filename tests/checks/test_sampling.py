"""Sampling and its measurement: right styles pass, and each mistake has its name."""

import pytest
import torch
from torch import tensor
from torch.nn import functional

from minippo import checks
from minippo.checks import solutions
from minippo.checks.definitions import sample_tokens as slow

pytestmark = pytest.mark.usefixtures("without_hook")


def on(darts):
    return darts.double().unsqueeze(-1)


def test_a_dart_at_six_tenths_hits_the_second_stretch():
    p = tensor([[0.5, 0.3, 0.2]] * 4)
    darts = tensor([0.0, 0.5, 0.6, 0.99])
    assert solutions.sample_tokens(p, darts).tolist() == [0, 1, 1, 2]
    assert slow(p.double().tolist(), darts.double().tolist()) == [0, 1, 1, 2]


def test_no_dart_chooses_a_token_of_probability_0_or_one_that_does_not_exist():
    p, darts = tensor([[0.0, 1.0], [0.5, 0.4999]]), tensor([0.0, 1 - 2**-24])
    assert solutions.sample_tokens(p, darts).tolist() == [1, 1]


def test_shares_of_many_darts_are_the_probabilities():
    darts = (torch.arange(1000) + 0.5) / 1000
    found = solutions.sample_tokens(tensor([[0.125, 0.625, 0.25]]).expand(1000, -1), darts)
    assert found.bincount().tolist() == [125, 625, 250]


def by_searchsorted(p, darts):
    ends = p.double().cumsum(-1)
    return torch.searchsorted(ends, on(darts) * ends[:, -1:], right=True)[:, 0]


def up_to_the_last_but_one(p, darts):
    return (p.double().cumsum(-1)[:, :-1] <= on(darts)).sum(-1)


def first_end_beyond(p, darts):
    ends = p.double().cumsum(-1)
    ends[:, -1] = 1.0
    return (ends > on(darts)).int().argmax(-1)


@pytest.mark.parametrize("mine", [by_searchsorted, up_to_the_last_but_one, first_end_beyond])
def test_darts_thrown_in_another_style_pass(mine):
    assert checks.sample_tokens(mine).passed


@pytest.mark.parametrize(
    ("mine", "mistake"),
    [
        (lambda p, u: p.argmax(1), "likeliest token"),
        (lambda p, u: (p <= u[:, None]).sum(1), "probabilities not added up"),
        (lambda p, u: (p.cumsum(1) <= u[:, None]).sum(1) - 1, "one token too early"),
        (lambda p, u: torch.searchsorted(p.cumsum(1), u[:, None])[:, 0], "boundary"),
        (lambda p, u: (p.cumsum(1) <= u[:, None]).sum(1), "beyond the last token"),
        (
            lambda p, u: (p.sort(descending=True)[0].double().cumsum(1) <= on(u)).sum(1),
            "sorted first",
        ),
    ],
)
def test_a_mistake_with_darts_has_its_name(mine, mistake):
    assert mistake in checks.sample_tokens(mine).headline


def test_hidden_randomness_is_noticed():
    verdict = checks.sample_tokens(lambda p, u: torch.multinomial(p, 1)[:, 0])
    assert "random state of torch" in verdict.headline


def log_p(z, t, tokens):
    return (z / t).log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize(
    ("mine", "mistake"),
    [
        (lambda z, t, *, temperature: log_p(z, temperature, t.roll(-1, 1)), "rolled"),
        (lambda z, t, *, temperature: log_p(z.roll(1, 1), temperature, t), "rows rolled"),
        (lambda z, t, *, temperature: log_p(z[:, 1:], temperature, t[:, :-1]), "shifted back"),
        (
            lambda z, t, *, temperature: functional.pad(
                log_p(z[:, :-1], temperature, t[:, 1:]), (1, 0)
            ),
            "shifted twice, padded in front",
        ),
    ],
)
def test_a_second_shift_has_its_name_in_every_style(mine, mistake):
    assert mistake in (checks.token_log_probs(mine).mistake or "")


def test_an_error_is_shown_on_a_case_of_more_than_one_token():
    verdict = checks.token_log_probs(
        lambda z, t, *, temperature: -functional.cross_entropy(z / temperature, t)
    )
    assert "raised an error" in verdict.headline
    (tokens,) = (line for line in verdict.lines if "tokens =" in line)
    assert "," in tokens
