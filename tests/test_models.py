"""The networks against transformers, and what it takes to load them."""

import json
import re

import pytest
import torch
from torch import nn, tensor
from torch.testing import assert_close
from transformers import (
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from minippo import data, kl_k1, token_log_probs
from minippo.models import (
    PolicyWithValue,
    RewardModel,
    frozen_copy,
    load_policy,
    load_reward_model,
    position_ids,
)
from minippo.rollout import collect, encode, encode_prompts, evaluate, generate, load_score
from minippo.trainer import PPOTrainer, weights_hash
from tests import tiny
from tests.shapes import refuses

NO, YES = False, True


def with_values(policy):
    """The same policy with a value head that is not zero."""
    nn.init.normal_(policy.value_head.weight)
    return policy


@pytest.fixture
def folder(tmp_path):
    return tiny.save(tmp_path / "gpt2")


# ---- position_ids and PolicyWithValue


def test_positions_count_real_tokens_only():
    mask = tensor([[NO, NO, YES, YES, YES], [YES, YES, YES, YES, NO]])
    assert position_ids(mask).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 3]]


def test_without_padding_the_logits_are_those_of_transformers():
    policy, tokens = tiny.policy(), tensor([[1, 2, 3, 4]])
    logits, _ = policy(tokens, torch.ones_like(tokens).bool())
    assert_close(logits, tiny.language_model()(input_ids=tokens).logits)


def test_left_padding_changes_no_logits_and_no_values():
    policy, tokens = with_values(tiny.policy()), tensor([[1, 2, 3]])
    alone = policy(tokens, torch.ones_like(tokens).bool())
    mask = tensor([[NO, NO, YES, YES, YES]])
    for junk in (tiny.EOS, 9):
        padded = policy(torch.cat([tensor([[junk, junk]]), tokens], 1), mask)
        for got, expected in zip(padded, alone, strict=True):
            assert_close(got[:, 2:], expected)


def test_the_logits_depend_on_the_text():
    # Guards the tests above: a model that ignored its input would pass them.
    policy, mask = tiny.policy(), torch.ones(1, 2).bool()
    a, b = (policy(tensor([[first, 3]]), mask)[0][:, -1] for first in (1, 2))
    assert (a - b).abs().max() > 0.1


@pytest.mark.parametrize("keep", [1, 3, 5])
def test_keep_of_a_policy_gives_the_last_positions(keep):
    policy, tokens = with_values(tiny.policy()), torch.randint(0, 12, (2, 5))
    mask = torch.ones(2, 5).bool()
    for got, whole in zip(policy(tokens, mask, keep=keep), policy(tokens, mask), strict=True):
        assert got.shape[1] == keep
        assert_close(got, whole[:, -keep:])


@pytest.mark.parametrize("keep", [0, 6])
def test_keep_must_lie_within_the_tokens(keep):
    with refuses("PolicyWithValue.forward: keep", str(keep)):
        tiny.policy()(torch.ones(2, 5).long(), torch.ones(2, 5).bool(), keep=keep)


def test_the_value_is_linear_in_the_last_hidden_state():
    policy, tokens = with_values(tiny.policy()), tensor([[1, 2, 3]])
    policy.value_head.bias.data.fill_(0.5)
    hidden = tiny.language_model()(input_ids=tokens, output_hidden_states=True).hidden_states[-1]
    _, values = policy(tokens, torch.ones_like(tokens).bool())
    assert_close(values, (hidden * policy.value_head.weight[0]).sum(-1) + 0.5)


def test_the_value_head_starts_at_zero():
    _, values = tiny.policy()(tensor([[1, 2]]), torch.ones(1, 2).bool())
    assert values.tolist() == [[0.0, 0.0]]


def test_logits_are_float32_under_autocast_and_those_of_the_trunks_hidden_state():
    policy, tokens = tiny.policy(), tensor([[1, 2, 3]])
    mask = torch.ones_like(tokens).bool()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, _ = policy(tokens, mask)
        hidden = policy.language_model.transformer(tokens, attention_mask=mask).last_hidden_state
    assert logits.dtype == torch.float32
    head = policy.language_model.lm_head.weight
    assert_close(logits, hidden.float() @ head.T, rtol=1e-6, atol=1e-6)
    # Not rounded to bfloat16 on the way: 8 bits would be seen.
    assert (logits - logits.bfloat16().float()).abs().max() > 1e-4


