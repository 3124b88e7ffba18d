"""One explorer per picture."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets
import numpy as np
from torch import Tensor

from minippo import plots
from minippo.widgets._explorer import Asked, Explorer
from minippo.widgets.bugs import guess_the_bug


def _slider(
    label: str, value: float, low: float, high: float, step: float
) -> ipywidgets.FloatSlider:
    return ipywidgets.FloatSlider(
        value=value, min=low, max=high, step=step, description=label, readout_format=".2f",
        style={"description_width": "9em"}, layout={"width": "32em"},
    )  # fmt: skip


def _choice(label: str, options: Sequence[Any], value: Any) -> ipywidgets.SelectionSlider:
    return ipywidgets.SelectionSlider(
        options=list(options), value=value, description=label,
        style={"description_width": "9em"}, layout={"width": "32em"},
    )  # fmt: skip


def _places(low: float, high: float) -> list[float]:
    """Forty-one places from low to high, rounded up to hundredths."""
    return [float(x) for x in np.unique(np.ceil(np.linspace(low, high, 41) * 100) / 100)]


def baseline(
    words: Sequence[str], p: Tensor, scores: Tensor, *, question: Asked = None
) -> Explorer:
    """Subtract a number from the scores: three estimates of the gradient, and their variance."""
    controls = {"baseline": _slider("baseline b", 0.0, -0.5, 2.5, 0.1)}
    return Explorer("baseline", plots.Baseline(words, p, scores), controls, question=question)


def clipping(*, tokens: tuple[Tensor, Tensor] | None = None, question: Asked = None) -> Explorer:
    """Move epsilon, the advantage and one token's ratio over PPO-Clip's objective and slope.

    `tokens`: ratios and advantages of real tokens, drawn as ticks.
    """
    controls = {
        "epsilon": _slider("epsilon", 0.2, 0.0, 0.5, 0.05),
        "advantage": _slider("advantage A", 1.0, -1.5, 1.5, 0.25),
        "ratio": _slider("ratio p / p_old", 1.35, 0.05, 2.0, 0.05),
    }
    return Explorer(
        "clipping", plots.Clipping(*(tokens or (None, None))), controls, question=question
    )


def clip_or_penalty(*, question: Asked = None) -> Explorer:
    """PPO-Clip against PPO-Penalty: move epsilon, the penalty's coefficient and the advantage."""
    controls = {
        "epsilon": _slider("epsilon", 0.2, 0.0, 0.5, 0.05),
        "coef": _slider("coefficient", 1.0, 0.0, 8.0, 0.25),
        "advantage": _slider("advantage A", 1.0, -1.5, 1.5, 0.25),
    }
    return Explorer("clip_or_penalty", plots.ClipOrPenalty(), controls, question=question)


def next_token(
    logits: Tensor, words: Sequence[str], *, show_entropy: bool = True, question: Asked = None
) -> Explorer:
    """Move along a response and change the temperature: the next token's distribution.

    `logits` [time, vocab] and the vocabulary's `words` come from a model and its tokenizer. One
    row of logits has no position to choose.
    """
    controls: dict[str, Any] = {"temperature": _slider("temperature", 1.0, 0.1, 3.0, 0.1)}
    if len(logits) > 1:
        controls = {"position": _choice("position", range(len(logits)), 0)} | controls
    picture = plots.NextToken(logits, words, show_entropy=show_entropy)
    return Explorer("next_token", picture, controls, question=question)


def kl_two_ways(*, question: Asked = None) -> Explorer:
    """Move a policy away from its reference: KL in both directions, and k1, k2, k3."""
    controls = {
        "shift": _slider('shift to "good"', 1.5, 0.0, 4.0, 0.25),
        "sharpen": _slider("sharpen", 1.0, 0.25, 3.0, 0.25),
    }
    return Explorer("kl_two_ways", plots.KLTwoWays(), controls, question=question)


def kl_controller(*, question: Asked = None) -> Explorer:
    """Set the controller's target and horizon against a policy that drifts."""
    horizon = _choice("horizon", [100, 200, 500, 1000, 2000, 5000, 10000], 1000)
    controls = {"target": _slider("target (nats)", 4.0, 1.0, 10.0, 0.5), "horizon": horizon}
    return Explorer("kl_controller", plots.KLController(), controls, question=question)


