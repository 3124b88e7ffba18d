"""docs/from_trl.md says what is so: on TRL's own rollout, our rewards, losses, weights are its.

TRL 1.12.0 was the last with PPO (the extra "bench"). Its loop has no function for the loss, so
its local variables are read while it runs. The page's script for minippo runs without TRL, too.
"""

import copy
import os
import re
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch.testing import assert_close
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel

from minippo import gae, kl_k1, shape_rewards, whiten
from minippo.data import write_jsonl
from minippo.ppo import PPOConfig, ppo_loss
from minippo.responses import response_mask
from minippo.rollout import Responses, Rollout
from minippo.trainer import PPOTrainer
from tests import tiny

PAGE = (Path(__file__).parents[2] / "docs" / "from_trl.md").read_text(encoding="utf-8")
THEIRS, OURS, CLASSES, KEEP = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
# As the page says, the last block takes the place of a line of the second.
OURS_AS_TRL = re.sub(r"trainer = PPOTrainer\(.*\)\n", lambda _: CLASSES + KEEP, OURS)

ROWS, PROMPT, TIME, EPOCHS, LEARNING_RATE = 8, 3, 6, 3, 1e-3
# No padding and no end: TRL then puts the score where we do, and masks nothing.
END, PAD = 12, 13

with_trl = pytest.mark.filterwarnings("default")  # TRL's own deprecations


@pytest.fixture(scope="module")
def trl():
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    return pytest.importorskip("trl.experimental.ppo", reason="needs trl==1.12.0, the extra bench")


def run(script: str) -> dict:
    names = {}
    exec(compile(script, "docs/from_trl.md", "exec"), names)
    return names


def watched(train) -> list[dict]:
    """The local variables of TRL's loop at each backward pass, and the gradients after it."""
    steps, plain = [], Accelerator.backward
    np.random.seed(0)  # TRL draws its minibatches from it, and does not seed it

    def backward(accelerator, loss):
        plain(accelerator, loss)
        seen = dict(sys._getframe(1).f_locals)
        gradients = {name: p.grad.clone() for name, p in seen["model"].named_parameters()}
        steps.append(seen | {"gradients": gradients, "stepped": accelerator.sync_gradients})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Accelerator, "backward", backward)
        train()
    return steps


def never_say(model: GPT2LMHeadModel, tokens: list[int]) -> None:
    """These tokens' logits fall far below the others'."""
    with torch.no_grad():
        model.transformer.ln_f.bias.fill_(3.0)
        model.transformer.wte.weight += 1.0
        model.transformer.wte.weight[tokens] = 0.0


# ---- the page ----------------------------------------------------------------------------------


@pytest.fixture
def work(tmp_path, monkeypatch):
    """What the page's scripts find in their folder; the policy never says EOS."""
    policy = tiny.language_model()
    never_say(policy, [tiny.EOS])
    judge = tiny.reward_model().body
    with torch.no_grad():  # larger weights: scores and values differ
        [p.mul_(8) for p in judge.parameters() if p.dim() == 2]
    for name, model in (("sft", policy), ("reward", judge)):
        model.save_pretrained(tmp_path / name)
        tiny.tokenizer().save_pretrained(tmp_path / name)
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": p} for p in tiny.PROMPTS * 12])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_for_those_from_trl_has_a_script_for_minippo_that_runs(work):
    trainer = run(OURS)["trainer"]
    assert len(trainer.history) == trainer.config.total_steps == 2
    assert (work / "run" / "model.safetensors").exists()


def test_the_page_for_those_from_trl_keeps_a_value_model_that_learns_and_can_be_resumed(work):
    trainer = run(OURS_AS_TRL)["trainer"]
    start = GPT2ForSequenceClassification.from_pretrained("reward").state_dict()
    end = tiny.weights(trainer.policy.value_model)
    assert not end["score.weight"].equal(start["score.weight"])
    again = run(OURS_AS_TRL.split("trainer.train")[0])["trainer"]
    again.resume("run")
    assert all(x.equal(end[name]) for name, x in again.policy.value_model.state_dict().items())


