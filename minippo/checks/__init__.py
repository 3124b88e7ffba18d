"""Is my function right, and if not, what did I do wrong? `checks.gae(my_gae)` tells you.

Right means: value and gradient equal a slow, independent definition's on cases generated to tell
mistakes apart. Known mistakes are named. `checks.solution("gae")` shows a right answer.
"""

import importlib
from collections.abc import Iterator, Mapping
from typing import ClassVar

from minippo.checks.advantages import gae, monte_carlo_returns, shape_rewards, td_errors
from minippo.checks.alternatives import dpo_loss, group_advantages, leave_one_out_advantages
from minippo.checks.engine.check import Check, show_solution
from minippo.checks.engine.result import Result, Solution
from minippo.checks.engine.variant import variant as make_variant
from minippo.checks.exercises import (
    accumulated_loss,
    calibration,
    combined_loss,
    effective_sample_size,
    entropy_bonus,
    first_ratio_error,
    fit_values,
    mean_minus_variance,
    optimal_policy,
    ppo_epochs,
    sequence_ratio,
    sft_epoch,
    token_truth,
)
from minippo.checks.hacking import best_of_n_mean, distinct_n, distinct_responses
from minippo.checks.kl import AdaptiveKL, exact_kl, kl_k1, kl_k2, kl_k3
from minippo.checks.log_probs import entropy, sample_tokens, sequence_log_prob, token_log_probs
from minippo.checks.losses import (
    bradley_terry_loss,
    clip_is_active,
    clipped_surrogate,
    learn,
    penalty_surrogate,
    probability_ratio,
    reinforce_loss,
    sft_loss,
    value_loss,
)
from minippo.checks.masking import masked_mean, whiten
from minippo.checks.practice import learning_rates, training_memory

_MATHEMATICS = (
    token_log_probs, sequence_log_prob, sample_tokens, entropy, masked_mean, whiten,
    bradley_terry_loss, probability_ratio, clipped_surrogate, clip_is_active, penalty_surrogate,
    value_loss, reinforce_loss, sft_loss, td_errors, gae, monte_carlo_returns, shape_rewards, kl_k1,
    kl_k2, kl_k3, exact_kl, AdaptiveKL, dpo_loss, group_advantages, leave_one_out_advantages,
    mean_minus_variance, sequence_ratio, calibration, learn, effective_sample_size, entropy_bonus,
    combined_loss, optimal_policy, best_of_n_mean, distinct_n, training_memory, learning_rates,
    accumulated_loss, first_ratio_error, token_truth, ppo_epochs, fit_values, sft_epoch,
    distinct_responses,
)  # fmt: skip
_WHOLE = ("response_mask", "ppo_loss", "ppo_update")  # these load transformers, so load on demand


class _Checks(Mapping[str, Check]):
    """Map function names to checks."""

    _known: ClassVar = {check.name: check for check in _MATHEMATICS}

    def __getitem__(self, name: str) -> Check:
        if name in _WHOLE:
            return getattr(importlib.import_module("minippo.checks.ppo"), name)
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter([*self._known, *_WHOLE])

    def __len__(self) -> int:
        return len(self._known) + len(_WHOLE)


CHECKS: Mapping[str, Check] = _Checks()


def __getattr__(name: str) -> Check:
    if name in _WHOLE:
        return CHECKS[name]
    raise AttributeError(f"module 'minippo.checks' has no attribute {name!r}")


def variant(name: str, *conventions: str) -> Check:
    """Return a check that requires other conventions: names of catalogued mistakes."""
    if name not in CHECKS:
        raise ValueError(f"variant: name must be one of {', '.join(CHECKS)}, got {name!r}.")
    return make_variant(CHECKS[name], conventions)


def solution(name: str) -> Solution:
    """Show a right answer once you have attempted the exercise, or asked twice."""
    if name not in CHECKS:
        raise ValueError(f"solution: name must be one of {', '.join(CHECKS)}, got {name!r}.")
    return show_solution(CHECKS[name])


__all__ = [*CHECKS, "CHECKS", "Check", "Result", "Solution", "solution", "variant"]