def credit(
    words: Sequence[str], rewards: Tensor, values: Tensor | None = None, *, question: Asked = None
) -> Explorer:
    """Change gamma and lambda for one response: which tokens the score reaches, how strongly.

    Without values: gamma and the returns alone.
    """
    controls = {"gamma": _slider("gamma", 1.0, 0.5, 1.0, 0.05)}
    if values is not None:
        controls["lam"] = _slider("lambda", 0.95, 0.0, 1.0, 0.05)
    picture = plots.Credit(words, rewards, values)
    return Explorer("credit", picture, controls, question=question)


def combined_loss(*, question: Asked = None) -> Explorer:
    """Weight policy loss, entropy bonus and KL, and see where each pushes the logits."""
    controls = {
        "advantage": _slider("advantage A", 1.0, -1.5, 1.5, 0.25),
        "c2": _slider("c2 (entropy)", 0.1, 0.0, 1.0, 0.05),
        "c3": _slider("c3 (KL)", 0.1, 0.0, 1.0, 0.05),
    }
    return Explorer("combined_loss", plots.CombinedLoss(), controls, question=question)


def training_run(history: plots.History, *, title: str = "", question: Asked = None) -> Explorer:
    """Move along a run: its seven curves at that step, and which are unhealthy.

    `history` as in `PPOTrainer.history`.
    """
    picture = plots.TrainingRun(history, title=title)
    controls = {"step": _choice("step", picture.steps, picture.steps[-1])}
    return Explorer("training_run", picture, controls, question=question)


def token_microscope(records: Sequence[Mapping[str, Any]], *, question: Asked = None) -> Explorer:
    """Follow one response across iterations: its ratios, advantages, KLs or entropies.

    `records` from a recorded run: `record.load_run(path).records`.
    """
    picture = plots.TokenMicroscope(records)
    wide = {"style": {"description_width": "9em"}, "layout": {"width": "32em"}}
    controls: dict[str, Any] = {"step": _choice("step", picture.steps, picture.steps[-1])}
    for name, label, options in (
        ("quantity", "colour", picture.quantities),
        ("prompt", "prompt", picture.prompts),
    ):
        if len(options) > 1:
            controls[name] = ipywidgets.Dropdown(options=options, description=label, **wide)
    return Explorer("token_microscope", picture, controls, question=question)


def over_optimisation(
    kl: Sequence[float], proxy: Sequence[float], gold: Sequence[float], *, question: Asked = None
) -> Explorer:
    """Move along the KL: the reward paid, the reward meant, and the gap between them."""
    picture = plots.OverOptimisation(kl, proxy, gold)
    places = _places(*picture.span)
    controls = {"kl": _choice("KL (nats)", places, places[0])}
    return Explorer("over_optimisation", picture, controls, question=question)


def frontier(
    methods: Mapping[str, Sequence[plots.Points]], *, reward: str = "gold", question: Asked = None
) -> Explorer:
    """Set a KL budget: the best each method achieves within it.

    `methods`: name -> per setting the (kl, reward) of each seed.
    """
    picture = plots.Frontier(methods, reward=reward)
    places = _places(*picture.span)
    controls = {"budget": _choice("KL budget (nats)", places, places[-1])}
    return Explorer("frontier", picture, controls, question=question)


def pipeline(*, question: Asked = None) -> Explorer:
    """Walk through the three stages, box by box."""
    controls = {"lit": _choice("box", list(plots.Pipeline.BOXES), "base")}
    return Explorer("pipeline", plots.Pipeline(), controls, question=question)


def ppo_step(*, question: Asked = None) -> Explorer:
    """Walk through one PPO step, box by box."""
    controls = {"lit": _choice("box", list(plots.PPOStep.BOXES), "prompts")}
    return Explorer("ppo_step", plots.PPOStep(), controls, question=question)


EXPLORERS: dict[str, Callable[..., Explorer]] = {
    "baseline": baseline,
    "clipping": clipping,
    "clip_or_penalty": clip_or_penalty,
    "next_token": next_token,
    "kl_two_ways": kl_two_ways,
    "kl_controller": kl_controller,
    "credit": credit,
    "combined_loss": combined_loss,
    "training_run": training_run,
    "token_microscope": token_microscope,
    "over_optimisation": over_optimisation,
    "frontier": frontier,
    "pipeline": pipeline,
    "ppo_step": ppo_step,
    "guess_the_bug": guess_the_bug,
}
