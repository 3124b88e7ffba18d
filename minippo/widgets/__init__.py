"""Explorers: a picture from `plots`, some sliders, and one sentence that says what is shown.

They use only core ipywidgets (7.7 and 8), so JupyterLab, Notebook 7, VS Code and Colab can show
them. There is no mathematics here: a slider moves a picture, and the picture calls minippo's
functions. Most have a `_panels` twin in `plots` for readers without a kernel.
"""

from minippo.widgets._explorer import Explorer, Question, ask
from minippo.widgets.bugs import guess_the_bug
from minippo.widgets.compare import Comparison, Share, Table, compare, compare_panels
from minippo.widgets.dashboard import Dashboard, dashboard
from minippo.widgets.explorers import (
    EXPLORERS,
    baseline,
    clip_or_penalty,
    clipping,
    combined_loss,
    credit,
    frontier,
    kl_controller,
    kl_two_ways,
    next_token,
    over_optimisation,
    pipeline,
    ppo_step,
    token_microscope,
    training_run,
)
from minippo.widgets.own_text import own_text
from minippo.widgets.replay import replay

__all__ = [
    "EXPLORERS", "Comparison", "Dashboard", "Explorer", "Question", "Share", "Table", "ask",
    "baseline", "clip_or_penalty", "clipping", "combined_loss", "compare", "compare_panels",
    "credit", "dashboard", "frontier", "guess_the_bug", "kl_controller", "kl_two_ways",
    "next_token", "over_optimisation", "own_text", "pipeline", "ppo_step", "replay",
    "token_microscope", "training_run",
]  # fmt: skip
