"""Two box-and-arrow diagrams: the three stages of RLHF and one step of PPO.

A lesson lights its own box; the alternative text names what is lit and says what happens there.
With `have`, the boxes are a plan: what a student has built is filled, what is missing dashed.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from minippo._validate import fail
from minippo.plots._base import BAND, LINE, Picture
from minippo.plots._base import COLOURS as SYMBOLS

Lit = str | Sequence[str]
WIDE, HIGH = 0.82, 0.56  # a box, in columns and rows
QUIET = "#666666"
# Data (dashed) and boxes that combine several symbols have no colour.
COLOURS = SYMBOLS | {"data": "#555555", "mixed": "#555555"}


class Box(NamedTuple):
    """A box: column, row, words, the symbol that gives its colour, its sentence."""

    x: float
    y: float
    words: str
    symbol: str
    says: str


class Diagram(Picture):
    """Boxes in shaded bands, joined by arrows that run along rows and columns.

    A subclass defines boxes by name, arrows as corner points (column, row), and bands by name as
    (left, top, right, bottom, title).
    """

    SIZE: ClassVar[tuple[float, float]]
    LIMITS: ClassVar[tuple[float, float, float, float]]
    BOXES: ClassVar[Mapping[str, Box]]
    ARROWS: ClassVar[Sequence[Sequence[tuple[float, float]]]]
    BANDS: ClassVar[Mapping[str, tuple[float, float, float, float, str]]]
    NOTES: ClassVar[Mapping[str, tuple[float, float]]] = {}  # beside an arrow, at (left, bottom)

    def __init__(self) -> None:
        figure = Figure(figsize=self.SIZE)
        axes = figure.add_axes((0, 0, 1, 1))
        left, right, top, bottom = self.LIMITS
        axes.set(xlim=(left, right), ylim=(bottom, top))
        axes.axis("off")
        for x0, y0, x1, y1, title in self.BANDS.values():
            axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, color=BAND, lw=0, zorder=0))
            axes.text(x0 + 0.06, y0 + 0.06, title, fontsize=10, va="top", weight="bold", zorder=1)
        for note, (x, y) in self.NOTES.items():
            axes.text(x, y, note, fontsize=9, va="bottom", color=QUIET, zorder=1)
        for path in self.ARROWS:
            *_, last, end = path
            axes.plot(*zip(*path, strict=True), color=LINE, lw=1.3, zorder=1)
            head = {"arrowstyle": "-|>", "color": LINE, "lw": 1.3, "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", end, last, arrowprops=head, zorder=1)
        self._boxes = {name: self._box(axes, box) for name, box in self.BOXES.items()}
        super().__init__(figure, [part for parts in self._boxes.values() for part in parts])

    @staticmethod
    def _box(axes: Any, box: Box) -> tuple[Any, Any]:
        corner = (box.x - WIDE / 2, box.y - HIGH / 2)
        shape = "round,pad=0,rounding_size=0.08"
        patch = FancyBboxPatch(corner, WIDE, HIGH, boxstyle=shape, zorder=2)
        axes.add_patch(patch)
        words = axes.text(box.x, box.y, box.words, ha="center", va="center", fontsize=9.5, zorder=3)
        return patch, words

    @classmethod
    def lit(cls, lit: Lit) -> list[str]:
        """Names of the boxes in `lit`; a band stands for all its boxes."""
        found = []
        for name in [lit] if isinstance(lit, str) else lit:
            if name in cls.BANDS:
                x0, y0, x1, y1, _ = cls.BANDS[name]
                inside = [n for n, b in cls.BOXES.items() if x0 < b.x < x1 and y0 < b.y < y1]
                found += inside
            elif name in cls.BOXES:
                found.append(name)
            else:
                known = ", ".join([*cls.BANDS, *cls.BOXES])
                fail(cls.__name__, "lit", f"be one or several of {known}", repr(name))
        return found

    def move(self, *, lit: Lit = (), have: Lit | None = None) -> str:
        """Light these boxes and return what happens in them; all but those in `have` are dashed."""
        names = self.lit(lit if have is None else have)
        for name, (patch, words) in self._boxes.items():
            symbol, on = self.BOXES[name].symbol, name in names
            missing = have is not None and not on
            colour, pale = COLOURS[symbol], symbol in ("old", "reward", "value", "advantage")
            patch.set(facecolor=colour if on else "white", edgecolor=LINE if missing else colour)
            patch.set(linewidth=1 if missing else 2)
            patch.set_linestyle("--" if missing or symbol == "data" else "-")
            words.set_weight("bold" if on else "normal")
            quiet = missing or (names and not on)
            words.set_color("white" if on and not pale else QUIET if quiet else "black")
        return self.say(names)

    @classmethod
    def say(cls, lit: Lit = ()) -> str:
        """Describe what is lit, one sentence per box."""
        return " ".join(cls.BOXES[name].says for name in cls.lit(lit) or cls.BOXES)


def _down(x: float, y: float, to: float) -> list[tuple[float, float]]:
    """Arrow from the lower edge of a box at row y to the upper edge of one at row `to`."""
    return [(x, y + HIGH / 2), (x, to - HIGH / 2)]


def _up(x: float, y: float, to: float) -> list[tuple[float, float]]:
    return [(x, y - HIGH / 2), (x, to + HIGH / 2)]


def _right(y: float, x: float, to: float) -> list[tuple[float, float]]:
    return [(x + WIDE / 2, y), (to - WIDE / 2, y)]


def _left(y: float, x: float, to: float) -> list[tuple[float, float]]:
    return [(x - WIDE / 2, y), (to + WIDE / 2, y)]


class Pipeline(Diagram):
    """Three stages, four models and the data between them."""

    SIZE, LIMITS = (9, 4.4), (-0.55, 5.55, -0.8, 3.75)
    BOXES: ClassVar = {
        "base": Box(0, 0, "GPT-2\npretrained", "policy",
            "A pretrained model continues any text, and obeys nobody."),
        "demonstrations": Box(1, 0, "demon-\nstrations", "data",
            "People write good answers: demonstrations."),
        "sft": Box(0.5, 1, "SFT model", "policy",
            "Fine-tuned on them, the model answers as they do: the SFT model."),
        "pairs": Box(2, 1, "preference\npairs", "data",
            "Two of its answers are compared by a person: a preference pair."),
        "reward model": Box(2, 0, "reward model", "reward",
            "A reward model learns to give the preferred answer the higher score."),
        "prompts": Box(3, 1, "prompts", "data", "Prompts alone are given, no answers."),
        "policy": Box(3, 2, "policy", "policy",
            "The policy, at first the SFT model, answers them."),
        "reference": Box(3, 3, "reference", "reference",
            "The reference is a frozen copy of the first policy."),
        "responses": Box(4, 2, "responses", "data", "Responses are what the policy wrote."),
        "score": Box(4, 0, "score", "reward", "The reward model scores each response."),
        "kl": Box(4, 3, "KL", "kl",
            "The KL says how far the policy has moved from the reference, and is paid for."),
        "value": Box(5, 1, "value\nfunction", "value",
            "The value function predicts what a response will earn."),
        "update": Box(5, 2, "PPO update", "mixed",
            "PPO makes likelier what earned more than was predicted, in small steps."),
    }  # fmt: skip
    ARROWS: ClassVar = [
        [(0, HIGH / 2), (0, 0.5), (0.4, 0.5), (0.4, 1 - HIGH / 2)],
        [(1, HIGH / 2), (1, 0.5), (0.6, 0.5), (0.6, 1 - HIGH / 2)],
        _right(1, 0.5, 2),
        _up(2, 1, 0),
        [(0.5, 1 + HIGH / 2), (0.5, 2), (3 - WIDE / 2, 2)],
        _right(0, 2, 4),
        _down(3, 1, 2),
        _down(3, 2, 3),
        _right(2, 3, 4),
        _up(4, 2, 0),
        _down(4, 2, 3),
        _right(3, 3, 4),
        _right(2, 4, 5),
        [(4 + WIDE / 2, 0), (4.5, 0), (4.5, 2)],
        [(4 + WIDE / 2, 3), (4.5, 3), (4.5, 2)],
        _down(5, 1, 2),
        [(5, 2 + HIGH / 2), (5, 3.55), (2.55, 3.55), (2.55, 2.12), (3 - WIDE / 2, 2.12)],
    ]
    BANDS: ClassVar = {
        "stage 1": (-0.5, -0.75, 1.48, 3.7, "1 supervised fine-tuning"),
        "stage 2": (1.52, -0.75, 2.48, 3.7, "2 reward model"),
        "stage 3": (2.52, -0.75, 5.5, 3.7, "3 PPO"),
    }


class PPOStep(Diagram):
    """The data flow of one PPO step: collect, assign credit, learn."""

    SIZE, LIMITS = (9, 5.6), (-0.55, 4.95, -0.82, 4.5)
    BOXES: ClassVar = {
        "prompts": Box(0, 0, "prompts", "data", "A batch of prompts is taken."),
        "generate": Box(1, 0, "policy\ngenerates", "policy",
            "The policy answers each of them, token by token."),
        "responses": Box(2.5, 0, "responses\nand mask", "data",
            "The responses are kept with a mask that is True on real tokens, EOS included."),
        "values": Box(1, 1, "values V", "value", "The value head predicts what is still to come."),
        "score": Box(2, 1, "score", "reward",
            "The reward model reads each whole response and scores it."),
        "reference": Box(3, 1, "reference\nlog-probs", "reference",
            "The reference says how likely it finds each token."),
        "old": Box(4, 1, "old\nlog-probs", "old",
            "The policy's own log-probs are kept: from now on the old ones."),
        "kl": Box(4, 2, "KL per token", "kl",
            "Old minus reference log-prob estimates each token's KL."),
        "controller": Box(3, 2, "price β", "kl",
            "A controller sets beta, the price of a nat of KL."),
        "rewards": Box(2, 2, "rewards r", "reward",
            "Each token pays beta times its KL; the last one also gets the score."),
        "advantages": Box(1, 2, "advantages A", "advantage",
            "GAE says how much better each token did than predicted."),
        "returns": Box(0, 2, "returns G", "value",
            "Advantage plus value is the return: what to predict next time."),
        "value loss": Box(0, 3, "value loss", "value",
            "The value loss pulls the values to the returns."),
        "policy loss": Box(1, 3, "clipped loss", "advantage",
            "The clipped loss makes good tokens likelier, until their ratio leaves the band."),
        "ratio": Box(2, 3, "ratio", "policy",
            "New over old probability: the ratio, 1 at the first minibatch."),
        "entropy": Box(3, 3, "entropy", "entropy",
            "The entropy bonus keeps the policy from narrowing."),
        "evaluate": Box(4, 3, "policy reads\na minibatch", "policy",
            "The policy, as it is now, reads a minibatch of the responses again."),
        "loss": Box(1, 4, "loss", "mixed",
            "One loss adds four terms: the clipped loss, c1 times the value loss, minus c2 times "
            "the entropy, and c3 times a KL, where c3 is usually 0: the rewards pay for the KL."),
        "update": Box(4, 4, "gradient step", "policy",
            "One gradient step; after the last epoch the new policy answers new prompts."),
    }  # fmt: skip
    ARROWS: ClassVar = [
        _right(0, 0, 1),
        _right(0, 1, 2.5),
        *([(2.5, HIGH / 2), (2.5, 0.5), (x, 0.5), (x, 1 - HIGH / 2)] for x in (1, 2, 3, 4)),
        [(3, 1 + HIGH / 2), (3, 1.5), (3.8, 1.5), (3.8, 2 - HIGH / 2)],
        _down(4, 1, 2),
        _left(2, 4, 3),
        _left(2, 3, 2),
        _left(2, 2, 1),
        _left(2, 1, 0),
        _down(2, 1, 2),
        _down(1, 1, 2),
        [(1 - WIDE / 2, 1), (0, 1), (0, 2 - HIGH / 2)],
        _down(0, 2, 3),
        _down(1, 2, 3),
        [(4 + WIDE / 2, 1), (4.55, 1), (4.55, 2.5), (2, 2.5), (2, 3 - HIGH / 2)],
        _left(3, 2, 1),
        _left(3, 4, 3),
        *([(4, 3 - HIGH / 2), (4, 2.6), (x, 2.6), (x, 3 - HIGH / 2)] for x in (0.15, 2.15)),
        [(0, 3 + HIGH / 2), (0, 4), (1 - WIDE / 2, 4)],
        _down(1, 3, 4),
        [(3, 3 + HIGH / 2), (3, 3.45), (1.1, 3.45), (1.1, 4 - HIGH / 2)],
        [(3.8, 3 + HIGH / 2), (3.8, 3.6), (1.25, 3.6), (1.25, 4 - HIGH / 2)],
        _right(4, 1, 4),
        _up(4, 4, 3),
        [(4 + WIDE / 2, 4), (4.75, 4), (4.75, -0.5), (1, -0.5), (1, -HIGH / 2)],
    ]
    BANDS: ClassVar = {
        "collect": (-0.5, -0.78, 4.9, 1.42, "collect: once per rollout"),
        "credit": (-0.5, 1.46, 4.9, 2.42, "credit"),
        "learn": (-0.5, 2.46, 4.9, 4.45, "learn"),
    }
    NOTES: ClassVar = {"c3 · KL (usually 0)": (1.5, 3.85)}


def pipeline(lit: Lit = ()) -> Figure:
    """Draw the three stages of RLHF with policy, reference, reward model and value function.

    `lit`: "stage 1" to "stage 3", or names of boxes (`Pipeline.BOXES`). What to see: human data
    enters twice, as demonstrations and as pairs; the third stage has only prompts and is scored by
    the reward model. The policy moves; the reference and the reward model do not.
    """
    picture = Pipeline()
    picture.move(lit=lit)
    return picture.figure


def ppo_step(lit: Lit = (), *, have: Lit | None = None) -> Figure:
    """Draw one PPO step: what is computed from what.

    `lit`: "collect", "credit", "learn", or names of boxes (`PPOStep.BOXES`). `have`: the boxes that
    have been built; all others are dashed. What to see: everything above the last band is measured
    once and stays fixed; only ratio, entropy and losses are recomputed per minibatch, with a policy
    that has moved since.
    """
    picture = PPOStep()
    picture.move(lit=lit, have=have)
    return picture.figure


def ppo_step_alt(lit: Lit = ()) -> str:
    """Return the alternative text of `ppo_step(lit)`."""
    return _alt("One PPO step in boxes and arrows", PPOStep, lit)


def _alt(what: str, diagram: type[Diagram], lit: Lit) -> str:
    names = diagram.lit(lit)
    which = f"; lit: {', '.join(names)}" if names else ""
    return f"{what}{which}. {diagram.say(lit)}"