def test_the_head_in_float32_is_the_models_own_in_copies_too():
    policy = tiny.policy()
    copy = frozen_copy(policy)
    with torch.no_grad():
        copy.language_model.lm_head.weight.zero_()
    assert not copy(tensor([[1]]), tensor([[True]]))[0].any()
    assert policy(tensor([[1]]), tensor([[True]]))[0].any()
    assert policy.state_dict().keys() == copy.state_dict().keys()


def test_the_value_head_is_float32_over_a_bfloat16_trunk():
    policy = with_values(PolicyWithValue(tiny.language_model().bfloat16()))
    assert policy.value_head.weight.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, values = policy(tensor([[1, 2]]), torch.ones(1, 2).bool())
    assert (logits.dtype, values.dtype) == (torch.bfloat16, torch.float32)


def test_dropout_is_off_although_the_configuration_says_a_tenth():
    assert tiny.config().resid_pdrop == tiny.config().attn_pdrop == 0.1
    policy, tokens = tiny.policy().train(), tensor([[1, 2, 3]])
    first, second = (policy(tokens, torch.ones_like(tokens).bool())[0] for _ in range(2))
    assert torch.equal(first, second)
    reward = tiny.reward_model().train()
    assert reward(tokens, tokens > 0) == reward(tokens, tokens > 0)


def test_a_frozen_copy_shares_nothing_and_receives_no_gradient():
    policy = tiny.policy().train()
    copy = frozen_copy(policy)
    assert not copy.training
    assert policy.training
    assert not any(p.requires_grad for p in copy.parameters())
    assert all(p.requires_grad for p in policy.parameters())
    before = weights_hash(copy)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(1.0)
    assert weights_hash(copy) == before != weights_hash(policy)


def test_a_llama_is_a_policy_too():
    # Rotary positions, grouped keys and values, another path through the cache.
    config = LlamaConfig(
        vocab_size=12, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
        bos_token_id=0, eos_token_id=0, initializer_range=0.5, attention_dropout=0.1,
    )  # fmt: skip
    policy = PolicyWithValue(LlamaForCausalLM(config)).eval()
    ids, mask = encode_prompts(tiny.tokenizer(), tiny.PROMPTS)
    responses = generate(policy, ids, mask, max_new_tokens=5, eos_token_id=0)
    expected = policy.language_model.generate(
        input_ids=ids, attention_mask=mask.long(), max_new_tokens=5, do_sample=False, pad_token_id=0
    )
    assert responses.ids.tolist() == expected[:, ids.shape[1] :].tolist()
    logits, values, _ = evaluate(policy.train(), responses)
    assert torch.equal(logits, evaluate(policy, responses)[0])  # no dropout
    for row in range(len(ids)):
        prompt = ids[row][mask[row]]
        text = torch.cat([prompt, responses.ids[row][responses.mask[row]]])
        alone = policy.language_model(input_ids=text.unsqueeze(0)).logits[0]
        length = int(responses.mask[row].sum())
        assert_close(logits[row, :length], alone[len(prompt) - 1 : -1], rtol=1e-4, atol=1e-5)
    assert values.shape == responses.ids.shape


# ---- RewardModel


def score_by_hand(model, text):
    """The head on the hidden state of the text's last token, nothing padded."""
    hidden = model.body.base_model(input_ids=tensor([text])).last_hidden_state[0, -1]
    return (model.body.score.weight[0] * hidden).sum().item()


@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_the_reward_model_reads_the_last_real_token_which_is_eos(side):
    model, text = tiny.reward_model(), [3, 7, 5, tiny.EOS]
    n_left, n_right = {"left": (3, 0), "right": (0, 3), "both": (2, 1)}[side]
    tokens = tensor([[tiny.EOS] * n_left + text + [tiny.EOS] * n_right, [1, 2, 3, 4, 5, 6, 7]])
    mask = torch.ones(2, 7).bool()
    mask[0, :n_left], mask[0, 7 - n_right :] = NO, NO
    got = model(tokens, mask)
    assert_close(got[0].item(), score_by_hand(model, text), rtol=1e-5, atol=1e-6)
    assert_close(got[1].item(), score_by_hand(model, [1, 2, 3, 4, 5, 6, 7]), rtol=1e-5, atol=1e-6)
    assert abs(score_by_hand(model, text) - score_by_hand(model, text[:-1])) > 1e-3


