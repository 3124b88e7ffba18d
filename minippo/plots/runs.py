"""Pictures of whole runs."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from minippo.plots._base import COLOURS, tidy


def training_run(history: Sequence[Mapping[str, float]], *, title: str = "") -> Figure:
    """Score, KL, entropy, clip fraction, value loss and explained variance by step of a PPO run.

    What to see: the score rises while the KL to the reference is paid for; the clip fraction
    stays well below one half; entropy falls slowly, not to zero.
    """
    panels = [
        ("score", "score", "reward", "-"),
        ("kl", "KL to reference\n(nats per response)", "kl", "--"),
        ("entropy", "entropy\n(nats per token)", "entropy", "-."),
        ("clip_fraction", "clip fraction", "policy", "-"),
        ("value_loss", "value loss", "value", "--"),
        ("explained_variance", "explained variance", "value", "-."),
    ]
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    figure.suptitle(title)
    steps = [int(stats["step"]) for stats in history]
    for axes, (name, label, colour, style) in zip(
        figure.subplots(2, 3, sharex=True).flat, panels, strict=True
    ):
        axes.plot(steps, [stats[name] for stats in history], style, color=COLOURS[colour], lw=2)
        tidy(axes, y=label)
    for axes in figure.axes[3:]:
        axes.set_xlabel("PPO step")
    return figure
