"""Acting: sample responses, measure them, judge them.

Prompts are padded on the LEFT and responses on the RIGHT, so that response token t stands in
column t for every row. `generate` samples, `evaluate` measures, and the update calls the *same*
`evaluate`. The padding token is EOS (GPT-2 has no other), so nothing here asks whether a token
"is padding": masks are built once, from the first EOS in the response, and travel with the ids.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from minippo._validate import check_number, check_response_mask, checked, fail
from minippo.kl import exact_kl, kl_k1, kl_k2, kl_k3
from minippo.log_probs import token_log_probs
from minippo.models import PolicyWithValue, RewardModel, load_classifier, position_ids

_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character: no tokenizer takes it
KL_ESTIMATORS = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}


@dataclass(frozen=True, eq=False)
class Responses:
    """Prompts with their responses; rows are episodes, columns of `ids` are response tokens.

    Attributes:
        prompt_ids: padded on the left.
        prompt_mask: True on a real token.
        ids: padded on the right.
        mask: True on a real token, EOS included: in each row ones, then zeros.
    """

    prompt_ids: Int[Tensor, "batch prompt"]
    prompt_mask: Bool[Tensor, "batch prompt"]
    ids: Int[Tensor, "batch time"]
    mask: Bool[Tensor, "batch time"]

    @property
    def tokens(self) -> Int[Tensor, "batch length"]:
        """Prompt and response in one row."""
        return torch.cat([self.prompt_ids, self.ids], 1)

    @property
    def attention_mask(self) -> Bool[Tensor, "batch length"]:
        """True on the real tokens of prompt and response."""
        return torch.cat([self.prompt_mask, self.mask], 1)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: Tensor | slice) -> "Responses":
        return Responses(*(getattr(self, f.name)[rows] for f in fields(self)))

    def to(self, device: torch.device) -> "Responses":
        """On another device."""
        return Responses(*(getattr(self, f.name).to(device) for f in fields(self)))

    def trim(self) -> "Responses":
        """Without the columns that are padding in every row. Changes no row's results."""
        prompt, time = int(self.prompt_mask.sum(1).max()), int(self.mask.sum(1).max())
        start = self.prompt_ids.shape[1] - prompt
        return Responses(
            self.prompt_ids[:, start:],
            self.prompt_mask[:, start:],
            self.ids[:, :time],
            self.mask[:, :time],
        )

    def by_length(self, size: int | None) -> tuple[Tensor, ...]:
        """The numbers of the rows, `size` at a time, the shorter responses first.

        Rows of like length together: trimmed, they hold less padding. With None all rows are one
        part, or two where that leaves out a twentieth of the columns or more.
        """
        lengths, rows = self.mask.sum(1).sort(stable=True)
        if size is None:
            size, half = len(rows), len(rows) // 2
            if half and half * int(lengths[-1] - lengths[half - 1]) >= 0.05 * self.mask.numel():
                size -= half
        return rows.cpu().split(size)


