"""A picture of the combined loss: the effect of each term on the logits of one token."""

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from minippo import clipped_surrogate, entropy, kl_k2, probability_ratio
from minippo.plots._base import COLOURS, Picture, tidy

WORDS = ("good", "fine", "bad", "odd", "!")
Z = torch.tensor([0.8, 0.5, 0.0, -0.6, -1.2], dtype=torch.float64)  # the policy's logits
REFERENCE = torch.tensor([0.0, 0.5, 0.4, -0.2, -0.8], dtype=torch.float64)
CHOSEN = 0  # "good" was sampled
REACHES = (0.1, 0.5, 1.7)  # of the axis
TERMS = (("policy", "policy"), ("entropy", "entropy"), ("KL to reference", "kl"))


def pushes(advantage: float, c2: float, c3: float) -> Tensor:
    """[3, vocab]: minus each term's gradient in the logits, where descent pushes them."""
    z = Z.clone().requires_grad_()
    log_p = z.log_softmax(-1)[CHOSEN]
    ratio = probability_ratio(log_p, log_p.detach())  # the first minibatch: the ratio is 1
    terms = (
        clipped_surrogate(ratio, torch.full_like(ratio, advantage), 0.2),
        -c2 * entropy(z),
        c3 * kl_k2(log_p, REFERENCE.log_softmax(-1)[CHOSEN]),
    )
    return torch.stack([-torch.autograd.grad(term, z, retain_graph=True)[0] for term in terms])


class CombinedLoss(Picture):
    """Bars of the push on each logit by the policy term, the entropy bonus and the KL."""

    def __init__(self) -> None:
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        axes = figure.subplots()
        tidy(axes, x="token", y="push on its logit")
        axes.set(xlim=(-0.6, 4.6))
        axes.set_xticks(range(5), [*(f'"{word}"' for word in WORDS)])
        axes.axhline(0, color="black", lw=0.8)
        self._bars = list[Any]()
        for i, ((label, symbol), hatch) in enumerate(zip(TERMS, ("", "..", "//"), strict=True)):
            places = [t + 0.24 * (i - 1) for t in range(5)]
            self._bars += axes.bar(
                places, [0.0] * 5, 0.22, label=label, zorder=3, hatch=hatch,
                color=COLOURS[symbol], edgecolor="black",
            )  # fmt: skip
        (self._sum,) = axes.plot([], [], "D", ms=8, mfc="white", mec="black", label="sum", zorder=4)
        axes.legend(loc="upper right", fontsize=9, ncols=4)
        super().__init__(figure, [*self._bars, self._sum])

    def move(self, *, advantage: float = 1.0, c2: float = 0.1, c3: float = 0.1) -> str:
        """Show the pushes for this advantage and these coefficients; "good" was sampled."""
        table = pushes(advantage, c2, c3)
        for bar, x in zip(self._bars, table.flatten().tolist(), strict=True):
            bar.set_height(x)
        self._sum.set_data(range(5), table.sum(0).numpy())
        longest = max(float(x.abs().max()) for x in (table, table.sum(0)))
        reach = next((x for x in REACHES if longest < 0.7 * x), REACHES[-1])
        if self.figure.axes[0].get_ylim()[1] != reach:  # the axis follows: small pushes are seen
            self.figure.axes[0].set_ylim(-reach, reach)
            self._background = None
        policy, bonus, kl = (x + 0.0 for x in table[:, CHOSEN].tolist())
        parts = f"policy {policy:+.2f}, entropy {bonus:+.2f}, KL {kl:+.2f}"
        settings = f"A = {advantage:+.2f}, c2 = {c2:.2f}, c3 = {c3:.2f}"
        total = policy + bonus + kl
        return f'{settings}: the logit of "good" is pushed by {total:+.2f} ({parts}).'


def combined_loss(*, advantage: float = 1.0, c2: float = 0.1, c3: float = 0.1) -> Figure:
    """Plot how policy loss, entropy bonus (c2) and KL in the loss (c3) push one token's logits.

    Five tokens; "good" was sampled, at ratio 1, and the policy already likes it more than the
    reference does. c1 does not appear: the value loss has no gradient in the logits; it moves the
    value head and the trunk. What to see: with c2 = c3 = 0 the push is the policy gradient, the
    advantage times one-hot minus probabilities; the bonus pushes down what is likely; the KL pushes
    back towards the reference.
    """
    picture = CombinedLoss()
    picture.move(advantage=advantage, c2=c2, c3=c3)
    return picture.figure


def combined_loss_panels(
    settings: Sequence[tuple[float, float, float]] = (
        (1.0, 0.0, 0.0), (1.0, 0.5, 0.0), (1.0, 0.0, 0.5), (-1.0, 0.0, 0.0)
    ),
) -> Figure:  # fmt: skip
    """Plot the summed push for several (A, c2, c3).

    What to see: bonus and KL both work against an overconfident policy, each in its own way.
    """
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    panels = figure.subplots(1, len(settings), sharey=True)
    for axes, (advantage, c2, c3) in zip(panels, settings, strict=True):
        axes.bar(range(5), pushes(advantage, c2, c3).sum(0).numpy(), color=COLOURS["policy"])
        axes.axhline(0, color="black", lw=0.8)
        axes.set_xticks(range(5), WORDS, rotation=45)
        axes.set_title(f"A = {advantage:+g}, c2 = {c2:g}, c3 = {c3:g}", fontsize=10)
        tidy(axes)
    figure.axes[0].set_ylabel("push on the logit")
    return figure
