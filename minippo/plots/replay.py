"""A recorded run, step by step: its curves and what the policy wrote."""

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from minippo.plots._base import COLOURS, Picture, drawable, tidy
from minippo.record import Run

PANELS = (
    ("score", "score", "reward"),
    ("kl", "KL to reference (nats)", "kl"),
    ("entropy", "entropy (nats)", "entropy"),
    ("clip_fraction", "clip fraction", "policy"),
)
WIDTH, LINES = 92, 3  # of an answer: characters per line, lines
CURVES, PROMPT, ANSWER = 2.75, 0.28, 0.68  # heights in inches
FAR = 50.0  # nats: if exceeded, the KL axis is logarithmic from 10 on


class Replay(Picture):
    """The curves of one or two runs, with a mark at a step, and the answers at that step."""

    def __init__(self, run: Run, other: Run | None = None) -> None:
        self._runs = [run] if other is None else [run, other]
        height = CURVES + PROMPT + ANSWER * len(self._runs)
        figure = Figure(figsize=(9, height))
        axes = _curves(figure, self._runs)
        style: dict[str, Any] = {"color": "black", "zorder": 4}
        self._cursors = [panel.axvline(0, lw=1, ls=":", **style) for panel in axes]
        self._dots = [
            [panel.plot([], [], marker, ms=6, **style)[0] for panel in axes]
            for _, marker in zip(self._runs, "os", strict=False)
        ]
        tops = [CURVES, *(CURVES + PROMPT + ANSWER * i for i in range(len(self._runs)))]
        self._texts = [_text(figure, "", top) for top in tops]
        dots = [dot for row in self._dots for dot in row]
        super().__init__(figure, [*self._cursors, *dots, *self._texts])

    @property
    def n_steps(self) -> int:
        """Number of steps of the longer run."""
        return max(len(run.history) for run in self._runs)

    def move(self, *, step: int = 0, prompt: int = 0) -> str:
        """Show the runs after `step` steps and their answers to prompt number `prompt`.

        A run that ended earlier stays at its last step.
        """
        for cursor in self._cursors:
            cursor.set_xdata([step, step])
        asked = self._runs[0].prompts[prompt] if self._runs[0].prompts else ""
        self._texts[0].set_text(_lines(f"Prompt: {asked}")[0])
        said = []
        for run, dots, text in zip(self._runs, self._dots, self._texts[1:], strict=True):
            now = min(step, len(run.history))
            for (name, *_), dot in zip(PANELS, dots, strict=True):
                dot.set_data(*(([now], [run.history[now - 1][name]]) if now else ([], [])))
            answer = _answer(run, asked, now)
            text.set_text("\n".join(_lines(f"{run.name}, step {now}: {answer}")))
            said.append(f"{run.name}, {_numbers(run, now)}; {answer}")
        return f"Step {step}: {' | '.join(said)}."


def replay(run: Run, other: Run | None = None, *, step: int = 0, prompt: int = 0) -> Figure:
    """Plot one or two recorded runs at a step: score, KL, entropy, clip fraction, an answer.

    What to see: which curve moves first, and whether the text is still language there. Round dots
    and solid lines: `run`; squares and dashed lines: `other`.
    """
    picture = Replay(run, other)
    picture.move(step=step, prompt=prompt)
    return picture.figure


def replay_panels(run: Run, *, steps: Sequence[int] | None = None, prompt: int = 0) -> Figure:
    """Plot a run's curves and, below, its answers to one prompt at several steps.

    `steps` defaults to the first, a middle and the last step. What to see: what the curves mean
    for the text.
    """
    last = len(run.history)
    steps = [0, last // 3, last] if steps is None else steps
    figure = Figure(figsize=(9, CURVES + PROMPT + ANSWER * len(steps)))
    axes = _curves(figure, [run])
    asked = run.prompts[prompt] if run.prompts else ""
    _text(figure, _lines(f"Prompt: {asked}")[0], CURVES)
    for i, step in enumerate(steps):
        for panel in axes:
            panel.axvline(step, color="black", lw=1, ls=":")
        lines = _lines(f"step {step}: {_answer(run, asked, step)}")
        _text(figure, "\n".join(lines), CURVES + PROMPT + ANSWER * i)
    return figure


def _text(figure: Figure, text: str, top: float) -> Text:
    """Write text `top` inches below the figure's upper edge."""
    y = 1 - top / figure.get_size_inches()[1]
    style: dict[str, Any] = {"va": "top", "fontsize": 10, "linespacing": 1.35, "parse_math": False}
    return figure.text(0.06, y, text, **style)


def _curves(figure: Figure, runs: Sequence[Run]) -> list[Axes]:
    """Make the panels of the curves in the upper part."""
    height = figure.get_size_inches()[1]
    axes = list(figure.subplots(1, len(PANELS)))
    figure.subplots_adjust(
        left=0.06, right=0.985, top=1 - 0.35 / height, bottom=1 - 2.25 / height, wspace=0.3
    )
    n_steps = max(len(run.history) for run in runs)
    for panel, (name, title, colour) in zip(axes, PANELS, strict=True):
        for run, style in zip(runs, ("-", "--"), strict=False):
            steps = [stats["step"] for stats in run.history]
            values = [stats[name] for stats in run.history]
            panel.plot(steps, values, style, color=COLOURS[colour], lw=1.8, label=run.name)
            if name == "kl" and max(filter(math.isfinite, values), default=0.0) > FAR:
                panel.set_yscale("symlog", linthresh=10)
                panel.set_yticks([0, 10, 100], ["0", "10", "100"])
        tidy(panel, x="PPO step")
        panel.set_title(title, fontsize=10)
        panel.set_xlim(-0.02 * n_steps, 1.03 * n_steps)
    if len(runs) > 1:
        axes[0].legend(fontsize=9, loc="best")
    return axes


def _numbers(run: Run, step: int) -> str:
    if step == 0:
        return "before training"
    stats = run.history[step - 1]
    return (
        f"score {stats['score']:.2f}, KL {abs(stats['kl']):.1f} nats, "
        f"entropy {stats['entropy']:.2f}, clip fraction {stats['clip_fraction']:.2f}"
    )


def _answer(run: Run, prompt: str, step: int) -> str:
    record = run.response(prompt, step)
    if record is None:
        return "no answer recorded"
    words = "".join(record["tokens"]).strip()
    return f"“{words}” (score {record['score']:.2f})"


def _lines(text: str) -> list[str]:
    lines = textwrap.wrap(drawable(text), WIDTH)
    return lines[:LINES] if len(lines) <= LINES else [*lines[: LINES - 1], f"{lines[LINES - 1]} …"]
