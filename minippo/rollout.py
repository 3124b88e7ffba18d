"""Rollouts: sample responses, measure them, score them.

`generate` samples and `evaluate` measures; the update calls the same `evaluate`, so that the first
ratio is 1. Inputs may be on any device: they are moved to the policy's.
"""

from collections.abc import Sequence
from functools import partial
from inspect import signature
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from minippo._validate import check_number, check_response_mask, checked_at_the_door, fail
from minippo.kl import exact_kl, kl_k1, kl_k2, kl_k3
from minippo.log_probs import token_log_probs
from minippo.models import PolicyWithValue, device_of, position_ids
from minippo.responses import Columns, Responses, Rollout, response_mask
from minippo.scores import Score, check_scores
from minippo.texts import Prompt, decode, encode_prompts

# Re-exports: these names used to be here.
from minippo.texts import encode, left_pad  # noqa: F401  # isort: skip
from minippo.scores import ensemble_score, load_score, score_with, text_score  # noqa: F401  # isort: skip

KL_ESTIMATORS = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}


@torch.no_grad()
def generate(
    policy: PolicyWithValue,
    prompt_ids: Int[Tensor, "batch prompt"],
    prompt_mask: Bool[Tensor, "batch prompt"],
    *,
    max_new_tokens: int,
    eos_token_id: int,
    temperature: float = 1.0,
    uniforms: Float[Tensor, "batch new"] | None = None,
) -> Responses:
    """Sample one response per prompt, until EOS or `max_new_tokens`.

    Args:
        policy: the policy, in eval mode; only its language model is used.
        prompt_ids: prompt tokens, padded on the left.
        prompt_mask: True on real tokens.
        max_new_tokens: maximum response length in tokens, EOS included.
        eos_token_id: ends a response; also the padding after it.
        temperature: divides the logits.
        uniforms: [batch, max_new_tokens] in [0, 1); token t is the inverse of the cumulative
            distribution at `uniforms[:, t]`, so each row's text depends only on that row, not on
            the rest of the batch. None: greedy decoding.

    Raises:
        ValueError: prompt and response would exceed the model's positions, or the model takes no
            cache of keys and values (Mamba, RWKV).
        FloatingPointError: a logit is NaN or inf (also after division by a tiny temperature).
    """
    check_number("generate", 0, above=True, temperature=temperature)
    _check_room(policy, prompt_mask, max_new_tokens, uniforms)
    model: Any = policy.language_model
    device = device_of(model, prompt_ids.device)
    prompt_ids, prompt_mask = prompt_ids.to(device), prompt_mask.to(device)
    uniforms = None if uniforms is None else uniforms.to(device)
    cache, cache_name = DynamicCache(config=model.config), _cache_name(model)
    tokens, mask, positions = prompt_ids, prompt_mask, position_ids(prompt_mask)
    ids = prompt_ids.new_full((len(prompt_ids), max_new_tokens), eos_token_id)
    rows, step = torch.arange(len(ids), device=device), 0  # rows that have not ended
    # A recurrent layer's state cannot drop rows: then all rows run to the end.
    can_drop = {type(x) for x in cache.layers} <= {DynamicLayer, DynamicSlidingWindowLayer}
    while step < max_new_tokens and len(rows):
        logits = model(
            input_ids=tokens,
            attention_mask=mask.long(),
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            **{cache_name: cache},
        ).logits[:, -1]
        if uniforms is not None:
            logits = logits.float() / temperature
        if not logits.amax(-1).isfinite().all():  # -inf rules a token out; one must be left
            raise FloatingPointError(f"generate: the logits are not finite at token {step}")
        chosen = (
            logits.argmax(-1) if uniforms is None else _inverse_cdf(logits, uniforms[rows, step])
        )
        ids[rows, step] = chosen
        step, running = step + 1, chosen != eos_token_id
        if can_drop and not running.all():
            cache.batch_select_indices(running)
            rows, chosen, mask, positions = (x[running] for x in (rows, chosen, mask, positions))
        tokens, positions = chosen.unsqueeze(1), positions[:, -1:] + 1
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    ids = ids[:, :step]
    real = response_mask(ids, eos_token_id)
    return Responses(prompt_ids, prompt_mask, torch.where(real, ids, eos_token_id), real)


