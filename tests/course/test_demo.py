"""The demo learns, and says what it learned."""

import json

import pytest

from minippo import cli, world
from minippo.course import demo
from minippo.models import frozen_copy, load_policy
from minippo.ppo import PPOConfig
from minippo.rollout import load_score
from minippo.trainer import PPOTrainer
from tests.soak import soak


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(soak(2, 5)))
def test_the_demo_goes_most_of_the_way_to_the_best_gold_reward(seed):
    from dataclasses import replace

    policy, tokenizer = load_policy("tiny-gpt2-sft")
    reference, score = frozen_copy(policy), load_score("tiny-gpt2-reward", tokenizer)
    before = demo.examine(policy, reference, tokenizer, score)[1]
    trainer = PPOTrainer(policy, reference, score, tokenizer, replace(demo.DEMO, seed=seed))
    trainer.train(list(world.PROMPTS_TRAIN), demo.STEPS, progress=False)
    texts, after = demo.examine(policy, reference, tokenizer, score)
    best = json.loads((demo.DATA / "manifest.json").read_text(encoding="utf-8"))["figures"]["best"][
        "gold"
    ]
    share = (after["gold"] - before["gold"]) / (best - before["gold"])
    print(f"seed {seed}: gold {before['gold']:.3f} to {after['gold']:.3f}, {share:.0%} of the way")
    print(f"   proxy {before['proxy']:.2f} to {after['proxy']:.2f}, KL {after['kl']:.2f}")
    assert len(texts) >= 300
    assert share >= 0.65
    assert after["kl"] < 10


@pytest.mark.slow
def test_the_demo_prints_its_table_and_draws_its_picture(tmp_path, capsys):
    assert cli.main(["demo", "--output", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "gold reward (hidden; best 1.50)" in said
    assert said.count("before:") == said.count("after: ") >= 6
    for step in range(0, demo.STEPS + 1, 6):
        assert said.count(f"  step {step}: ") == 1
    assert f"a prompt and its answers: {world.PROMPTS_HELD_OUT[0]}" in said
    assert str(tmp_path / "run.png") in said
    assert "make lab" in said.splitlines()[-1]
    assert (tmp_path / "run.png").stat().st_size > 5_000


@pytest.mark.slow
def test_the_textbook_sketch_learns_on_the_shipped_world():
    policy, tokenizer = load_policy("tiny-gpt2-sft")
    score, config = load_score("tiny-gpt2-reward", tokenizer), PPOConfig.textbook(rollout_size=64)
    trainer = PPOTrainer(policy, frozen_copy(policy), score, tokenizer, config)
    history = trainer.train(list(world.PROMPTS_TRAIN), 12, progress=False)
    assert history[-1]["score"] > history[0]["score"] + 0.5
