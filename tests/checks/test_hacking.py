"""Best of n and distinct-n: what is asked for, other right ways, and mistakes by their names."""

from collections import Counter
from itertools import combinations
from math import comb

import pytest
import torch
from torch import tensor

from minippo import checks
from minippo.checks import solutions
from minippo.checks.mistakes import CATALOGUE

pytestmark = pytest.mark.usefixtures("without_hook")


def flawed(name, *flags):
    return CATALOGUE[name].version(flags)


def test_the_best_of_n_solution_by_hand():
    proxy, gold = tensor([0.3, 0.1, 0.2]), tensor([6.0, 0.0, 3.0])
    means = [solutions.best_of_n_mean(proxy, gold, n).item() for n in (1, 2, 3)]
    assert means == pytest.approx([3.0, 5.0, 6.0])  # n = 2: two of three sets hold the best


def test_best_of_n_of_many_is_finite_and_rises_with_the_proxy():
    proxy = torch.randn(512, generator=torch.Generator().manual_seed(0))
    means = [solutions.best_of_n_mean(proxy, proxy, 2**i).item() for i in range(10)]
    assert means == sorted(means)
    assert means[0] == pytest.approx(proxy.mean().item(), abs=1e-6)
    assert means[-1] == pytest.approx(proxy.max().item())


def test_distinct_n_by_hand():
    tokens = tensor([[1, 2, 1, 2], [1, 2, 9, 9]])
    mask = tensor([[True] * 4, [True, True, False, False]])
    shares = [solutions.distinct_n(tokens, mask, n).item() for n in (1, 2, 5)]
    assert shares == pytest.approx([2 / 6, 2 / 4, 0.0])  # (1 2), (2 1) of four pairs


def test_distinct_responses_by_hand():
    tokens = tensor([[5, 7], [5, 7], [5, 7], [5, 0]])
    mask = tensor([[True, True], [True, True], [True, True], [True, False]])
    assert solutions.distinct_responses(tokens, mask, 2).tolist() == [1.0, 2.0]
    assert solutions.distinct_responses(tokens, mask, 4).tolist() == [2.0]


def every_set(proxy, gold, n):
    sets = [list(s) for s in combinations(range(len(proxy)), n)]
    return torch.stack([gold[s][proxy[s].argmax()] for s in sets]).mean()


def rank_by_rank(proxy, gold, n):
    total, size = 0.0, len(proxy)
    for below, index in enumerate(proxy.argsort().tolist()):
        total += comb(below, n - 1) * gold[index].item()
    return torch.tensor(total / comb(size, n))


def by_unfold(tokens, mask, n):
    grams = Counter()
    for row, real in zip(tokens, mask, strict=True):
        if real.sum() >= n:
            grams.update(map(tuple, row[real].unfold(0, n, 1).tolist()))
    return len(grams) / max(grams.total(), 1)


def by_unique(tokens, mask, group):
    rows = torch.where(mask, tokens, -1).split(group)
    return torch.stack([torch.tensor(float(len(part.unique(dim=0)))) for part in rows])


@pytest.mark.parametrize(
    ("name", "mine"),
    [
        ("best_of_n_mean", every_set),
        ("best_of_n_mean", rank_by_rank),
        ("distinct_n", by_unfold),
        ("distinct_responses", by_unique),
    ],
)
def test_another_right_implementation_of_reward_hacking_passes(name, mine):
    result = checks.CHECKS[name](mine)
    assert result.passed, result