def test_junk_under_the_mask_does_not_change_a_reward_models_score():
    model = tiny.reward_model()
    mask = tensor([[NO, YES, YES, NO]])
    one, other = (model(tensor([[junk, 3, 0, junk]]), mask) for junk in (0, 8))
    assert_close(one, other)


def test_a_reward_model_has_one_label_and_a_head_named_score():
    body = GPT2ForSequenceClassification(tiny.config(num_labels=2))
    must = r"^RewardModel: body must have a head named score with one label, got "
    with pytest.raises(ValueError, match=must + "GPT2ForSequenceClassification with num_labels=2"):
        RewardModel(body)
    with pytest.raises(ValueError, match=must + "GPT2LMHeadModel"):
        RewardModel(tiny.language_model())


# ---- loading


def test_a_folder_gives_its_weights_its_tokenizer_and_a_fresh_value_head(folder):
    policy, tokenizer = load_policy(folder)
    for name, x in tiny.language_model().state_dict().items():
        assert torch.equal(policy.language_model.state_dict()[name], x), name
    assert tokenizer.get_vocab() == tiny.tokenizer().get_vocab()
    assert not policy.value_head.weight.any()
    assert load_policy(str(folder))[0].context_length == 48


def test_half_precision_weights_are_loaded_as_float32(folder):
    tiny.language_model().half().save_pretrained(folder)
    policy, _ = load_policy(folder)
    assert {p.dtype for p in policy.parameters()} == {torch.float32}


def test_a_reward_model_survives_a_folder(tmp_path):
    model = tiny.reward_model()
    model.body.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    tokens = tensor([[1, 2, 0]])
    loaded, _ = load_reward_model(tmp_path)
    assert_close(loaded.eval()(tokens, tokens >= 0), model(tokens, tokens >= 0))


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(folder):
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["one", "more"])
    tokenizer.save_pretrained(folder)
    must = r"have no more tokens than the model has embeddings \(12\), got 14\.$"
    with pytest.raises(ValueError, match=must):
        load_policy(folder)


