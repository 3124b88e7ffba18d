"""What a lesson asks of a model: less of a large one, and less exact sums."""

import torch
from torch import nn

SMALL = 4e6  # parameters: a model up to this size runs a lesson as it is written


def fewer(n: int, policy: nn.Module, least: int = 2) -> int:
    """Return how many of `n` steps, runs or responses a lesson asks of this model.

    All `n` up to four million parameters, then fewer in proportion to the size, at least `least`:
    a lesson takes a minute with the shipped model, and half a processor minute to six with one of
    135 million (docs/real_models.md).
    """
    size = sum(p.numel() for p in policy.parameters())
    return max(min(n, least), min(n, round(n * SMALL / size)))


def rounding(policy: nn.Module) -> float:
    """Return how far two log-probs of one token may be apart by rounding alone, in nats.

    100 units of the weights' precision for each layer: 5e-5 for the shipped model in float32, 4e-4
    for 30 layers.
    """
    weight = next(policy.parameters())
    layers = sum(len(m) for m in policy.modules() if isinstance(m, nn.ModuleList))
    return 100 * torch.finfo(weight.dtype).eps * max(1, layers)
