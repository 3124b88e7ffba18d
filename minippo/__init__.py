"""minippo: PPO for RLHF of language models, small enough to read in an hour.

Read the modules in this order. The mathematics, re-exported here, needs torch and jaxtyping alone:
`log_probs`, `masking`, `advantages`, `losses`, `kl`, `alternatives`. Then the things (`data`,
`world`, `models`), the stages (`rollout`, `sft`, `reward_model`) and the algorithm (`ppo`,
`trainer`), each imported by its own name: `from minippo.trainer import PPOTrainer`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minippo.advantages import (
        discounted_sum,
        explained_variance,
        gae,
        monte_carlo_returns,
        sequence_advantages,
        shape_rewards,
        td_errors,
    )
    from minippo.alternatives import (
        best_of_n_kl,
        dpo_loss,
        group_advantages,
        leave_one_out_advantages,
    )
    from minippo.kl import AdaptiveKL, FixedKL, PenaltyKL, exact_kl, kl_k1, kl_k2, kl_k3
    from minippo.log_probs import entropy, sequence_log_prob, token_log_probs
    from minippo.losses import (
        bradley_terry_loss,
        clip_is_active,
        clipped_surrogate,
        penalty_surrogate,
        probability_ratio,
        reinforce_loss,
        sft_loss,
        value_loss,
    )
    from minippo.masking import masked_mean, masked_var, whiten

__version__ = "0.1.0"

__all__ = [
    "AdaptiveKL",
    "FixedKL",
    "PenaltyKL",
    "best_of_n_kl",
    "bradley_terry_loss",
    "clip_is_active",
    "clipped_surrogate",
    "discounted_sum",
    "dpo_loss",
    "entropy",
    "exact_kl",
    "explained_variance",
    "gae",
    "group_advantages",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "leave_one_out_advantages",
    "masked_mean",
    "masked_var",
    "monte_carlo_returns",
    "penalty_surrogate",
    "probability_ratio",
    "reinforce_loss",
    "sequence_advantages",
    "sequence_log_prob",
    "sft_loss",
    "shape_rewards",
    "td_errors",
    "token_log_probs",
    "value_loss",
    "whiten",
]

_MATHEMATICS = ("log_probs", "masking", "advantages", "losses", "kl", "alternatives")

if not TYPE_CHECKING:  # a type checker that saw this would believe in any name

    def __getattr__(name: str) -> object:
        """Load the mathematics, and torch with it, at first use: `minippo --help` needs none."""
        if name not in __all__ and name not in _MATHEMATICS:
            raise AttributeError(f"module 'minippo' has no attribute {name!r}")
        for module in _MATHEMATICS:
            found = vars(import_module(f"minippo.{module}"))
            globals().update({public: found[public] for public in __all__ if public in found})
        return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MATHEMATICS})
