"""Mistakes about measures of reward hacking."""

import math
from itertools import pairwise

import torch
from torch import Tensor

from minippo.checks.mistakes import flawed


@flawed(
    "ranked by gold", "proxy returned", "the first n alone", "groups in a row", "the best of all",
    "the n best averaged", "the worst of n", "drawn with replacement", "one rank too high",
)  # fmt: skip
def best_of_n_mean(flags: frozenset[str], proxy: Tensor, gold: Tensor, n: int) -> Tensor:
    """Sum of C(i - 1, n - 1) / C(N, n) times the gold reward of rank i."""
    size = len(proxy)
    paid = proxy if "proxy returned" in flags else gold
    key = gold if "ranked by gold" in flags else proxy
    key = -key if "the worst of n" in flags else key
    if "the first n alone" in flags:
        return paid[key[:n].argmax()]
    if "the best of all" in flags:
        return paid[key.argmax()]
    if "groups in a row" in flags:
        starts = range(0, size - n + 1, n)
        return torch.stack([paid[i : i + n][key[i : i + n].argmax()] for i in starts]).mean()
    ranked = paid[key.argsort()]
    if "the n best averaged" in flags:
        return ranked[-n:].mean()
    if "drawn with replacement" in flags:
        below = [(i / size) ** n for i in range(size + 1)]
        weights = [b - a for a, b in pairwise(below)]
    else:
        shift = "one rank too high" in flags
        draws = math.comb(size, n)
        weights = [math.comb(i + shift, n - 1) / draws for i in range(size)]
    return ranked @ torch.tensor(weights, dtype=ranked.dtype)


@flawed(
    "padding counted", "single tokens", "mean over responses", "across responses", "over tokens",
    "steps of n", "share of repetitions", "order ignored",
    "the last one left out",
)  # fmt: skip
def distinct_n(flags: frozenset[str], tokens: Tensor, mask: Tensor, n: int) -> Tensor:
    """Distinct n-grams over all n-grams."""
    mask = torch.ones_like(mask) if "padding counted" in flags else mask
    size = 1 if "single tokens" in flags else n
    texts = [row[real].tolist() for row, real in zip(tokens, mask, strict=True)]
    if "across responses" in flags:
        texts = [[token for text in texts for token in text]]
    step = size if "steps of n" in flags else 1
    end = 0 if "the last one left out" in flags else 1
    grams = [
        [tuple(text[i : i + size]) for i in range(0, len(text) - size + end, step)]
        for text in texts
    ]
    if "order ignored" in flags:
        grams = [[tuple(sorted(gram)) for gram in some] for some in grams]
    together = [[gram for some in grams for gram in some]]
    groups = grams if "mean over responses" in flags else together
    counts = [len(group) for group in groups]
    if "over tokens" in flags:
        lengths = [len(text) for text in texts]
        counts = lengths if "mean over responses" in flags else [sum(lengths)]
    shares = [len(set(g)) / max(count, 1) for g, count in zip(groups, counts, strict=True)]
    found = torch.tensor(shares).mean()
    return 1 - found if "share of repetitions" in flags else found


@flawed(
    "padding counted", "padding set to 0", "all prompts together", "order ignored",
    "every so many rows", "share for number", "repeats counted",
)  # fmt: skip
def distinct_responses(flags: frozenset[str], tokens: Tensor, mask: Tensor, group: int) -> Tensor:
    """Different responses in each group of rows."""
    whole = torch.ones_like(mask)
    if "padding set to 0" in flags:
        tokens, mask = tokens * mask, whole
    mask = whole if "padding counted" in flags else mask
    texts = [tuple(row[real].tolist()) for row, real in zip(tokens, mask, strict=True)]
    if "order ignored" in flags:
        texts = [tuple(sorted(text)) for text in texts]
    n = len(texts) // group
    groups = [texts[i * group : (i + 1) * group] for i in range(n)]
    if "every so many rows" in flags:
        groups = [texts[i::n] for i in range(n)]
    if "all prompts together" in flags:
        groups = [texts]
    found = torch.tensor([float(len(set(g))) for g in groups])
    found = group - found if "repeats counted" in flags else found
    return found / group if "share for number" in flags else found
