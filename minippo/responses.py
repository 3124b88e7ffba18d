"""Records of sampling: prompts with their responses, and what was measured on them.

Prompts are padded on the LEFT and responses on the RIGHT, so that response token t is in
column t of every row. The padding token is EOS (GPT-2 has no other), so nothing here asks whether
a token "is padding": masks are built once, from the first EOS in the response, and travel with the
ids.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from minippo._validate import checked, fail

_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character: no tokenizer takes it
Prompt = str | Mapping[str, Any]
Columns = Mapping[str, Sequence[Any]]


@dataclass(frozen=True, eq=False)
class Responses:
    """Prompts with their responses; rows are episodes, columns of `ids` are response tokens.

    Attributes:
        prompt_ids: prompt tokens, padded on the left.
        prompt_mask: True on real tokens.
        ids: response tokens, padded on the right.
        mask: True on real tokens, EOS included: in each row ones, then zeros.
        columns: other columns of the data set, one entry per row ("answer", ...).
    """

    prompt_ids: Int[Tensor, "batch prompt"]
    prompt_mask: Bool[Tensor, "batch prompt"]
    ids: Int[Tensor, "batch time"]
    mask: Bool[Tensor, "batch time"]
    columns: Columns = field(default_factory=dict)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The four tensors by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)[:4]}

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
        numbers = torch.arange(len(self))[rows.cpu() if isinstance(rows, Tensor) else rows].tolist()
        columns = {name: [column[i] for i in numbers] for name, column in self.columns.items()}
        tensors = {name: x[rows] for name, x in self.tensors.items()}
        return Responses(**tensors, columns=columns)

    def to(self, device: torch.device) -> "Responses":
        """The same rows on another device."""
        tensors = {name: x.to(device) for name, x in self.tensors.items()}
        return Responses(**tensors, columns=self.columns)

    def trim(self) -> "Responses":
        """Drop the columns that are padding in every row. Changes no row's results."""
        prompt, time = int(self.prompt_mask.sum(1).max()), int(self.mask.sum(1).max())
        start = self.prompt_ids.shape[1] - prompt
        return replace(
            self,
            prompt_ids=self.prompt_ids[:, start:],
            prompt_mask=self.prompt_mask[:, start:],
            ids=self.ids[:, :time],
            mask=self.mask[:, :time],
        )

    def by_length(self, size: int | None) -> tuple[Tensor, ...]:
        """Row numbers, `size` at a time, shorter responses first.

        Parts with rows of similar length hold less padding once trimmed. None gives one part, or
        two if that saves a twentieth of the columns or more.
        """
        lengths, rows = self.mask.sum(1).sort(stable=True)
        if size is None:
            size, half = len(rows), len(rows) // 2
            if half and half * int(lengths[-1] - lengths[half - 1]) >= 0.05 * self.mask.numel():
                size -= half
        return rows.cpu().split(size)


@dataclass(frozen=True, eq=False)
class Rollout:
    """A batch of episodes, measured once and never changed.

    Attributes:
        responses: the episodes.
        log_probs: log-probs under the policy that sampled, at the sampling temperature, in nats.
        ref_log_probs: log-probs under the reference, at the same temperature, in nats.
        values: `values[:, t]` belongs to the state before token t; V(prompt) is `values[:, 0]`.
        scores: the raw scores; [batch, time] if the score function scores each token.
        kl: KL to the reference per token, by the reward's estimator, in nats.
        truncated: True where no EOS was sampled.
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
    def tensors(self) -> dict[str, Tensor]:
        """The seven tensors by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)[1:]}

    @property
    def mask(self) -> Bool[Tensor, "batch time"]:
        """True on the real tokens of the responses, EOS included."""
        return self.responses.mask

    @property
    def total_scores(self) -> Float[Tensor, " batch"]:
        """One score per response; token-level scores are summed over real tokens."""
        if self.scores.dim() == 1:
            return self.scores
        return torch.where(self.mask, self.scores, 0.0).sum(1)

    def __len__(self) -> int:
        return len(self.responses)

    def __getitem__(self, rows: Tensor | slice) -> "Rollout":
        return Rollout(self.responses[rows], *(x[rows] for x in self.tensors.values()))

    def trim(self) -> "Rollout":
        """Drop the columns that are padding in every row. Changes no row's results."""
        responses = self.responses.trim()
        time = responses.ids.shape[1]
        parts = (x[:, :time] if x.dim() == 2 else x for x in self.tensors.values())
        return Rollout(responses, *parts)


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
    if 0 in (lengths := [len(row) for row in rows]):
        fail("left_pad", f"row {lengths.index(0)}", "hold at least one token", "none")
    width = max(lengths)
    ids = torch.tensor([[pad_token_id] * (width - len(row)) + list(row) for row in rows])
    return ids, torch.arange(width) >= width - torch.tensor(lengths).unsqueeze(1)