@dataclass(frozen=True, eq=False)
class Rollout:
    """What happened, measured once, never changed.

    Attributes:
        responses: the episodes.
        log_probs: of the policy that sampled, at the sampling temperature, in nats.
        ref_log_probs: the reference's, at the same temperature.
        values: `values[:, t]` belongs to the state before token t; V(prompt) is `values[:, 0]`.
        scores: the judge's, raw; [batch, time] if the judge pays token by token.
        kl: per token to the reference, by the estimator that the reward uses, in nats.
        truncated: no EOS was sampled.
        bootstrap: the value after the last token of a truncated response; 0 where EOS came.
    """

    responses: Responses
    log_probs: Float[Tensor, "batch time"]
    ref_log_probs: Float[Tensor, "batch time"]
    values: Float[Tensor, "batch time"]
    scores: Float[Tensor, " batch"] | Float[Tensor, "batch time"]
    kl: Float[Tensor, "batch time"]
    truncated: Bool[Tensor, " batch"]
    bootstrap: Float[Tensor, " batch"]

    @property
    def mask(self) -> Bool[Tensor, "batch time"]:
        """True on the real tokens of the responses, EOS included."""
        return self.responses.mask

    @property
    def total_scores(self) -> Float[Tensor, " batch"]:
        """One score a response: itself, or the sum of what its real tokens were paid."""
        if self.scores.dim() == 1:
            return self.scores
        return torch.where(self.mask, self.scores, 0.0).sum(1)

    def __len__(self) -> int:
        return len(self.responses)

    def __getitem__(self, rows: Tensor | slice) -> "Rollout":
        return Rollout(*(getattr(self, f.name)[rows] for f in fields(self)))

    def trim(self) -> "Rollout":
        """Without the columns that are padding in every row. Changes no row's results."""
        responses = self.responses.trim()
        time, parts = responses.ids.shape[1], [getattr(self, f.name) for f in fields(self)[1:]]
        return Rollout(responses, *(x[:, :time] if x.dim() == 2 else x for x in parts))


Score = Callable[[Responses], Tensor]
TextScore = Callable[[list[str], list[str]], Sequence[float]]


def left_pad(
    rows: Sequence[Sequence[int]], pad_token_id: int
) -> tuple[Int[Tensor, "batch prompt"], Bool[Tensor, "batch prompt"]]:
    """Token rows of different lengths as ids and mask, padded on the left.

    >>> ids, mask = left_pad([[5], [6, 7]], pad_token_id=0)
    >>> ids.tolist(), mask.tolist()
    ([[0, 5], [6, 7]], [[False, True], [True, True]])
    """
    if not rows:
        fail("left_pad", "rows", "hold at least one row", "none")
    if not all(len(row) for row in rows):
        number = next(i for i, row in enumerate(rows) if not len(row))
        fail("left_pad", f"row {number}", "hold at least one token", "none")
    width = max(map(len, rows))
    ids = torch.tensor([[pad_token_id] * (width - len(row)) + list(row) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return ids, torch.arange(width) >= width - lengths.unsqueeze(1)


@checked
def response_mask(ids: Int[Tensor, "batch time"], eos_token_id: int) -> Bool[Tensor, "batch time"]:
    """True up to the first EOS and on it; all True where there is none.

    Found from the first EOS *index*, never from `ids != pad`: where padding is EOS, as for GPT-2,
    that would hide the EOS from the loss, and the model would never learn to stop.

    >>> response_mask(torch.tensor([[5, 0, 0], [5, 6, 7]]), eos_token_id=0).tolist()
    [[True, True, False], [True, True, True]]
    """
    ended = (ids == eos_token_id).long().cumsum(1) - (ids == eos_token_id).long()
    return ended == 0  # no EOS before this column


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]
) -> tuple[Int[Tensor, "batch prompt"], Bool[Tensor, "batch prompt"]]:
    """Prompts as left-padded tokens, with whatever the tokenizer puts in front by itself."""
    if tokenizer.eos_token_id is None:
        fail("encode_prompts", "tokenizer", "have an end-of-text token (eos_token)", "none")
    rows = [tokenizer(prompt)["input_ids"] for prompt in _texts("encode_prompts", prompts)]
    return left_pad(rows, tokenizer.eos_token_id)


def encode(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    responses: Sequence[str],
    *,
    ended: bool = True,
) -> Responses:
    """Written (not sampled) responses as tokens, each with EOS at its end if `ended`."""
    if len(prompts) != len(responses):
        fail("encode", "responses", f"be as many as the prompts ({len(prompts)})", len(responses))
    prompt_ids, prompt_mask = encode_prompts(tokenizer, prompts)
    end = [tokenizer.eos_token_id] if ended else []
    rows = [
        tokenizer(text, add_special_tokens=False)["input_ids"] + end
        for text in _texts("encode", responses)
    ]
    flipped, mask = left_pad([row[::-1] for row in rows], tokenizer.eos_token_id)
    return Responses(prompt_ids, prompt_mask, flipped.flip(1), mask.flip(1))