def replay(monkeypatch, theirs: list[dict]) -> list[dict]:
    """Give our trainer TRL's responses and minibatches; the list fills with its statistics."""
    by_update = [[s for s in theirs if s["update"] == n] for n in (1, 2)]
    sampled, measured, ours = iter(by_update), iter(by_update), []
    pad = len(tiny.WORDS)  # the token that TRL's script adds

    def generate(*_, **__):
        seen = next(sampled)[0]
        real, n = seen["query_responses"] != pad, seen["context_length"]
        ids = seen["query_responses"].where(real, tiny.EOS)
        mask = response_mask(ids[:, n:], tiny.EOS)
        return Responses(ids[:, :n], real[:, :n], ids[:, n:].where(mask, tiny.EOS), mask)

    def minibatches(*_):
        return [torch.from_numpy(seen["micro_batch_inds"]) for seen in next(measured)]

    class Kept(PPOTrainer):
        def descend(self, stats):
            ours.append(super().descend(stats))
            return ours[-1]

    monkeypatch.setattr("minippo.rollout.generate", generate)
    monkeypatch.setattr("minippo.trainer.minibatches", minibatches)
    monkeypatch.setattr("minippo.trainer.PPOTrainer", Kept)
    return ours


@with_trl
def test_both_scripts_for_those_from_trl_have_equal_losses_on_the_same_responses(
    trl, work, monkeypatch
):
    theirs = watched(lambda: run(THEIRS))
    ours = replay(monkeypatch, theirs)
    run(OURS_AS_TRL)
    assert len(theirs) == len(ours) == 16
    assert theirs[8]["kl"].abs().max() > 0.01  # or beta would not have been tried
    assert max(seen["pg_loss"].abs() for seen in theirs) > 0.01
    assert max(stats["grad_norm"] for stats in ours) > 1.0  # TRL's max_grad_norm, not used
    tolerance = {"rel": 1e-4, "abs": 1e-6}
    for seen, stats in zip(theirs, ours, strict=True):
        assert stats["policy_loss"] == pytest.approx(seen["pg_loss"].item(), **tolerance)
        assert stats["value_loss"] == pytest.approx(seen["vf_loss"].item(), **tolerance)


@with_trl
@pytest.mark.parametrize(
    ("values_from", "lam", "equal"),
    [("reward", 0.95, True), ("other", 0.95, False), ("other", 1.0, True)],
)
def test_an_early_end_moves_the_first_policy_loss_of_trl_by_the_value_of_the_slot_after_it(
    trl, work, monkeypatch, values_from, lam, equal
):
    """Where the values are the reward model's, the slot after EOS has the value of the score."""
    tiny.language_model().save_pretrained("sft")  # one that ends
    tiny.reward_model(seed=2).body.save_pretrained("other")

    def changed(script, before):
        script = script.replace(before, f"lam={lam}, {before}")
        return re.sub(r'(value_model = .*?)"reward"', rf'\1"{values_from}"', script)

    theirs = watched(lambda: run(changed(THEIRS, "bf16=")))
    ours = replay(monkeypatch, theirs)
    run(changed(OURS_AS_TRL, "epochs="))
    seen, stats = theirs[0], ours[0]
    real = ~seen["padding_mask"][seen["micro_batch_inds"]]
    assert 0.5 < real.float().mean() < 0.95
    same = stats["policy_loss"] == pytest.approx(seen["pg_loss"].item(), rel=1e-5, abs=1e-6)
    assert same == equal
    # TRL's mean has one slot more for each response that ended.
    assert stats["value_loss"] != pytest.approx(seen["vf_loss"].item(), rel=1e-3)
    if equal:
        real_slots = 0.5 * seen["vf_loss_max"][real].mean().item()
        assert stats["value_loss"] == pytest.approx(real_slots, rel=1e-5)