def _check_room(policy: PolicyWithValue, mask: Tensor, n: int, uniforms: Tensor | None) -> None:
    check_number("generate", 1, max_new_tokens=n)
    if uniforms is not None and uniforms.shape != (len(mask), n):
        fail("generate", "uniforms", f"have shape [{len(mask)}, {n}]", list(uniforms.shape))
    longest, limit = int(mask.sum(1).max()), policy.context_length
    if limit is not None and longest + n > limit:
        must = f"leave room for max_new_tokens={n} in {limit} positions"
        fail("generate", "prompt_ids", must, f"a prompt of {longest} tokens")


def _cache_name(model: Any) -> str:
    """The argument that takes the cache: `cache` from transformers 5.24 on.

    A model without that argument would silently ignore it, and read each token on its own.
    """
    own = own_model(model)
    for name in ("cache", "past_key_values"):
        if name in signature(own.forward).parameters:
            return name
    must = "take a cache of keys and values (past_key_values)"
    fail("generate", "the policy", must, f"a {type(own).__name__}")


def own_model(model: Any) -> Any:
    """The language model itself, under torch.compile or an adapter."""
    model = getattr(model, "_orig_mod", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _inverse_cdf(
    logits: Float[Tensor, "batch vocab"], u: Float[Tensor, " batch"]
) -> Int[Tensor, " batch"]:
    """The first token whose cumulative probability exceeds u; never one of probability 0.

    On the CPU the sum is in float64, because the rounding errors of 50,257 terms accumulate. An
    accelerator adds in pairs, so float32 is enough there, and Apple's has nothing wider.
    """
    probs, below = logits.softmax(-1), 1.0
    if probs.device.type == "cpu":
        probs, u = probs.double(), u.double()
    else:
        below = 1 - 2.0**-23  # else u times the sum could round up to the sum
    cdf = probs.cumsum(-1)
    return torch.searchsorted(cdf, u.unsqueeze(1) * (cdf[:, -1:] * below), right=True).squeeze(1)


def respond(
    policy: PolicyWithValue,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 40,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 256,
) -> list[str]:
    """Sample one response per prompt, as text; the same seed gives the same texts."""
    generator = torch.Generator().manual_seed(seed)
    uniforms = torch.rand(len(prompts), max_new_tokens, generator=generator)
    sample = partial(generate, policy, max_new_tokens=max_new_tokens, temperature=temperature)
    texts = list[str]()
    for start in range(0, len(prompts), batch_size):
        part = slice(start, start + batch_size)
        ids, mask = encode_prompts(tokenizer, prompts[part])
        end = tokenizer.eos_token_id
        texts += decode(tokenizer, sample(ids, mask, eos_token_id=end, uniforms=uniforms[part]))[1]
    return texts


def evaluate(
    policy: nn.Module, responses: Responses, *, end_value: bool = True
) -> tuple[Float[Tensor, "batch time vocab"], Float[Tensor, "batch time"], Float[Tensor, " batch"]]:
    """Logits and values of the state before each response token, and the value after the last.

    Logits are raw: callers divide by the temperature. Rollout and update both measure with this
    function, so that the first ratio is 1; the update needs no value after the last token
    (`end_value=False`: then it is 0, and the model reads one position fewer per row). The results
    are on the responses' device, wherever the policy is.
    """
    check_response_mask("evaluate", responses.mask)
    home = responses.ids.device
    r = responses.to(device_of(policy, home))
    # Position t predicts token t + 1: start on the prompt's last token.
    time, length = r.ids.shape[1], r.tokens.shape[1] - (not end_value)
    made = policy(r.tokens[:, :length], r.attention_mask[:, :length], keep=time + end_value)
    logits, values = (x.to(home) for x in made)
    if not end_value:
        return logits, values, torch.zeros_like(values[:, 0])
    end_values = values.gather(1, responses.mask.sum(1, keepdim=True)).squeeze(1)
    return logits[:, :-1], values[:, :-1], end_values


@torch.no_grad()
def reference_logits(
    policy: nn.Module, reference: nn.Module | None, responses: Responses
) -> Float[Tensor, "batch time vocab"]:
    """The reference's logits; if it is None, those of the policy without its LoRA adapter."""
    if reference is not None:
        return evaluate(reference, responses)[0]
    adapter_off = getattr(policy.language_model, "disable_adapter", None)
    if adapter_off is None:
        must = "be a model, or None with a policy that has a LoRA adapter"
        fail("reference_logits", "reference", must, "None with a policy that has none")
    with adapter_off():
        return evaluate(policy, responses)[0]


@torch.no_grad()
def collect(
    policy: PolicyWithValue,
    reference: PolicyWithValue | None,
    score: Score,
    prompt_ids: Int[Tensor, "batch prompt"],
    prompt_mask: Bool[Tensor, "batch prompt"],
    *,
    max_new_tokens: int,
    eos_token_id: int,
    temperature: float = 1.0,
    uniforms: Float[Tensor, "batch new"] | None = None,
    kl_estimator: Literal["k1", "k2", "k3", "exact"] = "k1",
    chunk_size: int | None = None,
    columns: Columns | None = None,
) -> Rollout:
    """Answer each prompt once and measure everything that an update needs.

    Args:
        policy: the policy that answers and is measured.
        reference: the model that the KL is measured to; None: the policy without its adapter.
        score: the score function.
        prompt_ids: prompt tokens, padded on the left.
        prompt_mask: True on real tokens.
        max_new_tokens: see `generate`, also for the next three.
        eos_token_id: ends a response.
        temperature: sampling temperature, also applied in every log-prob.
        uniforms: the randomness; None: greedy decoding.
        kl_estimator: estimator of `Rollout.kl`; "exact" sums over the vocabulary at each token.
        chunk_size: rows measured at a time, of similar length (logits are [rows, time, vocab]);
            None: all.
        columns: other columns of the prompts' data set, one entry per row; the score sees them.
    """
    responses = generate(
        policy,
        prompt_ids,
        prompt_mask,
        max_new_tokens=max_new_tokens,
        eos_token_id=eos_token_id,
        temperature=temperature,
        uniforms=uniforms,
    )
    responses = Responses(**responses.tensors, columns=columns or {})
    per_token = torch.zeros(4, *responses.ids.shape, device=responses.ids.device)
    end_values = torch.zeros_like(per_token[0, :, 0])
    for rows in responses.by_length(chunk_size):
        chunk = responses[rows].trim()
        measured, end_values[rows] = _measure(policy, reference, chunk, temperature, kl_estimator)
        per_token[:, rows, : chunk.ids.shape[1]] = torch.where(chunk.mask, measured, 0.0)
    log_probs, ref_log_probs, values, kl = per_token
    scores = check_scores(score(responses), responses)
    truncated = ~(responses.ids == eos_token_id).any(1)
    bootstrap = torch.where(truncated, end_values, 0.0)
    return Rollout(responses, log_probs, ref_log_probs, values, scores, kl, truncated, bootstrap)


@checked_at_the_door()
def _measure(
    policy: nn.Module,
    reference: nn.Module | None,
    responses: Responses,
    temperature: float,
    kl_estimator: str,
) -> tuple[Float[Tensor, "4 batch time"], Float[Tensor, " batch"]]:
    """(log-probs, the reference's, values, KL) per token, and the value after the last one."""
    logits, values, end_values = evaluate(policy, responses)
    ref_logits = reference_logits(policy, reference, responses)
    log_probs, ref_log_probs = (
        token_log_probs(z, responses.ids, temperature=temperature) for z in (logits, ref_logits)
    )
    if kl_estimator == "exact":
        kl = exact_kl(logits, ref_logits, temperature=temperature)
    else:
        kl = KL_ESTIMATORS[kl_estimator](log_probs, ref_log_probs)
    return torch.stack([log_probs, ref_log_probs, values, kl]), end_values