def decode(tokenizer: PreTrainedTokenizerBase, responses: Responses) -> tuple[list[str], list[str]]:
    """The prompts and the responses as text, without special tokens."""

    def texts(ids: Tensor, mask: Tensor) -> list[str]:
        rows = [row[real].tolist() for row, real in zip(ids, mask, strict=True)]
        return [str(tokenizer.decode(row, skip_special_tokens=True)) for row in rows]

    r = responses
    return texts(r.prompt_ids, r.prompt_mask), texts(r.ids, r.mask)


def _texts(caller: str, texts: Sequence[str]) -> Sequence[str]:
    if isinstance(texts, str) or not texts:
        fail(caller, "texts", "be a list of at least one text", repr(texts)[:60])
    for number, text in enumerate(texts):
        if not isinstance(text, str) or _SURROGATE.search(text):
            fail(caller, f"text {number}", "be a string of characters", repr(text)[:60])
    return texts


# ---- sampling and measuring ------------------------------------------------------------------


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
    """Sample a response to each prompt, until EOS or `max_new_tokens`.

    Args:
        policy: in eval mode; only its language model is asked.
        prompt_ids: padded on the left.
        prompt_mask: True on real tokens.
        max_new_tokens: the longest response, in tokens, EOS included.
        eos_token_id: ends a response; also the padding after it.
        temperature: divides the logits.
        uniforms: [batch, max_new_tokens] in [0, 1); token t is the inverse of the cumulative
            distribution at `uniforms[:, t]`, so that a row's text depends on its own row alone,
            whatever it is batched with. None is greedy.

    Raises:
        ValueError: prompt and response would exceed the model's positions.
    """
    check_number("generate", 1, max_new_tokens=max_new_tokens)
    check_number("generate", 0, above=True, temperature=temperature)
    if uniforms is not None and uniforms.shape != (len(prompt_ids), max_new_tokens):
        must = f"have shape [{len(prompt_ids)}, {max_new_tokens}]"
        fail("generate", "uniforms", must, list(uniforms.shape))
    longest, limit = int(prompt_mask.sum(1).max()), policy.context_length
    if limit is not None and longest + max_new_tokens > limit:
        must = f"leave room for max_new_tokens={max_new_tokens} in {limit} positions"
        fail("generate", "prompt_ids", must, f"a prompt of {longest} tokens")
    model = policy.language_model
    cache, cache_name = DynamicCache(config=model.config), _cache_name(model)
    tokens, mask, positions = prompt_ids, prompt_mask, position_ids(prompt_mask)
    ids = prompt_ids.new_full((len(prompt_ids), max_new_tokens), eos_token_id)
    rows, step = torch.arange(len(ids), device=ids.device), 0  # those still being written
    # A recurrent layer's state cannot be cut: then all rows go on to the end.
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
        if uniforms is None:
            chosen = logits.argmax(-1)
        else:
            chosen = _inverse_cdf(logits.float() / temperature, uniforms[rows, step])
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


def _cache_name(model: Any) -> str:
    """The argument that takes the cache: `cache` from transformers 5.24 on.

    A model without it would swallow the name without a word, and read every token by itself.
    """
    own = model.get_base_model() if hasattr(model, "get_base_model") else model  # under an adapter
    return "cache" if "cache" in signature(own.forward).parameters else "past_key_values"


def _inverse_cdf(
    logits: Float[Tensor, "batch vocab"], u: Float[Tensor, " batch"]
) -> Int[Tensor, " batch"]:
    """The first token whose cumulative probability exceeds u; never one of probability 0."""
    cdf = logits.softmax(-1).double().cumsum(-1)  # the rounding of 50,257 terms adds up
    return torch.searchsorted(cdf, u.double().unsqueeze(1) * cdf[:, -1:], right=True).squeeze(1)


