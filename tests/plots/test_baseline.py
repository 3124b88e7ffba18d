"""Estimates of the policy gradient from one word, by hand."""

import pytest
import torch

from minippo import plots


@pytest.fixture
def picture():
    p, scores = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([2.0, 1.0, 0.0])
    return plots.Baseline(["good", "fine", "bad"], p, scores)


def heights(picture):
    return [bar.get_height() for bar in picture.figure.axes[0].patches]


def test_bars_are_score_minus_baseline_times_one_hot_minus_probabilities(picture):
    picture.move(baseline=0.0)
    by_hand = [1.6, -0.6, -1.0, -0.2, 0.7, -0.5, 0, 0, 0]  # 2 * (0.8, -0.3, -0.5) and so on
    assert heights(picture) == pytest.approx(by_hand, abs=1e-6)
    picture.move(baseline=2.0)
    by_hand = [0, 0, 0, 0.2, -0.7, 0.5, 0.4, 0.6, -1.0]
    assert heights(picture) == pytest.approx(by_hand, abs=1e-6)


@pytest.mark.parametrize(("b", "variance"), [(0.0, 0.8198), (0.7, 0.2472), (2.0, 0.7958)])
def test_the_average_stays_and_the_variance_is_that_of_the_bars(picture, b, variance):
    said = picture.move(baseline=b)
    assert said == f"b = {b:.2f}: average +0.26, +0.09, -0.35; variance {variance:.3f}."
    ((x,), (y,)) = picture.figure.axes[1].lines[1].get_data()
    assert (x, y) == pytest.approx((b, variance), abs=1e-4)