@pytest.mark.parametrize(
    ("name", "mine", "mistake"),
    [
        ("best_of_n_mean", lambda p, g, n: g[p.topk(n).indices].mean(), "the n best averaged"),
        ("best_of_n_mean", lambda p, g, n: g[p[:n].argmax()], "the first n alone"),
        ("best_of_n_mean", lambda p, g, n: rank_by_rank(g, g, n), "ranked by gold"),
        ("best_of_n_mean", lambda p, g, n: rank_by_rank(p, p, n), "proxy returned"),
        ("best_of_n_mean", lambda p, g, n: rank_by_rank(-p, g, n), "the worst of n"),
        ("distinct_n", lambda t, m, n: by_unfold(t, torch.ones_like(m), n), "padding counted"),
        ("distinct_n", lambda t, m, n: by_unfold(t[m][None], m[m][None], n), "across responses"),
        ("distinct_n", lambda t, m, n: by_unfold(t, m, 1), "single tokens"),
        ("distinct_n", lambda t, m, n: 1 - by_unfold(t, m, n), "share of repetitions"),
        (
            "distinct_responses",
            lambda t, m, n: by_unique(t, torch.ones_like(m), n),
            "padding counted",
        ),
        ("distinct_responses", lambda t, m, n: by_unique(t, m, len(t)), "all prompts together"),
        ("distinct_responses", lambda t, m, n: by_unique(t, m, n) / n, "share for number"),
    ],
)
def test_a_wrong_function_of_reward_hacking_is_named_as_what_it_is(name, mine, mistake):
    result = checks.CHECKS[name](mine)
    assert not result.passed
    assert result.mistake == mistake, result


# ---- what the catalogue says of training -----------------------------------------------------


def test_ranked_by_gold_no_reward_model_looks_over_optimised():
    gold = torch.randn(40, generator=torch.Generator().manual_seed(1))
    wrong = [flawed("best_of_n_mean", "ranked by gold")(-gold, gold, n) for n in (1, 5, 20, 40)]
    right = [flawed("best_of_n_mean")(-gold, gold, n) for n in (1, 5, 20, 40)]
    assert wrong == sorted(wrong)
    assert right == sorted(right, reverse=True)


def test_best_of_n_from_one_draw_is_right_in_the_mean_and_as_noisy_as_one_response():
    generator = torch.Generator().manual_seed(2)
    proxy, gold = torch.randn(2000, 16, generator=generator), torch.randn(2000, 16)
    for name, noise in (("the first n alone", 1.0), ("groups in a row", 0.5**0.5)):
        found = [flawed("best_of_n_mean", name)(p, g, 8) for p, g in zip(proxy, gold, strict=True)]
        assert torch.stack(found).mean().abs() < 0.1
        assert torch.stack(found).std().item() == pytest.approx(noise, abs=0.06)


def test_best_of_n_with_replacement_is_too_low_at_large_n():
    proxy = torch.arange(8.0)
    wrong = flawed("best_of_n_mean", "drawn with replacement")(proxy, proxy, 8)
    assert wrong < flawed("best_of_n_mean")(proxy, proxy, 8) - 0.3


def test_best_of_n_weights_one_rank_too_high_add_up_to_more_than_one():
    one = torch.ones(6)
    assert flawed("best_of_n_mean", "one rank too high")(torch.arange(6.0), one, 3) > 1.05


def test_the_same_varied_sentence_for_everybody_is_not_diverse():
    tokens, mask = torch.arange(6).repeat(5, 1), torch.ones(5, 6).bool()
    assert flawed("distinct_n", "mean over responses")(tokens, mask, 2).item() == 1.0
    assert flawed("distinct_n")(tokens, mask, 2).item() == pytest.approx(0.2)


def test_distinct_n_over_tokens_cannot_reach_one():
    tokens, mask = torch.arange(6).view(1, 6), torch.ones(1, 6).bool()
    wrong = flawed("distinct_n", "over tokens")(tokens, mask, 2).item()
    assert wrong == pytest.approx(5 / 6)
    assert flawed("distinct_n")(tokens, mask, 2).item() == 1.0


def test_padding_makes_short_responses_look_repetitive():
    tokens, mask = tensor([[1, 2, 0, 0, 0, 0]]), tensor([[True] * 2 + [False] * 4])
    assert flawed("distinct_n", "padding counted")(tokens, mask, 2).item() == pytest.approx(3 / 5)
    assert flawed("distinct_n")(tokens, mask, 2).item() == 1.0
