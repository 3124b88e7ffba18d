"""Acting and measuring, against transformers, prefix by prefix, and by hand."""

import math
import warnings

import pytest
import torch
from torch import nn, tensor
from torch.testing import assert_close
from transformers import DynamicCache, MambaConfig, MambaForCausalLM, RwkvConfig, RwkvForCausalLM

from minippo import token_log_probs
from minippo.checks import definitions as slow
from minippo.models import PolicyWithValue, frozen_copy
from minippo.rollout import (
    Responses,
    _cache_name,
    _inverse_cdf,
    encode,
    encode_prompts,
    evaluate,
    generate,
)
from tests import tiny
from tests.shapes import refuses

EOS, INF, NAN = tiny.EOS, float("inf"), float("nan")
LAST_UNIFORM = 1 - 2**-24  # the largest float32 that torch.rand gives


def sample(policy, prompts=tiny.PROMPTS, *, time=8, uniforms=None, temperature=1.0):
    ids, mask = encode_prompts(tiny.tokenizer(), prompts)
    uniforms = torch.rand(len(ids), time) if uniforms is None else uniforms
    return generate(
        policy, ids, mask, max_new_tokens=time, eos_token_id=EOS, temperature=temperature,
        uniforms=uniforms,
    )  # fmt: skip


def valued(seed=0, **changes):
    """A tiny policy whose values are not all zero."""
    policy = tiny.policy(seed, **changes)
    nn.init.normal_(policy.value_head.weight)
    nn.init.normal_(policy.value_head.bias)
    return policy


def state(policy, prompt, response):
    """Logits and value after this text, nothing padded, nothing cached, nothing batched."""
    tokens = tensor([[*prompt, *response]])
    logits, values = policy(tokens, torch.ones_like(tokens).bool())
    return logits[0, -1].detach(), values[0, -1].detach()


def prompts_of(responses):
    """Each prompt without its padding."""
    pairs = zip(responses.prompt_ids, responses.prompt_mask, strict=True)
    return [ids[mask] for ids, mask in pairs]


def test_trim_changes_no_result():
    policy, responses = valued(), encode(tiny.tokenizer(), ["a b", "c"], ["good", "so bad"])
    wide = Responses(
        nn.functional.pad(responses.prompt_ids, (3, 0), value=9),
        nn.functional.pad(responses.prompt_mask, (3, 0)),
        nn.functional.pad(responses.ids, (0, 2), value=9),
        nn.functional.pad(responses.mask, (0, 2)),
    )
    for narrow, whole in zip(evaluate(policy, wide.trim()), evaluate(policy, wide), strict=True):
        assert_close(narrow, whole[:, : narrow.shape[1]] if narrow.dim() > 1 else whole)


# ---- generate


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_greedy_equals_transformers_token_for_token(seed):
    policy = tiny.policy(seed)
    ids, mask = encode_prompts(tiny.tokenizer(), tiny.PROMPTS)  # of 1 to 4 tokens
    ours = generate(policy, ids, mask, max_new_tokens=10, eos_token_id=EOS)
    theirs = policy.language_model.generate(
        input_ids=ids, attention_mask=mask.long(), max_new_tokens=10, do_sample=False,
        pad_token_id=EOS,
    )  # fmt: skip
    assert ours.ids.tolist() == theirs[:, ids.shape[1] :].tolist()


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_each_token_is_where_its_uniform_falls_in_the_distribution_without_a_cache(temperature):
    # The log-probs that sampling implied are those of one text at a time, read without a cache.
    policy, uniforms = tiny.policy(), torch.rand(6, 8)
    responses = sample(policy, uniforms=uniforms, temperature=temperature)
    measured = token_log_probs(
        evaluate(policy, responses)[0], responses.ids, temperature=temperature
    )
    for row, prompt in enumerate(prompts_of(responses)):
        for t in range(int(responses.mask[row].sum())):
            token = int(responses.ids[row, t])
            logits, _ = state(policy, prompt, responses.ids[row, :t])
            log_p = slow.log_softmax(logits.tolist(), temperature)
            below = sum(map(math.exp, log_p[:token]))
            assert below - 1e-6 <= uniforms[row, t] <= below + math.exp(log_p[token]) + 1e-6
            assert_close(measured[row, t].item(), log_p[token], rtol=0, atol=1e-5)