@checked
def response_mask(ids: Int[Tensor, "batch time"], eos_token_id: int) -> Bool[Tensor, "batch time"]:
    """True up to and including the first EOS; all True if there is none.

    Found from the first EOS *index*, never from `ids != pad`: if padding is EOS, as for GPT-2,
    that would hide the EOS from the loss, and the model would never learn to stop.

    >>> response_mask(torch.tensor([[5, 0, 0], [5, 6, 7]]), eos_token_id=0).tolist()
    [[True, True, False], [True, True, True]]
    """
    is_eos = (ids == eos_token_id).long()
    return is_eos.cumsum(1) == is_eos  # no EOS before this column


def split_columns(prompts: Sequence[Prompt]) -> tuple[list[str], Columns]:
    """The texts of the prompts, and the other columns of those that are mappings.

    >>> split_columns([{"prompt": "2 + 2 =", "answer": "4"}])
    (['2 + 2 ='], {'answer': ['4']})
    """
    if isinstance(prompts, str) or not prompts or not isinstance(prompts[0], Mapping):
        return list(texts_of("encode_prompts", prompts)), {}
    names, columns = list(prompts[0]), dict[str, list[Any]]()
    for number, row in enumerate(prompts):
        if not isinstance(row, Mapping) or "prompt" not in row or set(row) != set(names):
            must = f"be a mapping with the columns {', '.join(names)} ('prompt' among them)"
            fail("encode_prompts", f"row {number}", must, repr(row)[:60])
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return list(texts_of("encode_prompts", columns.pop("prompt"))), columns


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]
) -> tuple[Int[Tensor, "batch prompt"], Bool[Tensor, "batch prompt"]]:
    """Prompts as left-padded tokens, each behind the start that its tokenizer puts there.

    Raises:
        ValueError: no text, a text without tokens, or one that ends with the end of text, so that
            the response would belong to another text. A text may be that one token (GPT-2 has no
            other start), or hold it further in front.
    """
    return left_pad([*prompt_rows(tokenizer, prompts)], tokenizer.eos_token_id)


def prompt_rows(tokenizer: Any, prompts: Sequence[Prompt]) -> Iterator[list[int]]:
    """The rows of `encode_prompts`, one after the other: also for 100,000 prompts."""
    if tokenizer.eos_token_id is None:
        fail("encode_prompts", "tokenizer", "have an end-of-text token (eos_token)", "none")
    texts = split_columns(prompts)[0]
    for number, row in enumerate(with_start(tokenizer, texts)):
        if not row or (row[-1] == tokenizer.eos_token_id and len(row) > 1):
            must = f"hold a token, and not end with the end of text ({tokenizer.eos_token})"
            fail("encode_prompts", f"text {number}", must, f"{texts[number][-60:]!r}")
        yield row


def with_start(tokenizer: Any, texts: Sequence[str]) -> Iterator[list[int]]:
    """Texts as tokens behind the tokenizer's start of text, which is written once.

    A chat template may have written it already. What a tokenizer appends (an end of text, or
    BERT's [SEP]) is left out: the text goes on.
    """
    longest = tokenizer(max(texts, key=len), return_special_tokens_mask=True)
    n = [*longest["special_tokens_mask"], 0].index(0)  # how many come before the text's own
    start = longest["input_ids"][:n]
    for first in range(0, len(texts), 1000):
        part = tokenizer(list(texts[first : first + 1000]), add_special_tokens=False)
        for row in part["input_ids"]:
            while n and row[:n] == start:
                row = row[n:]
            yield start + row


def encode(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    *,
    ended: bool = True,
) -> Responses:
    """Written (not sampled) responses as tokens, each followed by EOS if `ended`."""
    if len(prompts) != len(responses):
        fail("encode", "responses", f"match the number of prompts ({len(prompts)})", len(responses))
    prompt_ids, prompt_mask = encode_prompts(tokenizer, prompts)
    end = [tokenizer.eos_token_id] if ended else []
    rows = [
        tokenizer(text, add_special_tokens=False)["input_ids"] + end
        for text in texts_of("encode", responses)
    ]
    flipped, mask = left_pad([row[::-1] for row in rows], tokenizer.eos_token_id)
    columns = split_columns(prompts)[1]
    return Responses(prompt_ids, prompt_mask, flipped.flip(1), mask.flip(1), columns)


def decode(tokenizer: PreTrainedTokenizerBase, responses: Responses) -> tuple[list[str], list[str]]:
    """The prompts and the responses as text, without special tokens."""

    def texts(ids: Tensor, mask: Tensor) -> list[str]:
        rows = [row[real].tolist() for row, real in zip(ids, mask, strict=True)]
        return [str(tokenizer.decode(row, skip_special_tokens=True)) for row in rows]

    prompts = texts(responses.prompt_ids, responses.prompt_mask)
    return prompts, texts(responses.ids, responses.mask)


def texts_of(caller: str, texts: Sequence[Any]) -> Sequence[str]:
    """Check that texts are strings of whole characters; the error names the first bad one."""
    if isinstance(texts, str) or not texts:
        fail(caller, "texts", "be a list of at least one text", repr(texts)[:60])
    for number, text in enumerate(texts):
        if not isinstance(text, str) or _SURROGATE.search(text):
            fail(caller, f"text {number}", "be a string of characters", repr(text)[:60])
    return texts