def respond(
    policy: PolicyWithValue,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 40,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 256,
) -> list[str]:
    """One sampled answer to each prompt, as text; the same ones for the same seed."""
    uniforms = torch.rand(
        len(prompts), max_new_tokens, generator=torch.Generator().manual_seed(seed)
    )
    device, texts = next(policy.parameters()).device, list[str]()
    for start in range(0, len(prompts), batch_size):
        part = slice(start, start + batch_size)
        ids, mask = encode_prompts(tokenizer, prompts[part])
        responses = generate(
            policy,
            ids.to(device),
            mask.to(device),
            max_new_tokens=max_new_tokens,
            eos_token_id=tokenizer.eos_token_id,
            temperature=temperature,
            uniforms=uniforms[part].to(device),
        )
        texts += decode(tokenizer, responses)[1]
    return texts


def evaluate(
    policy: nn.Module, responses: Responses
) -> tuple[Float[Tensor, "batch time vocab"], Float[Tensor, "batch time"], Float[Tensor, " batch"]]:
    """Logits and values of the state before each response token, and the value after the last.

    Raw logits: whoever takes a log-prob divides by the temperature. Called alike by the rollout
    and by the update, so that the first ratio is 1.
    """
    check_response_mask("evaluate", responses.mask)
    # Position t predicts token t + 1: start on the prompt's last token.
    time = responses.ids.shape[1]
    logits, values = policy(responses.tokens, responses.attention_mask, keep=time + 1)
    end_values = values.gather(1, responses.mask.sum(1, keepdim=True)).squeeze(1)
    return logits[:, :-1], values[:, :-1], end_values