def test_sampled_frequencies_are_the_softmax_at_the_temperature():
    policy, n = tiny.policy(), 10_000
    logits, _ = state(policy, [1, 2], [])
    p = tensor(slow.log_softmax(logits.tolist(), 0.7)).exp()
    responses = sample(policy, ["a b"] * n, time=1, uniforms=torch.rand(n, 1), temperature=0.7)
    frequencies = responses.ids.flatten().bincount(minlength=12) / n
    assert ((frequencies - p).abs() <= 5 * (p * (1 - p) / n).sqrt()).all()
    # The same bound tells 0.7 from 1.
    other = tensor(slow.log_softmax(logits.tolist())).exp()
    assert ((frequencies - other).abs() > 5 * (other * (1 - other) / n).sqrt()).any()


@pytest.mark.parametrize(
    ("u", "token"),
    [(0.0, 0), (0.1999, 0), (0.2001, 1), (0.4999, 1), (0.5001, 2), (LAST_UNIFORM, 2)],
)
def test_a_uniform_picks_the_token_by_hand(u, token):
    # p = .2, .3, .5: cumulative .2, .5, 1.
    assert _inverse_cdf(tensor([[0.2, 0.3, 0.5]]).log(), tensor([u])).item() == token


@pytest.mark.parametrize("u", [0.0, 0.5, LAST_UNIFORM])
def test_a_token_of_probability_zero_is_never_chosen(u):
    # Ruled out at the start, in the middle and at the end of the vocabulary.
    logits = tensor([[-INF, 0.0, -INF, 0.0, -INF, -INF]])
    assert _inverse_cdf(logits, tensor([u])).item() == (1 if u < 0.5 else 3)


def test_a_large_vocabulary_loses_no_tail():
    # 50,257 equal tokens: the last is chosen by uniforms above 1 - 1/50,257 = 1 - 2.0e-5.
    logits = torch.zeros(1, 50_257)
    assert _inverse_cdf(logits, tensor([LAST_UNIFORM])).item() == 50_256
    assert _inverse_cdf(logits, tensor([0.5])).item() == 25_128