@with_trl
def test_trl_accumulates_over_minibatches_except_at_the_end_of_the_data(trl, work):
    halves = "_batch_size=16, gradient_accumulation_steps=2"
    theirs = watched(lambda: run(THEIRS.replace("_batch_size=32", halves)))
    steps = [[s["stepped"] for s in theirs if s["update"] == n] for n in (1, 2)]
    assert steps == [
        [False, True] * 4,
        [True, True] * 4,
    ]  # 72 prompts: the second batch is the last
    assert (theirs[8]["ratio_stats"] == 0).float().mean() == 0.5  # its log takes the mean of all
    assert theirs[0]["args"].gradient_checkpointing
    assert not theirs[0]["model"].policy.is_gradient_checkpointing


@with_trl
@pytest.mark.parametrize(
    ("line", "instead", "masks_eos"),
    [
        ('stop_token="eos",', "", False),
        ('add_special_tokens({"pad_token": "[PAD]"})', "pad_token = tokenizer.eos_token", True),
    ],
    ids=["no stop token", "padding that is EOS"],
)
def test_trl_learns_what_follows_eos_or_not_even_eos(trl, work, line, instead, masks_eos):
    tiny.language_model().save_pretrained("sft")  # one that ends
    assert line in THEIRS
    seen = watched(lambda: run(THEIRS.replace(line, instead)))[0]
    eos_and_later = (seen["responses"] == tiny.EOS).cumsum(1) > 0
    assert eos_and_later.any()
    assert seen["padding_mask"].equal(eos_and_later & masks_eos)


ROWS_OF_THE_PAGE = [line.split(" | ") for line in PAGE.splitlines() if line.startswith("| `")]


def test_values_on_the_page_for_those_from_trl_make_a_configuration_with_our_defaults_named():
    given = {}
    for _, ours, why in ROWS_OF_THE_PAGE:
        if match := re.fullmatch(r"`(\w+)=(.+)`", ours):
            given[match[1]] = eval(match[2])
            if ours_is := re.match(r"ours: (\S+?)(;| |$)", why):
                assert getattr(PPOConfig(), match[1]) == eval(ours_is[1])
            elif match[1] in ("gamma", "lam", "clip_range", "value_clip_range"):
                assert getattr(PPOConfig(), match[1]) == given[match[1]]
    assert len(given) > 15
    assert PPOConfig(**given).temperature == 0.7


@with_trl
def test_defaults_lines_and_fields_on_the_page_for_those_from_trl_are_trls(trl, tmp_path):
    args = {f.name: f.default for f in fields(trl.PPOConfig)}
    stated = re.findall(r"`(\w+)` \(([\w.-]+)\)", PAGE)
    assert len(stated) > 25
    made = trl.PPOConfig(output_dir=str(tmp_path), use_cpu=True)
    values = {name: getattr(made, name) for name, _ in stated}
    assert {name: str(getattr(x, "value", x)) for name, x in values.items()} == dict(stated)
    own = set(args) - {f.name for f in fields(trl.PPOConfig.__mro__[1])}
    assert {name for name in own if f"`{name}`" not in PAGE} == set()
    source = Path(sys.modules[trl.PPOTrainer.__module__].__file__).read_text(encoding="utf-8")
    pins = re.findall(r"`([^`]+)`\s+\(ppo_trainer\.py:(\d+)\)", PAGE)
    assert len(pins) == PAGE.count("(ppo_trainer.py:")
    lines = source.splitlines()
    assert [(code, n) for code, n in pins if code not in lines[int(n) - 1]] == []


# ---- the mathematics, on one rollout of TRL ----------------------------------------------------