@torch.no_grad()
def reference_logits(
    policy: nn.Module, reference: nn.Module | None, responses: Responses
) -> Float[Tensor, "batch time vocab"]:
    """The reference's logits; where it is None, those of the policy without its LoRA adapter."""
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
) -> Rollout:
    """Act once on each prompt and measure everything that an update needs.

    Args:
        policy: acts and is measured.
        reference: what the KL is measured to; None is the policy with its adapter switched off.
        score: judges the responses.
        prompt_ids: padded on the left.
        prompt_mask: True on real tokens.
        max_new_tokens: see `generate`, as for the next three.
        eos_token_id: ends a response.
        temperature: of sampling and of every log-prob.
        uniforms: the randomness; None is greedy.
        kl_estimator: of `Rollout.kl`; "exact" sums over the vocabulary at each token.
        chunk_size: rows measured at a time, of like length (logits are [rows, time, vocab]); None
            is all.
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
    per_token = torch.zeros(4, *responses.ids.shape, device=responses.ids.device)
    end_values = torch.zeros_like(per_token[0, :, 0])
    for rows in responses.by_length(chunk_size):
        chunk = responses[rows].trim()
        logits, values, end_values[rows] = evaluate(policy, chunk)
        ref_logits = reference_logits(policy, reference, chunk)
        log_probs, ref_log_probs = (
            token_log_probs(z, chunk.ids, temperature=temperature) for z in (logits, ref_logits)
        )
        if kl_estimator == "exact":
            kl = exact_kl(logits, ref_logits, temperature=temperature)
        else:
            kl = KL_ESTIMATORS[kl_estimator](log_probs, ref_log_probs)
        measured = torch.stack([log_probs, ref_log_probs, values, kl])
        per_token[:, rows, : chunk.ids.shape[1]] = torch.where(chunk.mask, measured, 0.0)
    log_probs, ref_log_probs, values, kl = per_token
    scores = check_scores(score(responses), responses)
    truncated = ~(responses.ids == eos_token_id).any(1)
    bootstrap = torch.where(truncated, end_values, 0.0)
    return Rollout(responses, log_probs, ref_log_probs, values, scores, kl, truncated, bootstrap)


# ---- judging ---------------------------------------------------------------------------------


def check_scores(scores: Tensor, responses: Responses) -> Tensor:
    """Scores must be finite floats, one a response, or one a token: [batch] or [batch, time]."""
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        came = scores.dtype if isinstance(scores, Tensor) else type(scores).__name__
        fail("score", "the result", "be a tensor of floats", came)
    batch, time = responses.ids.shape
    if tuple(scores.shape) not in ((batch,), (batch, time)):
        must = f"have shape [{batch}] or [{batch}, {time}]"
        fail("score", "the result", must, list(scores.shape))
    finite = (
        scores.isfinite() if scores.dim() == 1 else (scores.isfinite() | ~responses.mask).all(1)
    )
    if not finite.all():
        row = int((~finite).nonzero()[0])
        ids = responses.ids[row][responses.mask[row]].tolist()
        fail("score", f"the score of row {row}", "be finite", f"{scores[row]} for tokens {ids}")
    return scores.detach().float().to(responses.ids.device)


def text_score(tokenizer: PreTrainedTokenizerBase, fn: TextScore) -> Score:
    """Judge by a function of texts: `fn(prompts, responses)` returns one number a response.

    Raises:
        ValueError: `fn` returned another number of scores, or one that is no finite number; the
            message shows prompt and response. What `fn` itself raises is passed on, with a note
            that shows them.
    """

    def score(responses: Responses) -> Tensor:
        prompts, texts = decode(tokenizer, responses)
        try:
            scores = list(fn(prompts, texts))
        except Exception as error:
            error.add_note(f"raised by the score function on {_first_bad(fn, prompts, texts)}")
            raise
        if len(scores) != len(texts):
            fail("text_score", "fn's result", f"hold {len(texts)} scores", len(scores))
        for prompt, text, value in zip(prompts, texts, scores, strict=True):
            try:
                finite = bool(torch.isfinite(torch.tensor(float(value))))
            except (TypeError, ValueError):
                finite = False
            if not finite:
                where = f"for prompt {prompt!r}, response {text!r}"
                fail("text_score", "a score", "be a finite number", f"{value!r} {where}")
        return torch.tensor([float(value) for value in scores], device=responses.ids.device)

    return score


def _first_bad(fn: TextScore, prompts: list[str], texts: list[str]) -> str:
    for prompt, text in zip(prompts, texts, strict=True):
        try:
            fn([prompt], [text])
        except Exception:
            return f"prompt {prompt!r}, response {text!r}"
    return f"{len(texts)} responses together, though on none of them alone"


def ensemble_score(
    fns: Sequence[Score],
    *,
    how: Literal["mean", "min", "mean_minus_variance"] = "mean",
    coef: float = 0.0,
) -> Score:
    """Several judges as one: their mean, the least, or mean - coef * population variance.

    Source: Coste et al. 2023 (arXiv:2310.02743), where they are called mean, worst-case (WCO) and
    uncertainty-weighted (UWO). The scores are taken as they come: bring the members to one scale
    first, or the one that spreads most decides.
    """
    if not fns:
        fail("ensemble_score", "fns", "hold at least one score function", "none")
    if how not in ("mean", "min", "mean_minus_variance"):
        fail("ensemble_score", "how", "be 'mean', 'min' or 'mean_minus_variance'", repr(how))
    check_number("ensemble_score", 0, coef=coef)

    def score(responses: Responses) -> Tensor:
        scores = torch.stack([check_scores(fn(responses), responses) for fn in fns])
        if how == "min":
            return scores.amin(0)
        spread = coef * scores.var(0, correction=0) if how == "mean_minus_variance" else 0.0
        return scores.mean(0) - spread

    return score


def load_score(
    name: str | Path, tokenizer: PreTrainedTokenizerBase | None = None, *, batch_size: int = 64
) -> Score:
    """A reward model as a judge: a shipped one ("tiny-gpt2-reward"), a folder, or the hub's.

    `tokenizer` is the policy's; None says that the judge has the same. A model with one label and
    a head named score (ours, GPT-2's, Llama's) reads the last token, EOS, and where it has another
    tokenizer the texts are tokenized anew, with EOS at the end of those that ended. Any other
    classifier reads prompt and response as its own tokenizer writes them, and pays one label's
    raw logit, as TRL's sentiment example does: "lvwerra/distilbert-imdb#POSITIVE", or "#1".
    """
    place, _, label = (str(name), "", "") if Path(name).exists() else str(name).partition("#")
    body, own = load_classifier("load_score", place)
    body.eval().requires_grad_(False)
    theirs = own if tokenizer is None else tokenizer
    index = _label_index(body, label)
    if body.config.num_labels > 1 or getattr(body, "score", None) is None:
        return _classifier_score(body, own, theirs, index, batch_size)
    model, same = RewardModel(body), own.get_vocab() == theirs.get_vocab()
    limit = getattr(model.body.config, "max_position_embeddings", None)

    @torch.no_grad()
    def score(responses: Responses) -> Tensor:
        device = responses.ids.device
        model.to(device)
        judged = responses if same else _retokenize(theirs, own, responses)
        longest = int(judged.attention_mask.sum(1).max())
        if limit is not None and longest > limit:
            fail("load_score", "the responses", f"fit {limit} positions of {name}", longest)
        rows = [judged[i : i + batch_size].trim() for i in range(0, len(judged), batch_size)]
        return torch.cat([model(r.tokens.to(device), r.attention_mask.to(device)) for r in rows])

    return score


def _label_index(classifier: Any, label: str) -> int:
    """A label's column, from its name or its number; one label alone need not be named."""
    names = {str(name): int(index) for index, name in classifier.config.id2label.items()}
    names |= {str(index): index for index in names.values()}
    if not label and classifier.config.num_labels == 1:
        return 0
    if label not in names:
        must = f"end in # and a label, one of {', '.join(names)}"
        fail("load_score", "name", must, repr(label) if label else "no label")
    return names[label]