def test_the_model_is_asked_only_about_rows_that_have_not_ended():
    policy, asked = tiny.policy(), []
    policy.language_model.register_forward_pre_hook(
        lambda _, __, kwargs: asked.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    responses = sample(policy, tiny.PROMPTS * 4, uniforms=torch.rand(24, 8))
    lengths = responses.mask.sum(1)
    assert lengths.min() < lengths.max()
    # Token t is asked for by the rows of more than t tokens.
    assert asked == [int((lengths > t).sum()) for t in range(int(lengths.max()))]


def test_where_rows_of_a_cache_cannot_be_dropped_none_is(monkeypatch):
    policy, uniforms = tiny.policy(), torch.rand(6, 8)
    wanted = sample(policy, uniforms=uniforms)
    monkeypatch.setattr("minippo.rollout.DynamicLayer", int)  # so the layers are of another kind
    monkeypatch.setattr(DynamicCache, "batch_select_indices", None)
    came = sample(policy, uniforms=uniforms)
    assert torch.equal(came.mask, nn.functional.pad(wanted.mask, (0, 8 - wanted.ids.shape[1])))
    assert torch.equal(came.ids[:, : wanted.ids.shape[1]], wanted.ids)


def test_a_sampled_text_depends_on_its_own_row_alone():
    policy, uniforms = tiny.policy(), torch.rand(6, 8)
    together = sample(policy, uniforms=uniforms)
    order = tensor([4, 0, 5, 2, 1, 3])
    shuffled = sample(policy, [tiny.PROMPTS[i] for i in order], uniforms=uniforms[order])
    assert torch.equal(shuffled.ids, together.ids[order])
    for row, prompt in enumerate(tiny.PROMPTS):
        alone = sample(policy, [prompt], uniforms=uniforms[[row]])
        real = alone.mask[0]
        assert torch.equal(alone.ids[0][real], together.ids[row][together.mask[row]])
    assert len({tuple(row.tolist()) for row in together.ids}) > 1


def test_more_left_padding_changes_no_text():
    policy, uniforms = tiny.policy(), torch.rand(6, 8)
    ids, mask = encode_prompts(tiny.tokenizer(), tiny.PROMPTS)
    options = {"max_new_tokens": 8, "eos_token_id": EOS, "uniforms": uniforms}
    narrow = generate(policy, ids, mask, **options)
    ids, mask = nn.functional.pad(ids, (5, 0), value=7), nn.functional.pad(mask, (5, 0))
    assert torch.equal(generate(policy, ids, mask, **options).ids, narrow.ids)


def always(policy, token):
    """The policy, made to say one token for ever."""
    with torch.no_grad():
        policy.language_model.lm_head.weight.zero_()
        policy.language_model.transformer.wte.weight[token] = 1.0  # tied to the head
        policy.language_model.transformer.ln_f.weight.zero_()
        policy.language_model.transformer.ln_f.bias.fill_(10.0)
    return policy


def test_generation_stops_when_every_row_has_ended():
    calls = []
    policy = always(tiny.policy(), EOS)
    policy.language_model.register_forward_hook(lambda *_: calls.append(1))
    responses = sample(policy, time=8)
    assert responses.ids.tolist() == [[EOS]] * 6
    assert responses.mask.all()  # EOS is real
    assert len(calls) == 1


def test_generation_goes_on_to_the_limit_where_nothing_ends():
    responses = sample(always(tiny.policy(), 5), time=8)
    assert responses.ids.tolist() == [[5] * 8] * 6
    assert responses.mask.all()


def test_after_eos_there_is_padding_and_the_mask_is_a_run_of_ones():
    responses = sample(tiny.policy(), tiny.PROMPTS * 4, uniforms=torch.rand(24, 8))
    lengths = responses.mask.sum(1)
    assert lengths.min() < lengths.max() == 8  # ragged, or this would show nothing
    for ids, mask in zip(responses.ids.tolist(), responses.mask.tolist(), strict=True):
        length = ids.index(EOS) + 1 if EOS in ids else 8
        assert mask == [t < length for t in range(8)]
        assert set(ids[length:]) <= {EOS}


def test_a_text_that_would_exceed_the_positions_is_refused_before_any_work():
    policy = tiny.policy(n_positions=10)
    policy.language_model.register_forward_hook(lambda *_: pytest.fail("the model was asked"))
    with refuses("generate: prompt_ids", "a prompt of 4 tokens"):
        sample(policy, time=7)


def test_a_text_that_just_fits_is_sampled_and_measured():
    policy = always(tiny.policy(n_positions=10), 5)
    responses = sample(policy, time=6)  # 4 + 6
    assert evaluate(policy, responses)[0].shape == (6, 6, 12)


@pytest.mark.parametrize(
    ("changes", "caller"),
    [
        ({"max_new_tokens": 0}, "generate: max_new_tokens"),
        ({"temperature": 0.0}, "generate: temperature"),
        ({"uniforms": torch.rand(6, 3)}, "generate: uniforms"),
    ],
)
def test_generate_refuses_bad_arguments(changes, caller):
    ids, mask = encode_prompts(tiny.tokenizer(), tiny.PROMPTS)
    with pytest.raises(ValueError, match=f"^{caller} must"):
        generate(tiny.policy(), ids, mask, **({"max_new_tokens": 8, "eos_token_id": EOS} | changes))


# ---- evaluate


def test_logits_and_values_belong_to_the_state_before_the_token():
    policy = valued()
    responses = sample(policy, uniforms=torch.rand(6, 8))
    logits, values, end_values = evaluate(policy, responses)
    for row, prompt in enumerate(prompts_of(responses)):
        text = responses.ids[row][responses.mask[row]]
        for t in range(len(text)):
            expected = state(policy, prompt, text[:t])
            assert_close((logits[row, t], values[row, t]), expected, rtol=1e-4, atol=1e-5)
        _, end = state(policy, prompt, text)
        assert_close(end_values[row], end, rtol=1e-4, atol=1e-5)


def test_a_response_of_no_real_token_is_refused():
    responses = encode(tiny.tokenizer(), ["a", "b"], ["good", "bad"])
    responses.mask[1] = False
    with refuses("evaluate: mask", "none in row 1"):
        evaluate(tiny.policy(), responses)


# ---- collect


def by_hand(policy, rollout, temperature=1.0):
    """Next-token log-probs of each state, from one unpadded text at a time: [row][t][token]."""
    rows = []
    for prompt, text in zip(prompts_of(rollout.responses), tokens_of(rollout), strict=True):
        tokens = tensor([[*prompt, *text]])
        logits = policy.language_model(input_ids=tokens).logits[0, len(prompt) - 1 : -1]
        rows.append([slow.log_softmax(z, temperature) for z in logits.tolist()])
    return rows


def tokens_of(rollout):
    pairs = zip(rollout.responses.ids, rollout.mask, strict=True)
    return [ids[mask].tolist() for ids, mask in pairs]


def close_on_real_tokens(x, mask, expected):
    for row, values in enumerate(expected):
        assert_close(x[row][mask[row]], tensor(values), rtol=1e-4, atol=1e-5)
    assert not x[~mask].any()  # exactly zero on padding


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_rollout_holds_both_models_log_probs_of_the_tokens_at_the_temperature(temperature):
    policy, reference = valued(), tiny.policy(7)
    rollout = tiny.collected(policy, reference, temperature=temperature)
    for model, x in ((policy, rollout.log_probs), (reference, rollout.ref_log_probs)):
        log_p = by_hand(model, rollout, temperature)
        expected = [
            [z[token] for z, token in zip(*pair, strict=True)]
            for pair in zip(log_p, tokens_of(rollout), strict=True)
        ]
        close_on_real_tokens(x, rollout.mask, expected)
    assert not rollout.values[~rollout.mask].any()
    assert not rollout.mask.all()


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "exact"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_kl_of_a_rollout_is_that_of_its_estimator(estimator, temperature):
    policy, reference = tiny.policy(), tiny.policy(7)
    rollout = tiny.collected(policy, reference, kl_estimator=estimator, temperature=temperature)
    own, other = (by_hand(model, rollout, temperature) for model in (policy, reference))
    expected = []
    for p_row, q_row, tokens in zip(own, other, tokens_of(rollout), strict=True):
        if estimator == "exact":  # log-probs are logits of the same distribution
            expected.append([slow.exact_kl(p, q) for p, q in zip(p_row, q_row, strict=True)])
        else:
            estimate = getattr(slow, f"kl_{estimator}")
            triples = zip(p_row, q_row, tokens, strict=True)
            expected.append([estimate(p[token], q[token]) for p, q, token in triples])
    close_on_real_tokens(rollout.kl, rollout.mask, expected)


def test_truncated_and_bootstrap_tell_a_truncated_response_from_one_that_ended():
    policy = valued()
    rollout = tiny.collected(policy, frozen_copy(policy))
    assert 0 < rollout.truncated.sum() < len(rollout)
    for row, prompt in enumerate(prompts_of(rollout.responses)):
        tokens = tokens_of(rollout)[row]
        assert rollout.truncated[row] == (EOS not in tokens)
        _, value = state(policy, prompt, tokens)
        expected = 0.0 if EOS in tokens else value.item()
        assert_close(rollout.bootstrap[row].item(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk_size", [1, 5, 12, 100])
def test_the_size_of_the_chunks_changes_no_rollout(chunk_size):
    policy, uniforms = valued(), torch.rand(12, 8)
    whole = tiny.collected(policy, tiny.policy(7), uniforms=uniforms)
    parts = tiny.collected(policy, tiny.policy(7), uniforms=uniforms, chunk_size=chunk_size)
    for name in ("log_probs", "ref_log_probs", "values", "kl", "bootstrap", "scores"):
        assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-5, atol=1e-5)


def test_total_scores_sum_what_the_real_tokens_were_paid():
    def paid(responses):
        return torch.where(responses.mask, 1.0, NAN)  # junk on padding is allowed

    rollout = tiny.collected(tiny.policy(), tiny.policy(7), paid)
    assert_close(rollout.total_scores, rollout.mask.sum(1).float())
    assert not rollout.mask.all()


def test_rows_of_a_rollout_are_a_rollout():
    rollout = tiny.collected(valued(), tiny.policy(7))
    part = rollout[tensor([3, 1])].trim()
    assert len(part) == 2
    assert tokens_of(part) == [tokens_of(rollout)[i] for i in (3, 1)]
    assert_close(part.values[0][part.mask[0]], rollout.values[3][rollout.mask[3]])
    assert part.scores.tolist() == rollout.scores[[3, 1]].tolist()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft's
@pytest.mark.parametrize("name", ["cache", "past_key_values"])
@pytest.mark.parametrize("adapted", [False, True])
def test_the_cache_goes_to_the_argument_that_the_model_has_for_it(name, adapted):
    """transformers renamed it in 5.24; a wrong name would be swallowed, and give other texts."""
    bare, seen = tiny.language_model(), []
    forward = bare.forward

    def passed_on(cache, input_ids, rest):
        seen.append((cache is not None, input_ids.shape[1]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of the name that is on its way out
            return forward(input_ids=input_ids, past_key_values=cache, **rest)

    def with_cache(input_ids, cache=None, **rest):
        return passed_on(cache, input_ids, rest)

    def with_past(input_ids, past_key_values=None, **rest):
        return passed_on(past_key_values, input_ids, rest)

    bare.forward = with_cache if name == "cache" else with_past
    model = bare
    if adapted:
        peft = pytest.importorskip("peft")
        model = peft.get_peft_model(bare, peft.LoraConfig(r=2, fan_in_fan_out=True))
    policy = PolicyWithValue(model).eval()
    ids, mask = encode_prompts(tiny.tokenizer(), tiny.PROMPTS)
    generate(policy, ids, mask, max_new_tokens=3, eos_token_id=-1)
    assert seen == [(True, ids.shape[1]), (True, 1), (True, 1)]


@pytest.mark.parametrize(
    ("kind", "config"), [(MambaForCausalLM, MambaConfig), (RwkvForCausalLM, RwkvConfig)]
)
def test_a_model_that_takes_no_cache_of_keys_and_values_is_refused(kind, config):
    """It swallowed the cache's name, and read each token of a response on its own."""
    model = kind(config(vocab_size=12, hidden_size=8, num_hidden_layers=2))
    with refuses("generate: the policy", f"a {kind.__name__}"):
        sample(PolicyWithValue(model).eval())


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch's own
def test_the_cache_of_a_compiled_model_is_that_of_the_model():
    # Its own forward takes anything; nothing is compiled before the first call.
    assert _cache_name(torch.compile(tiny.language_model())) in ("cache", "past_key_values")


def bent(by):
    """A policy whose logits go through a function, with the number of the token."""
    policy, calls = tiny.policy(), []

    def hook(module, inputs, logits):
        calls.append(1)
        return by(logits.clone(), len(calls) - 1)

    policy.language_model.lm_head.register_forward_hook(hook)
    return policy


def spoilt(value, at, where=slice(None)):
    def by(logits, token):
        logits[0, -1, where] = value if token == at else logits[0, -1, where]
        return logits

    return by


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize(
    ("value", "where"), [(NAN, 3), (NAN, slice(None)), (INF, 3), (-INF, slice(None))]
)
def test_logits_that_are_not_finite_are_named_by_their_token(greedy, value, where):
    """They gave the token after the last, and an IndexError in the next forward pass."""
    ids, mask = encode_prompts(tiny.tokenizer(), ["a b", "c"])
    for at in (0, 2):
        with pytest.raises(FloatingPointError, match=rf"^generate: .* not finite at token {at}$"):
            generate(
                bent(spoilt(value, at, where)), ids, mask, max_new_tokens=3, eos_token_id=-1,
                uniforms=None if greedy else torch.rand(2, 3),
            )  # fmt: skip


def test_a_temperature_at_which_the_logits_overflow_is_an_error_of_theirs():
    with pytest.raises(FloatingPointError, match="not finite at token 0"):
        sample(tiny.policy(), temperature=1e-39)


def test_tokens_may_be_ruled_out_by_minus_infinity():
    def by(logits, token):
        return logits.index_fill(-1, tensor([0, 3]), -INF)

    responses = sample(bent(by), time=20)
    assert responses.mask.all()
    assert not torch.isin(responses.ids, tensor([0, 3])).any()
