"""Does a field of PPOConfig help in the shipped world? `python tools/studies/fields.py ROWS.jsonl`.

Each variant is compared with the default on the same seeds: gold on held-out prompts after 12
rollouts of 64 responses. The rows are not shipped; what they say is printed as a table.
"""

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from studies.common import SEEDS, Row, judged, make_rows, ppo

from minippo.data import read_jsonl
from minippo.ppo import PPOConfig

SIZE = {"rollout_size": 64, "minibatch_size": 32}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "dual_clip 3": {"dual_clip": 3.0},
    "loss_mean responses": {"loss_mean": "responses"},
    "loss_mean constant": {"loss_mean": "constant"},
    "lam_critic 1": {"lam_critic": 1.0},
    "lam_alpha 0.77": {"lam_alpha": 0.77},
    "critic_warmup 2": {"critic_warmup": 2},
}
T = 2.776  # Student's t: 97.5 % at 4 degrees of freedom


def run(variant: str, seed: int) -> Row:
    """Train and judge one variant."""
    trainer = ppo(PPOConfig(**SIZE, seed=seed, **VARIANTS[variant]), 12)
    return judged(trainer.policy, trainer.reference, trainer.tokenizer, trainer.score)


def paired(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """The mean difference of five pairs, and half of its 95 % interval."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    return statistics.mean(differences), T * statistics.stdev(differences) / len(differences) ** 0.5


def table(path: Path, variants: Sequence[str]) -> None:
    """Print gold and KL of each variant, and their differences from the first one's."""
    rows = {tuple(row["case"].values()): row for row in read_jsonl(path)}
    for variant in variants:
        cells = [f"{variant:32}"]
        for name in ("gold", "kl"):
            ours, null = ([rows[v, s][name] for s in SEEDS] for v in (variant, variants[0]))
            cells.append(f"{name} {statistics.mean(ours):6.3f}")
            cells.append("({:+.3f} +- {:.3f})".format(*paired(ours, null)))
        print("  ".join(cells))


def main(path: Path) -> None:
    """Make the missing rows, then print the table."""
    make_rows(path, [{"variant": v, "seed": s} for v in VARIANTS for s in SEEDS], run)
    table(path, [*VARIANTS])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
