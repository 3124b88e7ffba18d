"""Mistakes about what a watcher of reward hacking computes."""

import math
from itertools import pairwise

import torch
from torch import Tensor

from minippo.misconceptions import Misconception, flawed


@flawed(
    Misconception(
        "ranked by gold",
        "The responses were put in the order of their gold reward.",
        "Who chooses among n responses: the judge, or the truth that it cannot see?",
        "Gold can only rise with n: no judge ever looks over-optimised.",
    ),
    Misconception(
        "proxy returned",
        "The mean proxy of the chosen responses came back, and not their gold.",
        "What does the judge see of a response, and what is asked of it?",
        "Proxy rises with n whatever the judge is worth.",
    ),
    Misconception(
        "the first n alone",
        "The best of the first n responses was taken, and the others were not used.",
        "How many sets of n can be drawn from N responses?",
        "The mean is right, but one draw's noise is as large as that of a single response.",
    ),
    Misconception(
        "groups in a row",
        "The responses were cut into groups of n, and the best of each counts.",
        "How many sets of n can be drawn from N responses, and how many of them are yours?",
        "The mean is right; at n = N / 2 it rests on two responses.",
    ),
    Misconception(
        "the best of all",
        "The best of all N responses was returned, whatever n is.",
        "What should come back at n = 1?",
    ),
    Misconception(
        "the n best averaged",
        "The n responses with the highest proxy were averaged.",
        "What should come back at n = 1: the best response, or the average one?",
        "It falls from the best at n = 1 to the mean at n = N: the wrong way round.",
    ),
    Misconception(
        "the worst of n",
        "The lowest proxy was chosen.",
        "In which order does argsort put them, and which rank has most sets below it?",
    ),
    Misconception(
        "drawn with replacement",
        "A response can be drawn twice: the weights are (i/N)^n - ((i-1)/N)^n.",
        "Can one response be among n twice?",
        "The mean is that of fewer than n different responses: too low at large n.",
        convention="Draw with replacement: weight i is (i/N)^n - ((i-1)/N)^n.",
    ),
    Misconception(
        "one rank too high",
        "The response of rank i got C(i, n - 1) sets: it was counted among those below it.",
        "How many responses are there below the lowest?",
        "The weights add up to more than 1.",
    ),
)
def best_of_n_mean(flags: frozenset[str], proxy: Tensor, gold: Tensor, n: int) -> Tensor:
    """Sum of C(i - 1, n - 1) / C(N, n) times the gold of rank i."""
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
    Misconception(
        "padding counted",
        "The n-grams run over the padding, too.",
        "What does the mask say?",
        "Padding is one token over and over: short responses look repetitive.",
    ),
    Misconception(
        "single tokens",
        "Tokens were counted, and not n-grams.",
        "What is a pair of tokens a member of: a list of tokens, or a list of pairs?",
    ),
    Misconception(
        "mean over responses",
        "Each response's own share was averaged over the responses.",
        "If all responses are one and the same text, is that diverse?",
        "A policy that says one and the same varied sentence to everybody gets 1.",
        convention="Take the share within each response and average over the responses.",
    ),
    Misconception(
        "across responses",
        "The responses were put one after another: n-grams span two of them.",
        "Did the policy write the last token of one response before the first of the next?",
    ),
    Misconception(
        "over tokens",
        "The number of different n-grams was divided by the number of tokens.",
        "What is your value where all n-grams differ?",
        "It cannot reach 1 for n above 1.",
        "Li et al. 2016 (arXiv:1510.03055) scale by the number of tokens",
        "Divide by the number of real tokens, as Li et al. 2016 do.",
    ),
    Misconception(
        "steps of n",
        "The n-grams do not overlap.",
        "How many pairs of neighbours are there among four tokens?",
    ),
    Misconception(
        "share of repetitions",
        "One minus the share came back.",
        "What should a batch get in which nothing is said twice?",
        "The alarm rings at healthy texts.",
    ),
)
def distinct_n(flags: frozenset[str], tokens: Tensor, mask: Tensor, n: int) -> Tensor:
    """Different n-grams over n-grams."""
    mask = torch.ones_like(mask) if "padding counted" in flags else mask
    size = 1 if "single tokens" in flags else n
    texts = [row[real].tolist() for row, real in zip(tokens, mask, strict=True)]
    if "across responses" in flags:
        texts = [[token for text in texts for token in text]]
    step = size if "steps of n" in flags else 1
    grams = [
        [tuple(text[i : i + size]) for i in range(0, len(text) - size + 1, step)] for text in texts
    ]
    together = [[gram for some in grams for gram in some]]
    groups = grams if "mean over responses" in flags else together
    counts = [len(group) for group in groups]
    if "over tokens" in flags:
        lengths = [len(text) for text in texts]
        counts = lengths if "mean over responses" in flags else [sum(lengths)]
    shares = [len(set(g)) / max(count, 1) for g, count in zip(groups, counts, strict=True)]
    found = torch.tensor(shares).mean()
    return 1 - found if "share of repetitions" in flags else found
