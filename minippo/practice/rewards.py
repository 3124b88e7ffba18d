"""Adapters of scores: what PPO itself does not need."""

import math
from statistics import fmean, pvariance

from torch import Tensor

from minippo._validate import check_number, fail
from minippo.responses import Responses
from minippo.scores import Score, check_scores


def normalized_score(
    score: Score, *, mean: float | None = None, std: float | None = None, clip: float | None = None
) -> Score:
    """Scale scores to mean 0 and deviation 1: (score - mean) / std, then clip to +-clip.

    If given, `mean` and `std` are fixed, as in lm-human-preferences, which measures them once on
    the first policy's responses. Otherwise they are running estimates over all scores so far,
    the current batch included (TRL 0.11's `use_score_scaling` and `use_score_norm`); these are not
    part of a checkpoint.

    Args:
        score: a score function with one number per response.
        mean: the mean to subtract; None (and then std is None): a running one.
        std: the divisor, above 0.
        clip: the largest absolute value of a result, in deviations; None: not clipped.
    """
    if (mean is None) != (std is None):
        fail("normalized_score", "mean and std", "be given together, or neither", (mean, std))
    if mean is not None and std is not None:
        check_number("normalized_score", -math.inf, mean=mean)
        check_number("normalized_score", 0, above=True, std=std)
    if clip is not None:
        check_number("normalized_score", 0, above=True, clip=clip)
    n, middle, spread = 0, mean or 0.0, std or 0.0

    def normalized(responses: Responses) -> Tensor:
        nonlocal n, middle, spread
        scores = check_scores(score(responses), responses)
        if scores.dim() == 2:
            fail("normalized_score", "score", "return one number per response", "one per token")
        if mean is None:  # Chan et al. 1979: what a batch adds to mean and variance
            batch, k, seen = scores.tolist(), len(scores), n + len(scores)
            off = fmean(batch) - middle
            spread = (n * spread**2 + k * pvariance(batch) + off**2 * n * k / seen) / seen
            n, middle, spread = seen, middle + off * k / seen, math.sqrt(spread)
        result = (scores - middle) / (spread or 1.0)  # all equal so far: no scale
        return result if clip is None else result.clamp(-clip, clip)

    return normalized