def _classifier_score(
    model: Any,
    own: PreTrainedTokenizerBase,
    theirs: PreTrainedTokenizerBase,
    index: int,
    batch_size: int,
) -> Score:
    """One logit of a classifier that reads texts by its own tokenizer and conventions."""
    own.pad_token = own.pad_token or own.eos_token
    model.config.pad_token_id = own.pad_token_id  # tells GPT-2's kind which token is the last
    limits = [own.model_max_length, getattr(model.config, "max_position_embeddings", None)]

    @torch.no_grad()
    def score(responses: Responses) -> Tensor:
        device = responses.ids.device
        texts = [prompt + text for prompt, text in zip(*decode(theirs, responses), strict=True)]
        scores, limit = [], min(x for x in limits if x)
        for start in range(0, len(texts), batch_size):
            part = texts[start : start + batch_size]
            batch = own(part, padding=True, padding_side="right", return_tensors="pt").to(device)
            if (longest := batch["input_ids"].shape[1]) > limit:
                fail("load_score", "the texts", f"fit the judge's {limit} positions", longest)
            scores.append(model.to(device)(**batch).logits[:, index].float())
        return torch.cat(scores)

    return score


def _retokenize(
    theirs: PreTrainedTokenizerBase, own: PreTrainedTokenizerBase, responses: Responses
) -> Responses:
    ended = ((responses.ids == theirs.eos_token_id) & responses.mask).any(1)
    ends = [own.eos_token_id]
    rows = [
        own(prompt)["input_ids"] + own(text, add_special_tokens=False)["input_ids"] + ends * stop
        for prompt, text, stop in zip(*decode(theirs, responses), ended.tolist(), strict=True)
    ]
    ids, mask = left_pad(rows, own.eos_token_id)
    return Responses(ids, mask, ids[:, :0], mask[:, :0])


def score_with(model: nn.Module) -> Score:
    """A reward model in memory as a judge; its tokenizer is the policy's."""

    @torch.no_grad()
    def score(responses: Responses) -> Tensor:
        return model(responses.tokens, responses.attention_mask)

    return score
