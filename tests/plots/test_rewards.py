"""Over-optimisation and the frontier: curves and sentences."""

import importlib
import itertools
import math

import numpy as np
import pytest

from minippo import plots
from tests.plots.examples import GOLD, KL, METHODS, PROXY


@pytest.mark.parametrize(
    ("kl", "proxy", "gold"),
    [(0, 0, 0), (1, 0.5, 0.375), (2, 1, 0.75), (5, 1.5, 0.625), (14, 2.5, 0.0), (20, 3, -0.5)],
)
def test_the_cursor_reads_both_rewards_and_their_gap(kl, proxy, gold):
    picture = plots.OverOptimisation(KL, PROXY, GOLD)
    sentence = picture.move(kl=float(kl))
    assert sentence == (
        f"At {kl:.1f} nats: proxy {proxy:.2f}, gold {gold:.2f}, gap {proxy - gold:+.2f}; gold is "
        "highest, 0.75, at 2.0 nats."
    )
    curves = {line.get_label(): line.get_data() for line in picture.figure.axes[0].lines}
    x, y = curves["proxy (what is paid)"]
    assert (list(x), list(y)) == ([0, 2, 8, 20], [0, 1, 2, 3])
    assert list(curves["gold (what is meant)"][1]) == [0, 0.75, 0.5, -0.5]
    gap, dot, square = picture.figure.axes[0].lines[2:]
    assert gap.get_ydata() == pytest.approx([gold, proxy])
    assert [*dot.get_xdata(), *dot.get_ydata()] == pytest.approx([kl, proxy])
    assert [*square.get_xdata(), *square.get_ydata()] == pytest.approx([kl, gold])


def test_over_optimisation_stands_by_itself_where_gold_is_highest():
    figure = plots.over_optimisation(KL, PROXY, GOLD)
    assert list(figure.axes[0].lines[-1].get_xdata()) == [2.0]
    panels = plots.over_optimisation_panels({"a": (KL, PROXY, GOLD), "b": (KL, PROXY, PROXY)})
    assert [a.get_title() for a in panels.axes] == ["a", "b"]
    assert [a.lines[-1].get_xdata()[0] for a in panels.axes] == [2.0, 20.0]


def test_seeds_that_agree_have_no_range_below_zero():
    assert plots.frontier({"a": [[(0.1, 0.1)] * 3]}).axes


def test_the_frontier_shows_means_and_ranges_over_seeds():
    axes = plots.frontier(METHODS).axes[0]
    ppo = axes.containers[0]
    assert [x.tolist() for x in ppo.lines[0].get_data()] == [[2.0, 7.0], pytest.approx([0.6, 1.5])]
    across, up = (bars.get_segments() for bars in ppo.lines[2])
    assert np.array(across)[:, :, 0].tolist() == [[1, 3], [6, 8]]
    assert np.array(up)[:, :, 1] == pytest.approx(np.array([[0.5, 0.7], [1, 2]]))
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["PPO", "DPO"]


@pytest.mark.parametrize(
    ("budget", "says", "ringed"),
    [
        (1.0, "Within 1.0 nats: PPO has nothing; DPO has nothing.", []),
        (2.0, "Within 2.0 nats: PPO reaches 0.60 (0.50 to 0.70, 2 seeds); DPO has nothing.", [2]),
        (
            4.0,
            "Within 4.0 nats: DPO reaches 0.90 (0.90 to 0.90, 1 seed); PPO reaches 0.60 (0.50 to "
            "0.70, 2 seeds).",
            [2, 4],
        ),
        (
            None,
            "With any KL: PPO reaches 1.50 (1.00 to 2.00, 2 seeds); DPO reaches 0.90 (0.90 to "
            "0.90, 1 seed).",
            [7, 4],
        ),
    ],
)
def test_within_a_budget_of_kl_the_best_setting_of_each_is_ringed(budget, says, ringed):
    picture = plots.Frontier(METHODS)
    assert picture.move(budget=budget) == says
    budget_line, rings = picture._moving
    assert list(rings.get_xdata()) == ringed
    assert budget_line.get_visible() == (budget is not None)
    assert picture.span == (2.0, 7.0)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: plots.over_optimisation([1.0], [1.0], [1.0]), "kl must be two or more finite"),
        (lambda: plots.over_optimisation(KL, PROXY, GOLD[1:]), "gold must be .* as many as kl"),
        (lambda: plots.over_optimisation(KL, [math.nan] * 4, GOLD), "proxy must be .* finite"),
        (lambda: plots.OverOptimisation(KL, PROXY, GOLD).move(kl=21.0), r"lie in \[0, 20\]"),
        (lambda: plots.over_optimisation_panels({}), "at least one run"),
        (lambda: plots.frontier({}), "methods must be 1 to 8 methods, got 0"),
        (lambda: plots.frontier({key: [[(1, 1)]] for key in "abcdefghi"}), "1 to 8 methods, got 9"),
        (lambda: plots.frontier({"a": []}), r"methods\['a'\] must hold at least one setting"),
        (lambda: plots.frontier({"a": [[]]}), "one per seed"),
        (lambda: plots.frontier({"a": [[(1.0, math.inf)]]}), "hold finite"),
    ],
)
def test_points_that_cannot_be_drawn_are_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_no_two_methods_share_colour_marker_or_neighbouring_line():
    looks = importlib.import_module("minippo.plots.rewards").LOOKS
    assert len({colour for colour, _, _ in looks}) == len({m for _, m, _ in looks}) == 8
    assert all(a[2] != b[2] for a, b in itertools.pairwise(looks))
