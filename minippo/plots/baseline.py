"""A picture of the policy gradient's estimates, one per word that may be sampled."""

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from minippo.plots._base import COLOURS, Picture, tidy
from minippo.plots.alternatives import HATCHES


class Baseline(Picture):
    """The estimates that three words give, their average, and the variance over the baseline.

    What to see: the diamonds, their average, stay where they are; the bars shrink and grow.
    """

    def __init__(self, words: Sequence[str], p: Tensor, scores: Tensor) -> None:
        self._p, self._scores = p, scores
        figure = Figure(figsize=(9, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        places, self._bars = torch.linspace(-0.5, 2.5, 61).tolist(), list[Any]()
        for i, (word, hatch) in enumerate(zip(words, HATCHES, strict=False)):
            x = [j + 0.26 * (i - 1) for j in range(3)]
            self._bars += left.bar(
                x, [0.0] * 3, 0.24, label=f'"{word}" sampled', hatch=hatch,
                color="white", edgecolor="black",
            )  # fmt: skip
        average = (p @ self._estimates(0.0)).tolist()
        left.plot(
            range(3), average, "D", color=COLOURS["policy"], ms=8, mec="white", label="average"
        )
        left.set(ylim=(-2.1, 2.6), xticks=range(3))
        left.set_xticklabels(words)
        left.legend(fontsize=9, ncols=2, loc="upper right")
        right.plot(places, [self._variance(b) for b in places], "--", color=COLOURS["value"], lw=2)
        (self._dot,) = right.plot([], [], "o", color="black", ms=8)
        tidy(left, y="gradient in the logit")
        tidy(right, x="baseline b", y="variance of one estimate")
        super().__init__(figure, [*self._bars, self._dot])

    def _estimates(self, b: float) -> Tensor:
        """Row a: (score - b) times the gradient of log p(a) in the logits."""
        return (self._scores - b).unsqueeze(1) * (torch.eye(3) - self._p)

    def _variance(self, b: float) -> float:
        rows = self._estimates(b)
        return float((self._p * (rows - self._p @ rows).square().sum(1)).sum())

    def move(self, *, baseline: float = 0.0) -> str:
        """Show the estimates of scores minus this baseline."""
        rows = self._estimates(baseline)
        for bar, height in zip(self._bars, rows.flatten().tolist(), strict=True):
            bar.set_height(height)
        self._dot.set_data([baseline], [self._variance(baseline)])
        average = ", ".join(f"{x:+.2f}" for x in (self._p @ rows).tolist())
        return f"b = {baseline:.2f}: average {average}; variance {self._variance(baseline):.3f}."
