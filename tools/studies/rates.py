"""Which learning rate? `python tools/studies/rates.py ROWS.jsonl`, as in fields.py.

Rates a factor of three apart, constant and falling to 0, on the shipped model: gold on held-out
prompts after 24 rollouts of 64 responses, and the KL that it cost. Then the textbook sketch, 12
rollouts, at the ends of what is quoted for c2 and c3. The rows are not shipped.
"""

import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from studies.common import SEEDS, Row, judged, make_rows, ppo
from studies.fields import table

from minippo.models import load_policy
from minippo.ppo import PPOConfig

N_STEPS = 24
SIZE = {"rollout_size": 64, "minibatch_size": 32}
RATES: dict[str, dict[str, Any]] = {
    f"{rate:g}, {shape}": {"learning_rate": rate, "lam": 1.0, "total_steps": steps}
    for rate in (3e-4, 1e-4, 1e-3)
    for shape, steps in (("constant", None), ("falling", N_STEPS))
}
TEXTBOOK: dict[str, dict[str, Any]] = {
    "textbook": {},
    "textbook, renewed every rollout": {"reference_update_every": 1},
} | {
    f"textbook, c2 {c2:g}, c3 {c3:g}": {"entropy_coef": c2, "kl_loss_coef": c3}
    for c2, c3 in ((0.01, 0.01), (0.01, 0.1), (0.1, 0.01), (0.1, 0.1))
}


def run(variant: str, seed: int) -> Row:
    """Train and judge one variant."""
    make, n = (PPOConfig, N_STEPS) if variant in RATES else (PPOConfig.textbook, N_STEPS // 2)
    trainer = ppo(make(**SIZE, seed=seed, **(RATES | TEXTBOOK)[variant]), n)
    first, _ = load_policy("tiny-gpt2-sft")  # the sketch has renewed its reference
    return judged(trainer.policy, first.eval(), trainer.tokenizer, trainer.score)


def main(path: Path) -> None:
    """Make the missing rows, then print the tables: each row against the first."""
    for variants in (RATES, TEXTBOOK):
        make_rows(path, [{"variant": v, "seed": s} for v in variants for s in SEEDS], run)
        table(path, [*variants])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
