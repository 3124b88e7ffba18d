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
    picture = plots.Credit(RESPONSE, REWARDS, VALUES)
    picture.move(gamma=gamma, lam=lam)
    figure = picture.figure
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


def test_without_values_the_strip_shows_rewards_and_returns_alone():
    picture = plots.Credit(["fine", "EOS"], torch.tensor([-0.25, 1.0]))
    assert picture.move(gamma=0.5) == ("gamma 0.50: return 0.25 at the first token, 1.00 at EOS.")
    axes = picture.figure.axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["reward r", "return G"]
    assert [text.get_text() for text in axes.texts] == ["-0.25", "1.00", "0.25", "1.00"]


def test_a_response_of_one_token_has_its_surprise_as_advantage():
    picture = plots.Credit(["."], torch.tensor([1.0]), torch.tensor([0.25]))
    for lam in (0.0, 1.0):
        sentence = picture.move(lam=lam)
        assert "advantage +0.75 at the first token, +0.75 at the last" in sentence
        assert "counts 1.00 at the first token" in sentence


def test_rows_of_credit_hold_the_numbers_that_came():
    rows = {"measured": REWARDS, "guessed": VALUES}
    axes = plots.credit_rows(RESPONSE, rows).axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["measured", "guessed"]
    assert np.asarray(axes.images[0].get_array()) == pytest.approx(
        np.array([REWARDS.tolist(), VALUES.tolist()])
    )
    assert [text.get_text() for text in axes.texts][:4] == ["-0.02", "0.01", "-0.05", "1.00"]


def test_each_surprise_leads_from_one_level_to_the_next_and_the_last_to_the_score():
    texts = [t.get_text() for t in plots.surprises(RESPONSE, VALUES, 1.0).axes[0].texts]
    assert [x for x in texts if x] == ["-0.1", "+0.4", "+0.1", "+0.3", "the score, 1.0"]


def test_the_measured_truth_has_bars_of_two_standard_errors_and_its_guesses_beside_it():
    errors, guess = torch.tensor([0.1, 0.2, 0.1, 0.05]), torch.tensor([0.5] * 4)
    axes = plots.token_truth(RESPONSE, VALUES, errors, 1.0, {"one number": guess}).axes[0]
    (bars,) = axes.containers
    heights = [np.ptp(line[:, 1]) for line in bars.lines[2][0].get_segments()]
    assert heights == pytest.approx([0.4, 0.8, 0.4, 0.2])
    path, _, one = (line.get_ydata() for line in axes.lines[:1] + axes.lines[1:2] + axes.lines[-1:])
    assert list(path) == pytest.approx([0.3, 0.2, 0.6, 0.7, 1.0])  # ends at the score
    assert list(one) == [0.5] * 4
