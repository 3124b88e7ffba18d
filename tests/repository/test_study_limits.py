"""The study of the limitations: its scores and its prompts are what they say."""

import pytest
import torch
from studies import limits

from minippo import world
from minippo.data import load_prompts
from minippo.rollout import encode, text_score
from tests.tiny import WORDS, good_count, tokenizer


def test_instalments_are_paid_at_the_ends_of_sentences_and_add_up():
    words = tokenizer([*WORDS, ".", "!", "?"])
    whole = encode(words, ["a", "a", "b"], ["good . bad good ! c", "good", "good good ."])
    paid = limits.in_parts(good_count, words)(whole)
    total = good_count(whole)
    assert paid.sum(1).tolist() == pytest.approx(total.tolist())
    part = [
        good_count(encode(words, ["a"], [text])).item() for text in ("good .", "good . bad good !")
    ]
    assert paid[0, 1].item() == pytest.approx(part[0])
    assert paid[0, 4].item() == pytest.approx(part[1] - part[0])
    assert paid[0].count_nonzero() <= 3
    assert paid[1, :1].item() == 0  # no stop: all at the end
    assert paid[1, 1].item() == pytest.approx(total[1].item())


def test_noise_is_the_same_for_the_same_seed_and_has_the_size_that_is_stated():
    responses = encode(tokenizer(), ["a"] * 2000, ["b"] * 2000)
    judge = text_score(tokenizer(), lambda _, texts: [1.0] * len(texts))
    one, same, other = (limits.noisy(judge, seed)(responses) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.std().item() == pytest.approx(limits.NOISE, rel=0.05)


def test_forbidden_words_are_counted_whatever_stands_beside_them():
    assert limits.forbidden("The darn soup was cold. Heck!") == 2
    assert limits.forbidden("The darning was fine.") == 0


def test_each_case_of_the_limits_has_its_prompts():
    prompts = load_prompts("prompts-train")
    one, third = (limits.prompts_of(n, 1) for n in ("one domain", "a third of each domain"))
    assert len(one) == len(third) == len(prompts) // len(world.DOMAINS) == 40
    assert {world.domain_of(p) for p in one} == {limits.home(1)}
    assert {world.domain_of(p) for p in third} == set(world.DOMAINS)
    most = limits.prompts_of("nine tenths of one domain", 1)
    assert len(set(most)) == len(most) == len(one)
    assert sum(world.domain_of(p) == limits.home(1) for p in most) == 36


def test_half_of_the_prompts_are_broken_and_the_filter_finds_them():
    prompts = load_prompts("prompts-train")
    kept, left = (limits.prompts_of(f"broken prompts {n}", 1) for n in ("kept", "filtered"))
    assert all(map(limits.is_whole, prompts))
    assert not any(map(limits.is_whole, limits.IRRELEVANT))
    assert len(kept) == len(prompts) == 2 * len(left)
    assert set(left) == set(kept) & set(prompts)
    cut = [p for p in kept if p not in prompts and p not in limits.IRRELEVANT]
    assert len(cut) == len(prompts) // 4
    assert all(any(p.startswith(start) for p in prompts) for start in cut)
    order = [kept[i * len(kept) // 4] for i, _ in enumerate(limits.KINDS)]
    assert [p in cut for p in order] == [kind == "cut off" for kind in limits.KINDS]
    assert [p in limits.IRRELEVANT for p in order] == [k == "irrelevant" for k in limits.KINDS]


def test_cases_with_as_many_responses_have_as_many():
    sizes = {n: limits.CHANGES.get(n, {}).get("rollout_size", 64) for n in limits.STEPS_OF}
    del sizes["values first"]  # two rollouts more, for the values alone
    assert {limits.STEPS_OF[n] * size for n, size in sizes.items()} == {limits.STEPS * 64}


def test_every_case_is_in_a_group_once():
    grouped = [name for group in limits.GROUPS for name in group]
    assert set(grouped) == set(limits.CHANGES)
