"""Mistakes about averages over real tokens."""

import torch
from torch import Tensor, where

from minippo.misconceptions import Misconception, flawed
from minippo.misconceptions.log_probs import CUT, HALF, _cut, _wide

LEAK = Misconception(
    "mask multiplied",
    "x * mask was used: NaN times 0 is NaN, so junk in the padding reaches the result.",
    "Is there a way to choose between two numbers without multiplying them?",
    "One NaN that a model wrote into padding ends the run.",
)


@flawed(
    Misconception(
        "padding counted",
        "The mean was taken over every slot, padding included.",
        "By how many tokens must the sum be divided, and which of them belong to it?",
        "The more padding a batch has, the smaller its loss and its gradient.",
        "PaLM-rlhf-pytorch; TRL's entropy, trl #2496",
        "Divide by the number of all slots, padding included (the sum runs over real tokens).",
    ),
    Misconception(
        "mean of the rows' means",
        "Each response was averaged by itself, and then the responses: a token of a short response "
        "weighs more.",
        "Does every real token weigh the same in yours?",
        source="verl's seq-mean-token-mean; verl #593",
        convention="Average each row over its real tokens, then average the rows.",
    ),
    Misconception(
        "sum instead of mean",
        "The sum over the real tokens was returned.",
        "What happens to yours when the batch doubles?",
        "The step grows with the batch and with the length of the responses.",
        convention="Return the sum over the real tokens, and not their mean.",
    ),
    Misconception(
        "divided by the batch",
        "The sum was divided by the number of rows, and not of real tokens.",
        "How many numbers were added?",
        source="verl's seq-mean-token-sum",
        convention="Divide the sum over the real tokens by the number of rows.",
    ),
    Misconception(
        "padding in the sum",
        "The sum ran over every slot, though it was divided by the number of real tokens.",
        "How many numbers were added, and by how many was the sum divided?",
        "Whatever a model wrote into padding moves the mean.",
    ),
    LEAK,
    Misconception(
        "mask turned round",
        "The mean runs over the padding: True was taken for padding.",
        "True means a real token here.",
    ),
    HALF,
    CUT,
)
def masked_mean(flags: frozenset[str], x: Tensor, mask: Tensor) -> Tensor:
    """Sum over the real tokens, divided by their number."""
    x = _wide(x, flags)
    mask = ~mask if "mask turned round" in flags else mask
    kept = x * mask if LEAK.name in flags else where(mask, x, 0.0)
    kept = x if "padding in the sum" in flags else kept
    count: Tensor | int = mask.sum()
    if "padding counted" in flags:
        count = mask.numel()
    if "divided by the batch" in flags:
        count = len(mask)
    if "sum instead of mean" in flags:
        count = 1
    mean = kept.sum() / count
    if "mean of the rows' means" in flags:
        mean = (kept.sum(1) / mask.sum(1)).mean()
    return _cut(mean, flags)


@flawed(
    Misconception(
        "Bessel's correction",
        "The variance was divided by n - 1 and not by n.",
        "Which of the two variances is asked for, and which is torch's default?",
        source="TRL, verl: their convention",
        convention="Use the sample variance: divide by n - 1 (Bessel's correction).",
    ),
    Misconception(
        "padding counted",
        "Mean and variance were taken over every slot, padding included.",
        "Which numbers may decide what the average is?",
        "Advantages move with the amount of padding in the batch.",
        "trlX: whitening over pads",
    ),
    Misconception(
        "padding not zero",
        "The padding was shifted and scaled along, and is no longer zero.",
        "What must every slot under the mask be in the end?",
        "In GAE the padding then leaks into real tokens.",
        "legacy TRL's whiten_rewards",
    ),
    Misconception(
        "mean kept",
        "The mean was added back, or never removed.",
        "What is the mean of whitened numbers?",
        "Where all scores are good, every token is pushed up, and few are told from others.",
        "torchtune's whiten, whose flag means the opposite",
        "Keep the mean: change the scale only.",
    ),
    Misconception(
        "variance instead of its root",
        "It was divided by the variance and not by the standard deviation.",
        "What is the unit of a variance?",
    ),
    Misconception(
        "each row by itself",
        "Each response got a mean and a scale of its own.",
        "Whiten once, over all real tokens of the batch.",
        "Good and bad responses become alike: their difference is what the mean removes.",
        convention="Whiten each row by its own mean and standard deviation.",
    ),
    Misconception(
        "scale forgotten",
        "Only the mean was removed.",
        "What is the variance of whitened numbers?",
        convention="Only remove the mean: do not divide by the standard deviation.",
    ),
    LEAK,
    HALF,
)
def whiten(flags: frozenset[str], x: Tensor, mask: Tensor, *, keep_mean: bool = False) -> Tensor:
    """(x - mean) / sqrt(variance + 1e-8) over the real tokens; zero on padding."""
    x = _wide(x, flags)
    clean = x if LEAK.name in flags else where(mask, x, 0.0)
    counted = torch.ones_like(mask) if "padding counted" in flags else mask
    dims = (1,) if "each row by itself" in flags else (0, 1)

    def kept(y: Tensor) -> Tensor:
        return y * counted if LEAK.name in flags else where(counted, y, 0.0)

    n = counted.sum(dims, keepdim=True)
    mean = kept(clean).sum(dims, keepdim=True) / n
    squares = kept(clean - mean) ** 2
    bessel = int("Bessel's correction" in flags)  # one token alone: 0 / 0
    variance = squares.sum(dims, keepdim=True) / (n - bessel)
    scale = (variance + 1e-8) ** (-1.0 if "variance instead of its root" in flags else -0.5)
    if "scale forgotten" in flags:
        scale = torch.ones_like(scale)
    white = ((x if "padding not zero" in flags else clean) - mean) * scale
    if keep_mean or "mean kept" in flags:
        white = white + mean
    return white if "padding not zero" in flags else where(mask, white, 0.0)