def test_a_tokenizer_without_an_end_is_refused(folder):
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    del settings["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(ValueError, match=r"must have an end-of-text token, got none\.$"):
        load_policy(folder)


def test_a_judge_whose_head_was_never_trained_is_refused(folder):
    must = r"hold all weights of a GPT2ForSequenceClassification .*random.*, got .*score\.weight"
    for load in (load_reward_model, load_score):
        with pytest.raises(ValueError, match=rf"^{load.__name__}: the model .*gpt2 must {must}\.$"):
            load(folder)


def llama(kind, **sizes):
    """A Llama, whose output layer is not tied to its embeddings."""
    made = {"vocab_size": 12, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    return kind(LlamaConfig(**made, intermediate_size=8, **sizes))


def test_a_policy_whose_head_is_missing_is_refused(folder):
    llama(LlamaForSequenceClassification, num_labels=1).save_pretrained(folder)
    with pytest.raises(ValueError, match=r"all weights of a LlamaForCausalLM .*lm_head\.weight\.$"):
        load_policy(folder)
    llama(LlamaForSequenceClassification, tie_word_embeddings=True).save_pretrained(folder)
    load_policy(folder)  # tied: nothing is missing


def test_weights_of_another_size_are_refused_by_name(folder):
    llama(LlamaForCausalLM).save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    changed = json.dumps(settings | {"vocab_size": 14})
    (folder / "config.json").write_text(changed, encoding="utf-8")
    with pytest.raises(ValueError, match=r"right size for lm_head\.weight, model\.embed_tokens"):
        load_policy(folder)


@pytest.mark.parametrize(
    ("ends", "others"), [(7, "['good']"), ([0, 7], "['good']"), ([8, 0, 7], "['good', 'bad']")]
)
def test_ends_of_text_that_the_tokenizer_does_not_have_are_named(folder, ends, others):
    settings = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    changed = json.dumps(settings | {"eos_token_id": ends})
    (folder / "generation_config.json").write_text(changed, encoding="utf-8")
    only = r"only the tokenizer's '<\|endoftext\|>' ends a response"
    with pytest.warns(UserWarning, match=f"a text with {re.escape(others)}; here {only}") as caught:
        load_policy(folder)
    assert len(caught) == 1


# ---- what ships


@pytest.fixture
def shipped_folder(tmp_path, monkeypatch):
    """A data folder with one shipped model and its manifest."""
    tiny.save(tmp_path / "tiny-gpt2-sft")
    files = sorted((tmp_path / "tiny-gpt2-sft").iterdir())
    digests = {f"tiny-gpt2-sft/{f.name}": {"sha256": data.sha256(f)} for f in files}
    (tmp_path / "manifest.json").write_text(json.dumps({"files": digests}), encoding="utf-8")
    monkeypatch.setattr(data, "DATA", tmp_path)
    return tmp_path / "tiny-gpt2-sft"


def test_a_shipped_name_is_the_default(shipped_folder):
    policy, _ = load_policy()
    assert torch.equal(policy.language_model.lm_head.weight, tiny.language_model().lm_head.weight)


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
def test_an_altered_shipped_file_is_refused_by_its_name(shipped_folder, file):
    content = bytearray((shipped_folder / file).read_bytes())
    content[len(content) // 2] ^= 1
    (shipped_folder / file).write_bytes(bytes(content))
    with refuses(f"shipped: data/tiny-gpt2-sft/{file}", "different content"):
        load_policy("tiny-gpt2-sft")


def test_a_missing_shipped_file_is_refused_by_its_name(shipped_folder):
    (shipped_folder / "model.safetensors").unlink()
    with refuses("shipped: data/tiny-gpt2-sft/model.safetensors", "no file"):
        load_policy("tiny-gpt2-sft")


@pytest.mark.skipif(not (data.DATA / "manifest.json").is_file(), reason="data/ is not built yet")
def test_the_shipped_models_share_a_tokenizer_and_say_the_same_as_transformers():
    policy, tokenizer = load_policy("tiny-gpt2-sft")
    _, base = load_policy("tiny-gpt2-base")
    _, reward = load_reward_model("tiny-gpt2-reward")
    assert tokenizer.get_vocab() == base.get_vocab() == reward.get_vocab()
    ids, mask = encode_prompts(tokenizer, ["The", "The soup was"])
    options = {"max_new_tokens": 12, "eos_token_id": tokenizer.eos_token_id}
    theirs = policy.eval().language_model.generate(
        input_ids=ids, attention_mask=mask.long(), do_sample=False, max_new_tokens=12,
        pad_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    ours = generate(policy, ids, mask, **options)
    assert ours.ids.tolist() == theirs[:, ids.shape[1] :].tolist()


# ---- LoRA

# peft asks transformers by an old name.
peft_warns = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")


@pytest.fixture
def adapted(folder):
    pytest.importorskip("peft")
    return load_policy(folder, lora={"r": 2})


@peft_warns
def test_with_lora_only_adapters_and_the_value_head_learn(adapted):
    policy, tokenizer = adapted
    names = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert {"value_head.weight", "value_head.bias"} < names
    assert all("lora_" in name or "value_head" in name for name in names)
    before = tiny.weights(policy)
    config = tiny.PPOConfig(**tiny.SMALL, learning_rate=0.01)
    trainer = PPOTrainer(policy, None, tiny.spread, tokenizer, config)
    trainer.train(tiny.PROMPTS, 2, progress=False)
    changed = {n for n, x in policy.state_dict().items() if not torch.equal(x, before[n])}
    assert changed == names


@peft_warns
def test_with_lora_the_reference_is_the_model_without_its_adapter(adapted):
    policy, tokenizer = adapted
    for name, p in policy.named_parameters():
        if "lora_" in name:
            nn.init.normal_(p)
    ids, mask = encode_prompts(tokenizer, tiny.PROMPTS)
    options = {"max_new_tokens": 4, "eos_token_id": 0, "uniforms": torch.rand(6, 4)}
    rollout = collect(policy.eval(), None, tiny.spread, ids, mask, **options)
    responses = rollout.responses
    logits = evaluate(tiny.policy(), responses)[0]
    expected = torch.where(responses.mask, token_log_probs(logits, responses.ids), 0.0)
    assert_close(rollout.ref_log_probs, expected)
    assert_close(rollout.kl, kl_k1(rollout.log_probs, expected))
    assert rollout.kl.abs().max() > 0.1


def test_no_reference_needs_an_adapter_that_can_be_switched_off():
    responses = encode(tiny.tokenizer(), ["a"], ["b"])
    must = "^reference_logits: reference must be a model, or None with a policy that has a"
    with pytest.raises(ValueError, match=must):
        collect(
            tiny.policy(), None, tiny.spread, responses.prompt_ids, responses.prompt_mask,
            max_new_tokens=2, eos_token_id=0,
        )  # fmt: skip
