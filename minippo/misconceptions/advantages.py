"""Mistakes about credit."""

from torch import Tensor, stack, where, zeros_like

from minippo.misconceptions import Misconception, flawed


@flawed(
    Misconception(
        "off by one at EOS",
        "The value of the slot after the last real token takes part: its TD error uses a value "
        "that belongs to padding.",
        "What is the value of a state in which the episode is over?",
        source="lm-human-preferences' descendants that bootstrap across EOS",
    ),
)
def gae(
    flags: frozenset[str],
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    bootstrap: Tensor | None = None,
) -> Tensor:
    """By the recursion A_t = delta_t + gamma * lam * A_(t+1), from the last token to the first."""
    leak = "off by one at EOS" in flags
    real = mask.bool()
    clean = values if leak else where(real, values, 0.0)
    advantages, after = [], zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        last = t + 1 == rewards.shape[1]
        next_value = zeros_like(after) if last else clean[:, t + 1]
        if bootstrap is not None:
            ends = real[:, t] & (~real[:, t + 1] if not last else real[:, t])
            next_value = where(ends, bootstrap, next_value)
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        after = where(real[:, t], delta + gamma * lam * after, 0.0)
        advantages.insert(0, after)
    return stack(advantages, 1)
