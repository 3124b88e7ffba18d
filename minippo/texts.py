"""Between text and tokens: prompts as they were given, and responses as they are read.

Prompts are padded on the left. What a tokenizer adds is kept at the start, where it is written
once, and left out at the end.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from minippo._validate import fail
from minippo.responses import Columns, Responses

_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character: no tokenizer takes it
Prompt = str | Mapping[str, Any]


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
    """Prompts as left-padded tokens, each after the start of text that its tokenizer adds.

    Raises:
        ValueError: no text, a text without tokens, or one that ends with the end of text: the
            response would belong to another text. A text may be that one token (GPT-2 has no
            other start), or hold it earlier.
    """
    return left_pad([*prompt_rows(tokenizer, prompts)], tokenizer.eos_token_id)


def prompt_rows(tokenizer: Any, prompts: Sequence[Prompt]) -> Iterator[list[int]]:
    """The rows of `encode_prompts`, one by one, so that 100,000 prompts need little memory."""
    if tokenizer.eos_token_id is None:
        fail("encode_prompts", "tokenizer", "have an end-of-text token (eos_token)", "none")
    texts = split_columns(prompts)[0]
    for number, row in enumerate(with_start(tokenizer, texts)):
        if not row or (row[-1] == tokenizer.eos_token_id and len(row) > 1):
            must = f"hold a token, and not end with the end of text ({tokenizer.eos_token})"
            fail("encode_prompts", f"text {number}", must, f"{texts[number][-60:]!r}")
        yield row


def with_start(tokenizer: Any, texts: Sequence[str]) -> Iterator[list[int]]:
    """Texts as tokens after the tokenizer's start, which is written once.

    A chat template may have written it already. What a tokenizer appends (an end of text, or
    BERT's [SEP]) is left out, because the text goes on.
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
