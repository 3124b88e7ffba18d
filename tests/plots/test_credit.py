"""The credit strip, against the definitions."""

import itertools

import numpy as np
import pytest
import torch

from minippo import plots
from minippo.checks import definitions
from tests.plots.examples import RESPONSE, REWARDS, VALUES


@pytest.mark.parametrize(("gamma", "lam"), list(itertools.product([0.5, 1.0], [0.0, 0.95, 1.0])))
def test_the_credit_strip_holds_the_definitions_numbers(gamma, lam):
    figure = plots.credit(RESPONSE, REWARDS, VALUES, gamma=gamma, lam=lam)
    shown = np.concatenate([np.asarray(x.get_array()) for x in figure.axes[0].images])
    r, v, mask = [REWARDS.double().tolist()], [VALUES.double().tolist()], [[True] * 4]
    rows = [
        r[0],
        v[0],
        definitions.td_errors(r, v, mask, gamma)[0],
        definitions.gae(r, v, mask, gamma, lam)[0],
        definitions.monte_carlo_returns(r, mask, gamma)[0],
    ]
    assert shown == pytest.approx(np.array(rows), abs=1e-6)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == [f"{x + 0.0:.2f}" for x in shown.flatten()]


def test_a_response_of_one_token_has_its_surprise_as_advantage():
    picture = plots.Credit(["."], torch.tensor([1.0]), torch.tensor([0.25]))
    for lam in (0.0, 1.0):
        sentence = picture.move(lam=lam)
        assert "advantage +0.75 at the first token, +0.75 at the last" in sentence
        assert "counts 1.00 at the first token" in sentence
