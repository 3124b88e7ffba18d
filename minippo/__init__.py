"""minippo: PPO for RLHF of language models, small enough to read in an hour.

Files are PPO, and folders teach it. Read the files in this order. The mathematics, re-exported
here, needs only torch and jaxtyping: `log_probs`, `masking`, `advantages`, `losses`, `kl`,
`alternatives`. Then come the data and the models (`responses`, `data`, `hub`, `models`), the stages
(`scores`, `rollout`, `sft`, `reward_model`) and the algorithm (`ppo`, `processes`, `checkpoint`,
`trainer`), each imported by its own name: `from minippo.trainer import PPOTrainer`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minippo.advantages import *
    from minippo.alternatives import *
    from minippo.kl import *
    from minippo.log_probs import *
    from minippo.losses import *
    from minippo.masking import *

__version__ = "0.1.0"

__all__ = [
    "AdaptiveKL", "FixedKL", "PenaltyKL", "best_of_n_kl", "bradley_terry_loss",
    "clip_is_active", "clipped_surrogate", "discounted_sum", "dpo_loss", "entropy", "exact_kl",
    "explained_variance", "gae", "group_advantages", "kl_k1", "kl_k2", "kl_k3",
    "leave_one_out_advantages", "length_adaptive_lambda", "masked_mean", "masked_var",
    "monte_carlo_returns", "penalty_surrogate", "probability_ratio", "reinforce_loss",
    "response_mean", "sequence_advantages", "sequence_log_prob", "sft_loss", "shape_rewards",
    "td_errors", "token_log_probs", "value_loss", "whiten",
]  # fmt: skip

_MATHEMATICS = ("log_probs", "masking", "advantages", "losses", "kl", "alternatives")
_WORLDS = {"world": "minippo.worlds.reviews", "enumerable": "minippo.worlds.enumerable"}

if not TYPE_CHECKING:  # a type checker that saw this would accept any name

    def __getattr__(name: str) -> object:
        """Load the mathematics, and torch with it, at first use: `minippo --help` needs neither."""
        if name in _WORLDS:
            return import_module(_WORLDS[name])
        if name not in __all__ and name not in _MATHEMATICS:
            raise AttributeError(f"module 'minippo' has no attribute {name!r}")
        for module in _MATHEMATICS:
            found = vars(import_module(f"minippo.{module}"))
            globals().update({public: found[public] for public in __all__ if public in found})
        return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MATHEMATICS, *_WORLDS})
