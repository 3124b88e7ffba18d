"""Pictures: numbers in, matplotlib figures out; nothing here calls `plt.show()`.

Each picture is one function, usable on its own; `show` puts it into a notebook with its text. A
`_panels` twin shows several settings side by side for readers without a kernel; `widgets` has an
explorer of the same name.
"""

from minippo.plots._base import COLOURS, STYLES, Picture, Shown, folded, png, show, tidy
from minippo.plots.alternatives import grouped_bars, preference_loss
from minippo.plots.baseline import Baseline
from minippo.plots.bugs import (
    UNDECIDED,
    BugCurves,
    Rows,
    Symptom,
    bug_curves_panels,
    bug_scores,
    logged_and_true_kl,
    symptom_table,
    symptoms,
)
from minippo.plots.clipping import (
    ClipOrPenalty,
    Clipping,
    clip_or_penalty,
    clip_or_penalty_panels,
    clipping,
    clipping_panels,
    token_ratios,
)
from minippo.plots.combined_loss import CombinedLoss, combined_loss, combined_loss_panels
from minippo.plots.controllers import KLController
from minippo.plots.credit import Credit, credit_panels, credit_rows, surprises, token_truth
from minippo.plots.diagrams import Pipeline, PPOStep, pipeline, ppo_step, ppo_step_alt
from minippo.plots.distributions import (
    KLTwoWays,
    NextToken,
    darts,
    kl_estimators,
    next_token_panels,
)
from minippo.plots.microscope import (
    QUANTITIES,
    TokenMicroscope,
    token_microscope,
    token_microscope_panels,
)
from minippo.plots.replay import Replay, replay, replay_panels
from minippo.plots.rewards import (
    Frontier,
    OverOptimisation,
    Points,
    frontier,
    over_optimisation,
    over_optimisation_panels,
)
from minippo.plots.runs import History, TrainingRun, health, training_run
from minippo.plots.seeds import each_seed, over_seeds
from minippo.plots.simple import bars, lines, two_lines

__all__ = [
    "COLOURS", "QUANTITIES", "STYLES", "UNDECIDED", "Baseline", "BugCurves", "ClipOrPenalty",
    "Clipping", "CombinedLoss", "Credit", "Frontier", "History", "KLController", "KLTwoWays",
    "NextToken", "OverOptimisation", "PPOStep", "Picture", "Pipeline", "Points", "Replay", "Rows",
    "Shown", "Symptom", "TokenMicroscope", "TrainingRun", "bars", "bug_curves_panels", "bug_scores",
    "clip_or_penalty", "clip_or_penalty_panels", "clipping", "clipping_panels", "combined_loss",
    "combined_loss_panels", "credit_panels", "credit_rows", "darts", "each_seed", "folded",
    "frontier", "grouped_bars", "health", "kl_estimators", "lines", "logged_and_true_kl",
    "next_token_panels", "over_optimisation", "over_optimisation_panels", "over_seeds", "pipeline",
    "png", "ppo_step", "ppo_step_alt", "preference_loss", "replay", "replay_panels", "show",
    "surprises", "symptom_table", "symptoms", "tidy", "token_microscope", "token_microscope_panels",
    "token_ratios", "token_truth", "training_run", "two_lines",
]  # fmt: skip
