"""Scores: rules on text, reward models and classifiers as functions of `Responses`."""

from collections.abc import Callable, Iterable, Sequence
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from minippo._validate import check_number, fail
from minippo.models import RewardModel, device_of, load
from minippo.responses import Columns, Responses
from minippo.texts import decode, left_pad, with_start

Score = Callable[[Responses], Tensor]
TextScore = Callable[..., Sequence[float]]


def check_scores(scores: Tensor, responses: Responses) -> Tensor:
    """Require finite float scores, per response or per token: [batch] or [batch, time]."""
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        came = scores.dtype if isinstance(scores, Tensor) else type(scores).__name__
        fail("score", "the result", "be a tensor of floats", came)
    batch, time = responses.ids.shape
    if tuple(scores.shape) not in ((batch,), (batch, time)):
        must = f"have shape [{batch}] or [{batch}, {time}]"
        fail("score", "the result", must, list(scores.shape))
    bad = ~scores.isfinite()
    bad = bad if bad.dim() == 1 else (bad & responses.mask).any(1)
    if bad.any():
        row = int(bad.nonzero()[0])
        ids = responses.ids[row][responses.mask[row]].tolist()
        fail("score", f"the score of row {row}", "be finite", f"{scores[row]} for tokens {ids}")
    return scores.detach().float().to(responses.ids.device)


def text_score(tokenizer: PreTrainedTokenizerBase, fn: TextScore) -> Score:
    """Score with a function of texts: `fn(prompts, responses)` returns one number per response.

    Other columns of the prompts' data set are passed by name if the signature has them:
    `def fn(prompts, responses, answer)`; `**columns` takes all of them.

    Raises:
        ValueError: `fn` returned the wrong number of scores, or one that is not a finite number;
            the message shows prompt and response. Errors raised by `fn` itself are passed on, with
            a note that shows them.
    """

    def score(responses: Responses) -> Tensor:
        prompts, texts = decode(tokenizer, responses)
        columns = _asked_for(fn, responses.columns)
        try:
            made = fn(prompts, texts, **columns)
            many = isinstance(made, Iterable) and getattr(made, "ndim", 1) > 0  # 0: a bare number
            scores = list(made) if many else []
        except Exception as error:
            bad = _first_bad(fn, prompts, texts, columns)
            error.add_note(f"raised by the score function on {bad}")
            raise
        if len(scores) != len(texts):
            must, came = f"hold {len(texts)} numbers", len(scores) if many else repr(made)
            fail("text_score", "fn's result", must, came)
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


def _asked_for(fn: TextScore, columns: Columns) -> Columns:
    """The columns that a function takes by name."""
    if not columns:
        return {}
    taken = signature(fn).parameters.values()
    if any(p.kind is Parameter.VAR_KEYWORD for p in taken):
        return columns
    return {name: columns[name] for name in columns if name in [p.name for p in taken]}


def _first_bad(fn: TextScore, prompts: list[str], texts: list[str], columns: Columns) -> str:
    for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        try:
            fn([prompt], [text], **{name: [column[row]] for name, column in columns.items()})
        except Exception:
            return f"prompt {prompt!r}, response {text!r}"
    return f"{len(texts)} responses together, though on none of them alone"


def ensemble_score(
    fns: Sequence[Score],
    *,
    how: Literal["mean", "min", "mean_minus_variance"] = "mean",
    coef: float = 0.0,
) -> Score:
    """Combine scores: their mean, minimum, or mean - coef * population variance.

    Source: Coste et al. 2023 (arXiv:2310.02743), where they are called mean, worst-case (WCO) and
    uncertainty-weighted (UWO). The scores are used as they are: bring the members to one scale
    first (`practice.rewards.normalized_score`), or the one with the largest spread dominates.
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
    """Score with a reward model: a shipped one ("tiny-gpt2-reward"), a folder, or one on the hub.

    `tokenizer` is the policy's; None means that the reward model uses the same one. A model with
    one label and a head named score (ours, GPT-2's, Llama's) is read at the last token, EOS; if its
    tokenizer differs, the texts are tokenized again, with EOS at the end of those that ended. Any
    other classifier reads prompt and response as its own tokenizer encodes them, and the score is
    one label's raw logit, as in TRL's sentiment example: "lvwerra/distilbert-imdb#POSITIVE", "#1".
    """
    place, _, label = (str(name), "", "") if Path(name).exists() else str(name).partition("#")
    body, own = load("load_score", AutoModelForSequenceClassification, place)
    body.eval().requires_grad_(False)
    theirs = own if tokenizer is None else tokenizer
    index = _label_index(body, label)
    if body.config.num_labels > 1 or getattr(body, "score", None) is None:
        return _classifier_score(body, own, theirs, index, batch_size)
    model, same = RewardModel(body), own.get_vocab() == theirs.get_vocab()
    judge = score_with(model)
    limit = getattr(model.body.config, "max_position_embeddings", None)

    @torch.no_grad()
    def score(responses: Responses) -> Tensor:
        model.to(responses.ids.device)
        judged = responses if same else _retokenize(theirs, own, responses)
        longest = int(judged.attention_mask.sum(1).max())
        if limit is not None and longest > limit:
            fail("load_score", "the responses", f"fit {limit} positions of {name}", longest)
        starts = range(0, len(judged), batch_size)
        return torch.cat([judge(judged[i : i + batch_size].trim()) for i in starts])

    return score


def _label_index(classifier: Any, label: str) -> int:
    """The column of a label, by name or number; a single label need not be named."""
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
    """Score with one logit of a classifier, which reads texts with its own tokenizer."""
    own.pad_token = own.pad_token or own.eos_token
    model.config.pad_token_id = own.pad_token_id  # tells models like GPT-2 which token is the last
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
                fail("load_score", "the texts", f"fit the classifier's {limit} positions", longest)
            scores.append(model.to(device)(**batch).logits[:, index].float())
        return torch.cat(scores)

    return score


def _retokenize(
    theirs: PreTrainedTokenizerBase, own: PreTrainedTokenizerBase, responses: Responses
) -> Responses:
    ended = ((responses.ids == theirs.eos_token_id) & responses.mask).any(1)
    prompts, texts = decode(theirs, responses)
    rows = [
        prompt + own(text, add_special_tokens=False)["input_ids"] + [own.eos_token_id] * stop
        for prompt, text, stop in zip(with_start(own, prompts), texts, ended.tolist(), strict=True)
    ]
    ids, mask = left_pad(rows, own.eos_token_id)
    return Responses(ids, mask, ids[:, :0], mask[:, :0])


def score_with(model: nn.Module) -> Score:
    """Score with a reward model in memory whose tokenizer is the policy's."""

    @torch.no_grad()
    def score(responses: Responses) -> Tensor:
        home = responses.ids.device
        r = responses.to(device_of(model, home))
        return model(r.tokens, r.attention_mask).to(home)

    return score
