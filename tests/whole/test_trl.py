"""On TRL's own rollout: its rewards, advantages, loss, gradient and new weights are ours.

TRL 1.12.0 was the last with PPO (the extra "bench"). Its loop has no function for the loss, so
its local variables are read while it runs.
"""

import copy
import os
import sys

import pytest
import torch
from torch.testing import assert_close
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel

from minippo import gae, kl_k1, shape_rewards, whiten
from minippo.ppo import PPOConfig, ppo_loss
from minippo.rollout import Responses, Rollout
from tests import tiny

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
trl = pytest.importorskip("trl.experimental.ppo", reason="needs trl==1.12.0, the extra bench")

pytestmark = pytest.mark.filterwarnings("default")  # TRL's own deprecations

ROWS, PROMPT, TIME, EPOCHS, LEARNING_RATE = 8, 3, 6, 3, 1e-3
# No padding and no end: TRL then puts the score where we do, and masks nothing.
END, PAD = 12, 13


class TwoTrunks(torch.nn.Module):
    """TRL's value function has its own network. Its names for them, and our interface."""

    def __init__(self, policy, value_model):
        super().__init__()
        self.policy, self.value_model = policy, value_model

    def forward(self, tokens, attention_mask, *, keep):
        mask = attention_mask.long()
        logits = self.policy(tokens, attention_mask=mask).logits
        hidden = self.value_model.transformer(tokens, attention_mask=mask).last_hidden_state
        return logits[:, -keep:], self.value_model.score(hidden)[:, -keep:, 0]


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
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
    with torch.no_grad():  # larger weights: texts differ; two tokens that are never said
        for model in (policy, reference, value, reward):
            [p.mul_(8) for p in model.parameters() if p.dim() == 2]
        policy.transformer.wte.weight[[END, PAD]] = 0.0
        policy.transformer.ln_f.bias.fill_(3.0)
        policy.transformer.wte.weight[:END] += 1.0
    start = copy.deepcopy(TwoTrunks(policy, value))
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
    steps, plain = [], trainer.accelerator.backward

    def backward(loss):
        plain(loss)
        gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}
        steps.append(sys._getframe(1).f_locals | {"gradients": gradients})

    trainer.accelerator.backward = backward
    trainer.train()
    return start, steps, TwoTrunks(policy, value)


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
        for name, p in policy.named_parameters():
            assert_close(p.grad, theirs["gradients"][name], rtol=1e-3, atol=1e-5, msg=name)
        optimizer.step()
        optimizer.zero_grad()
    assert len(steps) == EPOCHS
    assert stats["clip_fraction"] > 0.05  # or the clip would not have been tried
    for (name, ours), theirs in zip(policy.named_parameters(), end.parameters(), strict=True):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=name)
