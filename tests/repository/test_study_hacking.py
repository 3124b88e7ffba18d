"""The study of reward hacking: what it counts is counted right."""

from itertools import pairwise

import pytest
import torch
from studies import hacking

from minippo import world


def test_the_order_of_gold_is_asked_of_pairs_that_differ_in_gold():
    gold = torch.tensor([[0.0, 1.0, 1.0], [2.0, 2.0, 2.0]])
    scores = torch.tensor([[0.5, 0.9, 0.1], [1.0, 2.0, 3.0]])  # one pair right, one wrong
    assert hacking.in_order(scores, gold) == 0.5
    assert hacking.in_order(gold, gold) == 1.0


def test_each_reward_model_of_the_study_has_its_own_pairs():
    starts = [3750 * seed for seed in hacking.SEEDS]
    assert all(b - a >= hacking.PAIRS for a, b in pairwise(starts))
    assert starts[-1] + hacking.PAIRS <= 20_000


def test_a_biased_annotator_orders_the_same_texts_by_its_taste():
    pairs = {name: hacking._annotated(0, name) for name in ("length", "flattery")}
    texts = [{frozenset((p["chosen"], p["rejected"])) for p in found} for found in pairs.values()]
    assert texts[0] == texts[1]
    flatters = [
        sum(world.is_flattery(p["chosen"]) for p in found)
        / sum(world.is_flattery(p["chosen"] + p["rejected"]) for p in found)
        for found in pairs.values()
    ]
    assert flatters[0] < 0.8 < 0.9 < flatters[1]


def test_a_share_of_the_labels_is_turned_around_exactly():
    pairs = [{"prompt": "p", "chosen": f"{i} good", "rejected": f"{i} bad"} for i in range(40)]
    found = hacking._mislabelled(pairs, 0.25, seed=0)
    assert sum(a != b for a, b in zip(pairs, found, strict=True)) == 10
    assert all({*a.values()} == {*b.values()} for a, b in zip(pairs, found, strict=True))
    assert hacking._mislabelled(pairs, 0.0, seed=0) == pairs


def test_batches_of_other_widths_are_stacked_without_a_change_to_their_texts():
    tokenizer = hacking.sft()[1]
    prompts, texts = ["We tried.", "Be kind to us, please."], ["It was good.", "Fine."]
    one, other = (hacking.encode(tokenizer, [p], [t]) for p, t in zip(prompts, texts, strict=True))
    both = hacking.stacked([one, other])
    assert hacking.decode(tokenizer, both) == (prompts, texts)
    assert both.prompt_mask[:, -1].all()  # padded on the left
    assert both.mask[:, 0].all()


def test_old_pairs_and_fresh_pairs_are_as_many(monkeypatch):
    one = hacking.encode(hacking.sft()[1], ["We tried."], ["Fine."])
    fresh = hacking.stacked([one] * hacking.PAIRS)
    monkeypatch.setattr(hacking, "half_way", lambda seed: (None, [fresh, fresh]))
    monkeypatch.setattr(hacking, "trained", lambda sides, seed: [len(side) for side in sides])
    monkeypatch.setattr(hacking, "judge", lambda seed, pairs: [pairs, pairs])
    names = ("no new pairs", "1,000 more old pairs", "1,000 fresh pairs")
    assert [hacking.retrained(0, n) for n in names] == [[1000] * 2, [2000] * 2, [2000] * 2]


def test_a_name_says_what_the_clip_range_is():
    ranges = [hacking.config_of(name, 0).clip_range for name in ("weak", "weak, epsilon 0.05")]
    assert ranges == [0.2, 0.05]


@pytest.mark.parametrize("name", ["weak", "weak, KL price"])
def test_a_name_says_what_a_nat_costs(name, monkeypatch):
    asked = []
    monkeypatch.setattr(hacking, "judge", lambda seed: None)
    monkeypatch.setattr(hacking, "ppo", lambda config, *_, **__: asked.append(config.kl_coef))
    hacking.run_ppo(name, 0)
    assert asked == [0.1 if "price" in name else 0.0]
