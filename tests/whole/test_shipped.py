"""What ships in data/ does what its card and the course say: measured again, on other draws."""

import random

import pytest
import torch

from minippo import sequence_log_prob, token_log_probs, world
from minippo.data import load_texts
from minippo.models import load_policy
from minippo.reward_model import preference_accuracy
from minippo.rollout import encode, evaluate, load_score, respond


@pytest.fixture(scope="module")
def sft():
    return load_policy("tiny-gpt2-sft")


@torch.no_grad()
def test_the_base_model_is_nearly_as_good_as_the_grammar_itself(without_hook):
    policy, tokenizer = load_policy("tiny-gpt2-base")
    rng = random.Random(123)  # other texts than those of the card
    texts = [world.sample(rng) for _ in range(300)]
    r = encode(tokenizer, [""] * len(texts), texts)
    log_probs = token_log_probs(evaluate(policy, r)[0], r.ids)
    model = -sequence_log_prob(log_probs, r.mask)
    limit = -torch.tensor([world.log_prob(text) for text in texts])
    # The same texts on both sides, so that most of the noise cancels: KL(grammar || model).
    assert 0 < (model - limit).mean() < 0.03 * limit.mean()


def test_supervised_fine_tuning_taught_to_stay_on_topic_and_to_end(sft):
    policy, tokenizer = sft
    prompts = [prompt for prompt in world.PROMPTS_HELD_OUT for _ in range(4)]
    texts = respond(policy, tokenizer, prompts, seed=7)
    assert sum(map(world.on_topic, prompts, texts)) > 0.95 * len(texts)
    assert sum(map(world.ends_properly, texts)) > 0.95 * len(texts)
    assert len(set(texts)) > 0.95 * len(texts)


def test_the_reward_model_prefers_what_the_annotator_preferred_on_new_pairs(sft):
    policy, tokenizer = sft
    prompts = [prompt for prompt in world.PROMPTS_HELD_OUT for _ in range(8)]
    a, b = (respond(policy, tokenizer, prompts, seed=seed) for seed in (8, 9))
    score = load_score("tiny-gpt2-reward", tokenizer)
    score_a, score_b = (score(encode(tokenizer, prompts, texts)) for texts in (a, b))
    gold = [world.gold(p, x) - world.gold(p, y) for p, x, y in zip(prompts, a, b, strict=True)]
    clear = torch.tensor([abs(g) > 0.3 for g in gold])
    better = torch.tensor(gold) > 0
    chosen, rejected = (
        torch.where(better, *s)[clear] for s in ((score_a, score_b), (score_b, score_a))
    )
    assert preference_accuracy(chosen, rejected) > 0.85  # where the gold rewards differ clearly


def test_preference_pairs_are_real_choices():
    pairs = load_texts("preferences")
    assert all(pair["chosen"] != pair["rejected"] for pair in pairs[:2000])
    gold = [
        world.gold(x["prompt"], x["chosen"]) - world.gold(x["prompt"], x["rejected"])
        for x in pairs[:2000]
    ]
    assert 0.6 < sum(g > 0 for g in gold) / sum(g != 0 for g in gold) < 0.9  # noisy, not random