@pytest.fixture(scope="module")
def seen(trl, tmp_path_factory):
    from datasets import Dataset

    torch.manual_seed(0)
    words = [*tiny.WORDS, "<end>", "<pad>"]
    tokenizer = tiny.tokenizer(words)
    tokenizer.eos_token, tokenizer.pad_token = "<end>", "<pad>"
    sizes = tiny.config(
        vocab_size=len(words), num_labels=1, pad_token_id=PAD, eos_token_id=END,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    policy, reference = GPT2LMHeadModel(sizes), GPT2LMHeadModel(sizes)
    value, reward = (GPT2ForSequenceClassification(sizes) for _ in range(2))
    with torch.no_grad():  # larger weights: texts differ
        for model in (policy, reference, value, reward):
            [p.mul_(8) for p in model.parameters() if p.dim() == 2]
    never_say(policy, [END, PAD])
    two_trunks = run(CLASSES)["WithValueModel"]
    start = two_trunks(*copy.deepcopy((policy, value)))
    prompts = [{"input_ids": [1 + (i + j) % 6 for j in range(PROMPT)]} for i in range(ROWS)]
    trainer = trl.PPOTrainer(
        args=trl.PPOConfig(
            output_dir=str(tmp_path_factory.mktemp("trl")), per_device_train_batch_size=ROWS,
            gradient_accumulation_steps=1, num_mini_batches=1, num_ppo_epochs=EPOCHS,
            total_episodes=ROWS, response_length=TIME, local_rollout_forward_batch_size=ROWS,
            learning_rate=LEARNING_RATE, lr_scheduler_type="constant", adam_epsilon=1e-5,
            temperature=1.0, kl_coef=0.05, lam=0.95, vf_coef=0.5, num_sample_generations=0,
            save_strategy="no", report_to="none", use_cpu=True, bf16=False, disable_tqdm=True,
        ),
        processing_class=tokenizer, model=policy, ref_model=reference, reward_model=reward,
        value_model=value, train_dataset=Dataset.from_list(prompts),
    )  # fmt: skip
    return start, watched(trainer.train), two_trunks(policy, value)


@with_trl
def test_rewards_and_advantages_are_trls(seen):
    seen = seen[1][0]
    mask = torch.ones(ROWS, TIME).bool()
    kl = kl_k1(seen["logprobs"], seen["ref_logprobs"])
    assert float(kl.abs().max()) > 0.1
    rewards = shape_rewards(seen["scores"], kl, mask, kl_coef=0.05)
    assert_close(rewards, seen["rewards"])
    advantages = gae(rewards, seen["values"], mask, gamma=1.0, lam=0.95)
    assert_close(advantages + seen["values"], seen["returns"])
    # TRL divides by n - 1.
    n = mask.sum()
    assert_close(whiten(advantages, mask) * ((n - 1) / n).sqrt(), seen["advantages"])


@with_trl
def test_loss_gradient_and_new_weights_are_trls(seen):
    policy, steps, end = seen
    optimizer = torch.optim.Adam(policy.parameters(), lr=LEARNING_RATE, eps=1e-5)
    config = PPOConfig(clip_range=0.2, value_clip_range=0.2, value_coef=0.5)
    for theirs in steps:
        ids = theirs["mb_query_responses"]
        assert not torch.isin(ids, torch.tensor([END, PAD])).any()
        mask, none = torch.ones_like(ids).bool(), torch.zeros(ROWS)
        batch = Rollout(
            Responses(ids[:, :PROMPT], mask[:, :PROMPT], ids[:, PROMPT:], mask[:, PROMPT:]),
            theirs["mb_logprobs"], theirs["mb_logprobs"], theirs["mb_values"],
            scores=none, kl=theirs["mb_logprobs"], truncated=none.bool(), bootstrap=none,
        )  # fmt: skip
        loss, stats = ppo_loss(policy, batch, theirs["mb_advantage"], theirs["mb_return"], config)
        assert_close(loss, theirs["loss"], rtol=1e-4, atol=1e-6)
        loss.backward()
        ours = {
            name.replace("language_model.", "policy."): p.grad
            for name, p in policy.named_parameters() if p.requires_grad
        }  # fmt: skip
        assert ours.keys() == theirs["gradients"].keys()
        for name, gradient in ours.items():
            assert_close(gradient, theirs["gradients"][name], rtol=1e-3, atol=1e-5, msg=name)
        optimizer.step()
        optimizer.zero_grad()
    assert len(steps) == EPOCHS
    assert stats["clip_fraction"] > 0.05  # or the clip would not have been tried
    for (name, ours), theirs in zip(policy.named_parameters(), end.parameters(), strict=True):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=name)
