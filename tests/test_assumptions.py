"""What a run assumes, broken one at a time: each is an error, or one clear warning."""

from contextlib import nullcontext

import pytest
import torch
from torch import tensor
from transformers import (
    BertConfig,
    BertLMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

from minippo import rollout
from minippo.models import PolicyWithValue, frozen_copy, load_policy
from minippo.sft import FitConfig, fit
from minippo.trainer import PPOConfig, PPOTrainer
from tests import tiny
from tests.shapes import refuses
from tests.tiny import PROMPTS

NAN, INF = float("nan"), float("inf")
peft_asks = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

SIZES = {"vocab_size": 12, "hidden_size": 16, "num_hidden_layers": 2}
HEADS = SIZES | {"num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 48}


def of(kind, config, *, init=0.3, **sizes):
    """A policy of another architecture, with weights that make it depend on the text."""
    torch.manual_seed(0)
    return PolicyWithValue(kind(config(**sizes, initializer_range=init)))


def llama(init=0.3):
    return of(LlamaForCausalLM, LlamaConfig, init=init, **HEADS)


def bert(*, causal, init=0.3):
    return of(BertLMHeadModel, BertConfig, init=init, **HEADS, is_decoder=causal)


def mixtral():
    more = {"num_key_value_heads": 2, "num_local_experts": 4, "sliding_window": 3}
    return of(MixtralForCausalLM, MixtralConfig, **HEADS, **more)


def replaced(forward, policy=None):
    """A policy whose language model goes through a function of (own forward, arguments)."""
    policy = tiny.policy() if policy is None else policy
    own = policy.language_model.forward

    def other(input_ids, past_key_values=None, **rest):
        return forward(own, dict(rest, input_ids=input_ids, past_key_values=past_key_values))

    policy.language_model.forward = other
    return policy


def collected(policy, prompts=PROMPTS, **changes):
    return tiny.trainer(policy=policy, score=tiny.spread, **changes).collect(prompts)


# Rows so uneven that half precision rounds them otherwise, with and without their padding.
UNEVEN = ["a", "b c " * 11, "d e f", "b b b a", "f " * 9, "e d"]


# ---- what holds raises nothing: warnings are errors here


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize(
    "make",
    [tiny.policy, llama, lambda: llama(0.02), mixtral, lambda: bert(causal=True)],
    ids=["gpt2", "llama", "llama of its own start", "mixtral", "bert as a decoder"],
)
def test_models_that_keep_the_assumptions_are_taken_without_a_word(make, precision):
    changes = {"mixed_precision": precision, "temperature": 0.7, "max_new_tokens": 20}
    assert len(collected(make(), UNEVEN, **changes)) == 6


def test_frozen_weights_in_half_precision_are_measured_as_such():
    policy = tiny.policy()
    policy.language_model.bfloat16().requires_grad_(False)
    assert len(collected(policy, UNEVEN, max_new_tokens=20)) == 6


def test_tokens_that_the_model_rules_out_are_no_disagreement():
    def ruled_out(own, inputs):
        output = own(**inputs)
        output.logits = output.logits.index_fill(-1, tensor([0, 3]), -INF)
        return output

    policy = replaced(ruled_out)
    reference = replaced(ruled_out)
    made = tiny.trainer(policy=policy, reference=reference, score=tiny.spread).collect(PROMPTS)
    assert made.mask.all()


def test_the_measurements_change_no_number_and_draw_none(monkeypatch):
    with_it, without = (tiny.trainer(score=tiny.spread) for _ in range(2))
    torch.manual_seed(5)
    first, state = with_it.collect(PROMPTS), torch.get_rng_state()
    monkeypatch.setattr("minippo.assumptions.check_first_rollout", lambda *_: None)
    torch.manual_seed(5)
    second = without.collect(PROMPTS)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(x, second.tensors[name]) for name, x in first.tensors.items())
    assert torch.equal(first.responses.ids, second.responses.ids)


def test_the_first_rollout_alone_is_measured_and_none_after_a_resume(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("minippo.assumptions.check_first_rollout", lambda *_: seen.append(1))
    trainer = tiny.run(2)
    trainer.save(tmp_path / "run")
    assert seen == [1]
    resumed = tiny.trainer(score=tiny.spread)
    resumed.resume(tmp_path / "run")
    tiny.run(3, trainer=resumed)
    assert seen == [1]


# ---- the sampler, left padding, causality


def forgetful(own, inputs):
    """Takes a cache, and reads each token without it."""
    length = inputs["input_ids"].shape[1]
    inputs["attention_mask"] = inputs["attention_mask"][:, -length:]
    return own(**inputs | {"past_key_values": None})


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_sampler_that_disagrees_with_evaluate_is_an_error(precision):
    must = (
        r"a GPT2LMHeadModel must sample what `evaluate` measures .*, got \d+ others of \d+ tokens"
    )
    with pytest.raises(ValueError, match=rf"^PPOTrainer\.collect: {must}\.$"):
        collected(replaced(forgetful), mixed_precision=precision, max_new_tokens=24)


@pytest.mark.parametrize(
    ("kind", "config"), [(MambaForCausalLM, MambaConfig), (RwkvForCausalLM, RwkvConfig)]
)
def test_a_state_model_that_swallows_the_cache_is_also_seen_by_the_measurement(
    monkeypatch, kind, config
):
    monkeypatch.setattr(rollout, "_cache_name", lambda model: "past_key_values")
    policy = of(kind, config, **SIZES)
    with pytest.raises(ValueError, match=rf"a {kind.__name__} must (sample what|give the same)"):
        collected(policy, max_new_tokens=24)


def test_a_model_that_reads_its_left_padding_is_an_error():
    def deaf(own, inputs):
        gone = {"attention_mask": None, "position_ids": None}
        return own(**inputs | gone)

    must = "a GPT2LMHeadModel must give the same logits with and without left padding, got a diff"
    with pytest.raises(ValueError, match=f"collect: {must}"):
        collected(replaced(deaf))


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_model_that_reads_later_tokens_is_an_error(precision):
    must = "a BertLMHeadModel must be causal: no later token moves a logit, got a difference above"
    with pytest.raises(ValueError, match=f"collect: {must}"):
        collected(bert(causal=False), mixed_precision=precision)
    with pytest.raises(ValueError, match="must be causal"):
        collected(bert(causal=False, init=0.02))  # its logits are all alike, and their changes too


# ---- ids without a token


def with_more_rows(bias):
    """A model of 64 ids and the tokenizer's 12; `bias` falls on the logits of the 52 others."""

    def biased(own, inputs):
        output = own(**inputs)
        output.logits = output.logits + bias * (torch.arange(64) >= 12)
        return output

    return replaced(biased, tiny.policy(vocab_size=64))


def two_alike(make, *arguments):
    """Policy and reference, made alike: a copy would hold the first one's forward."""
    return {"policy": make(*arguments), "reference": make(*arguments).requires_grad_(False)}


def test_ids_that_the_tokenizer_does_not_know_are_an_error_or_a_warning():
    many = tiny.trainer(**two_alike(with_more_rows, 0.0), score=tiny.spread)
    with pytest.raises(ValueError, match=r"the sampled tokens must have texts .*none for \d\d% of"):
        many.collect(PROMPTS)
    few = tiny.trainer(**two_alike(with_more_rows, -4.5), score=tiny.spread, max_new_tokens=20)
    with pytest.warns(UserWarning, match="have no text") as caught:
        rows = few.collect(PROMPTS)
    ids = rows.responses.ids[rows.mask]
    share = float((ids >= 12).float().mean())
    assert 0 < share < 0.1
    assert [str(w.message) for w in caught] == [
        f"PPOTrainer: {share:.2%} of the sampled tokens have no text"
    ]
    assert tiny.trainer(**two_alike(with_more_rows, -99.0)).collect(PROMPTS)


# ---- the reference at step 0


def test_a_reference_that_is_not_the_policy_is_one_warning_with_the_nats():
    trainer = tiny.trainer(reference=tiny.shallow(7), score=tiny.spread)
    with pytest.warns(UserWarning, match="differ by") as caught:
        made = trainer.collect(PROMPTS)
    trainer.collect(PROMPTS)  # said once
    gap = (made.log_probs - made.ref_log_probs).abs().sum() / len(made)
    said = [str(w.message) for w in caught]
    assert len(said) == 1
    assert f"policy and reference differ by {gap:.2g} nats per response" in said[0]


@peft_asks
def test_an_adapter_that_does_not_begin_at_zero_is_the_same_warning(tmp_path):
    pytest.importorskip("peft")
    tiny.save(tmp_path)
    for init in (True, "pissa"):
        policy, tokenizer = load_policy(tmp_path, lora={"r": 4, "init_lora_weights": init})
        trainer = PPOTrainer(policy, None, tiny.spread, tokenizer, PPOConfig(**tiny.SMALL))
        differ = pytest.warns(UserWarning, match="differ by .* nats per response")
        with differ if init == "pissa" else nullcontext():
            trainer.collect(PROMPTS)


@peft_asks
@pytest.mark.parametrize("what", ["bias", "lora_bias", "norm"])
def test_without_a_reference_nothing_but_the_adapter_may_learn(tmp_path, what):
    # Or the reference, the policy with its adapter off, would learn along.
    pytest.importorskip("peft")
    lora = {"bias": "all"} if what == "bias" else {"bias": "lora_only"} if what != "norm" else {}
    policy, tokenizer = load_policy(tiny.save(tmp_path), lora={"r": 2} | lora)
    if what == "norm":
        policy.language_model.base_model.model.transformer.ln_f.weight.requires_grad_(True)
    config = PPOConfig(**tiny.SMALL)
    must = r"^PPOTrainer: policy must have an adapter and learn nothing .*(bias|ln_f\.weight)\.$"
    with pytest.raises(ValueError, match=must):
        PPOTrainer(policy, None, tiny.spread, tokenizer, config)
    made = PPOTrainer(policy, frozen_copy(policy), tiny.spread, tokenizer, config)
    assert len(made.train(PROMPTS, 1, progress=False)) == 1  # a copy does not learn along


def test_a_policy_without_an_adapter_needs_a_reference():
    with pytest.raises(ValueError, match=r"^PPOTrainer: policy must have an adapter and learn"):
        PPOTrainer(tiny.policy(), None, tiny.spread, tiny.tokenizer(), PPOConfig())


@peft_asks
def test_a_module_that_an_adapter_saves_whole_is_switched_off_with_it(tmp_path):
    pytest.importorskip("peft")
    lora = {"r": 2, "modules_to_save": ["ln_f"], "use_dora": True}
    policy, tokenizer = load_policy(tiny.save(tmp_path), lora=lora)
    before = {name for name, p in policy.named_parameters() if p.requires_grad}
    trainer = PPOTrainer(policy, None, tiny.spread, tokenizer, PPOConfig(**tiny.SMALL))
    assert {name for name, p in policy.named_parameters() if p.requires_grad} == before
    assert len(trainer.train(PROMPTS, 1, progress=False)) == 1


# ---- what is known before step 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_half_precision_do_not_learn(dtype):
    policy = tiny.policy().to(dtype)
    with refuses("PPOTrainer: the model", f"{dtype} for language_model.transformer.wte.weight"):
        tiny.trainer(policy=policy)
    with pytest.raises(ValueError, match=r"^fit: the model must learn in float32"):
        fit(policy, 1, lambda model, rows: tensor(0.0), FitConfig())


def test_a_run_longer_than_its_schedule_is_refused():
    trainer = tiny.trainer(total_steps=2)
    must = r"^PPOTrainer\.train: n_steps must be at most total_steps=2 \(.* 0 .*\), got 3\.$"
    with pytest.raises(ValueError, match=must):
        trainer.train(PROMPTS, 3)
    assert trainer.history == []
    assert len(trainer.train(PROMPTS, 2, progress=False)) == 2


@pytest.mark.parametrize(
    ("bad", "argument", "came"),
    [
        ("b " * 43, "PPOTrainer.train: prompt 30", "43 tokens, 'b b b "),
        ("", "encode_prompts: text 30", "''."),
        ("d <|endoftext|>", "encode_prompts: text 30", "got 'd <|endoftext|>'."),
    ],
)
def test_a_prompt_that_cannot_be_answered_is_found_before_the_first_step(bad, argument, came):
    trainer = tiny.trainer()
    prompts = ["a b"] * 30 + [bad] + ["a"] * 5
    with pytest.raises(ValueError, match=rf"^{argument} must .*, got ") as caught:
        trainer.train(prompts, 5, progress=False)
    assert came in str(caught.value)
    assert not trainer.history
    rows = [{"prompt": prompt, "answer": 1} for prompt in prompts]
    with pytest.raises(ValueError, match=rf"^{argument} must"):
        trainer.train(rows, 5, progress=False)
    assert tiny.trainer().train(["b " * 42], 1, progress=False)  # as long as fits: 42 + 6 = 48


# ---- the KL


def silent(token):
    """A reference that never says a token."""

    def forward(own, inputs):
        output = own(**inputs)
        output.logits = output.logits.index_fill(-1, tensor([token]), -INF)
        return output

    return replaced(forward, tiny.shallow())


@pytest.mark.filterwarnings("ignore:.*policy and reference differ by inf")
@pytest.mark.parametrize("price", [{"kl_coef": 0.1}, {"kl_coef": 0.0, "kl_loss_coef": 0.1}])
def test_a_kl_that_is_infinite_is_named_by_row_token_and_reference(price):
    token = int(tiny.trainer(score=tiny.spread).collect(PROMPTS).responses.ids[3, 0])
    trainer, free = (
        tiny.trainer(reference=silent(token), score=tiny.spread, **options)
        for options in (price, {"kl_coef": 0.0})
    )
    made = free.collect(PROMPTS)  # without a price, nothing is asked of it
    row, t = (made.mask & (made.responses.ids == token)).nonzero()[0].tolist()
    said = f"the KL of row {row} is inf at token {t}, whose log-prob under the reference is -inf"
    with pytest.raises(FloatingPointError, match=said):
        trainer.collect(PROMPTS)


# ---- the first update


def first_update(**changes):
    return tiny.trainer(score=tiny.spread, rollout_size=6, **changes)


def test_a_first_update_that_moves_the_policy_far_is_one_warning_with_what_to_turn():
    trainer = first_update(learning_rate=0.1, epochs=4, clip_range=1.0, clip_range_high=99.0)
    with pytest.warns(
        UserWarning, match=r"moved the policy by [\d.]+ nats .*learning_rate \(0.1\)"
    ):
        trainer.step(PROMPTS)
    trainer.step(PROMPTS)  # the first alone


def test_a_first_update_whose_ratios_are_mostly_clipped_is_a_warning():
    trainer = first_update(learning_rate=0.003, clip_range=1e-5, epochs=12)
    with pytest.warns(UserWarning, match=r"clipped [5-9]\d% of its ratios"):
        trainer.step(PROMPTS)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_first_ratio_that_is_not_one_is_a_warning(precision):
    trainer = first_update(learning_rate=1e-6, mixed_precision=precision)
    rollout = trainer.collect(PROMPTS)
    with torch.no_grad():
        trainer.policy.language_model.transformer.wte.weight.mul_(1.5)
    with pytest.warns(UserWarning, match=r"began with a ratio [\d.]+ away from 1") as seen:
        trainer.update(rollout)
    assert any("temperature" in str(one.message) for one in seen)


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("changes", [{}, {"epochs": 4}, tiny.BANDIT], ids=str)
def test_an_ordinary_first_update_is_taken_without_a_word(precision, changes):
    first_update(learning_rate=1e-4, mixed_precision=precision, **changes).step(PROMPTS)


def test_how_far_an_update_moved_is_not_decided_by_one_rare_token():
    # 40 tokens, one of them 1e5 times likelier than before: k3 alone says 2,500 nats per token.
    trainer = first_update(learning_rate=0.0)
    rollout = trainer.collect(PROMPTS)
    assert trainer.moved(rollout) == pytest.approx(0, abs=1e-6)
    rollout.log_probs[0, 0] -= 11.5
    n = int(rollout.mask.sum())
    assert trainer.moved(rollout) == pytest.approx((10 - 1 - 2.302585) / n, rel=1e-3)
