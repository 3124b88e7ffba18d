"""A model of another family, from a folder to a resumed run: rotary positions, grouped keys."""

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer, processors
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from minippo.data import load_prompts
from minippo.models import frozen_copy, load_policy
from minippo.ppo import PPOConfig
from minippo.rollout import collect, encode_prompts, evaluate, generate, text_score
from minippo.trainer import PPOTrainer, weights_hash
from tests import tiny

pytestmark = tiny.too_fast
PROMPTS = load_prompts("prompts-train")[:6]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Llama's shape in small, with its own tokenizer, which puts <s> in front of each text."""
    made = ByteLevelBPETokenizer()
    made.train_from_iterator(PROMPTS, vocab_size=300, special_tokens=["<s>", "</s>", "<pad>"])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made._tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=96,
        bos_token_id=0, eos_token_id=1, pad_token_id=2, initializer_range=0.2,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_a_llamas_folder_gives_a_policy_and_its_tokenizer(folder):
    policy, tokenizer = load_policy(folder)
    assert isinstance(policy.language_model, LlamaForCausalLM)
    assert (policy.context_length, tokenizer.eos_token_id) == (96, 1)
    ids, mask = encode_prompts(tokenizer, PROMPTS)
    first = mask.long().argmax(1)
    assert (ids[torch.arange(len(ids)), first] == 0).all()  # <s>, once, before the text
    assert ((ids == 0) & mask).sum() == len(ids)


def test_a_llamas_cache_gives_transformers_texts_and_padding_changes_none(folder):
    policy, tokenizer = load_policy(folder)
    policy.eval()
    ids, mask = encode_prompts(tokenizer, PROMPTS)
    assert not mask.all()  # the prompts differ in length
    expected = policy.language_model.generate(
        input_ids=ids, attention_mask=mask.long(), max_new_tokens=12, do_sample=False,
        pad_token_id=1,
    )[:, ids.shape[1] :]  # fmt: skip
    got = generate(policy, ids, mask, max_new_tokens=12, eos_token_id=1)
    assert got.ids.tolist() == expected.tolist()
    uniforms = torch.rand(len(ids), 12)
    together = generate(policy, ids, mask, max_new_tokens=12, eos_token_id=1, uniforms=uniforms)
    logits = evaluate(policy, together)[0].detach()
    for row in range(len(ids)):
        alone = generate(
            policy, ids[row, mask[row]].unsqueeze(0), mask[row, mask[row]].unsqueeze(0),
            max_new_tokens=12, eos_token_id=1, uniforms=uniforms[row : row + 1],
        )  # fmt: skip
        length = int(alone.mask.sum())
        assert together.ids[row, :length].tolist() == alone.ids[0, :length].tolist()
        own = evaluate(policy, alone)[0][0, :length].detach()
        assert_close(logits[row, :length], own, rtol=1e-4, atol=1e-4)


def trainer(folder):
    policy, tokenizer = load_policy(folder)
    score = text_score(tokenizer, lambda prompts, texts: [float(len(t)) for t in texts])
    config = PPOConfig(rollout_size=6, minibatch_size=3, max_new_tokens=8, learning_rate=0.003)
    return PPOTrainer(policy, frozen_copy(policy), score, tokenizer, config)


def test_ppo_on_a_llama_starts_at_ratio_one_and_resumes_number_for_number(folder, tmp_path):
    whole = trainer(folder)
    before = weights_hash(whole.policy)
    history = whole.train(PROMPTS, 3, progress=False)
    assert weights_hash(whole.policy) != before
    assert all(stats["first_ratio_error"] < 1e-5 for stats in history)
    first = trainer(folder)
    first.train(PROMPTS, 2, progress=False)
    first.save(tmp_path / "run")
    second = trainer(folder)
    second.resume(tmp_path / "run")
    assert second.train(PROMPTS, 3, progress=False) == history
    assert weights_hash(second.policy) == weights_hash(whole.policy)


def test_transformers_opens_a_saved_llama(folder, tmp_path):
    made = trainer(folder)
    made.train(PROMPTS, 1, progress=False)
    made.save(tmp_path / "run")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    assert weights_hash(opened) == weights_hash(made.policy.language_model)
    policy, tokenizer = load_policy(tmp_path / "run")
    ids, mask = encode_prompts(tokenizer, PROMPTS)
    rollouts = [
        collect(
            p.eval(), p, lambda r: r.mask.sum(1).float(), ids, mask,
            max_new_tokens=8, eos_token_id=1, uniforms=torch.full((6, 8), 0.5),
        )
        for p in (policy, made.policy)
    ]  # fmt: skip
    assert torch.equal(rollouts[0].log_probs, rollouts[1].log_probs)
