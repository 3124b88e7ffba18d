"""A picture of one response across iterations, token by token."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from minippo._validate import fail
from minippo.plots._base import Picture
from minippo.plots.credit import HEAT, ink

Record = Mapping[str, Any]
# Each quantity's neutral value and number format.
QUANTITIES = {
    "ratio": (1.0, "{:.2f}"),
    "advantage": (0.0, "{:+.2f}"),
    "kl": (0.0, "{:+.2f}"),
    "entropy": (0.0, "{:.2f}"),
    "log_prob": (0.0, "{:.2f}"),
    "surprise": (0.0, "{:.2f}"),
}
NAMES = {
    "kl": "KL in nats", "entropy": "entropy in nats", "log_prob": "log-prob in nats",
    "surprise": "surprise in nats",
}  # fmt: skip
ACROSS, LETTERS = 10, 11  # cells per line, letters per cell


class TokenMicroscope(Picture):
    """The tokens of a response, each with its number and coloured by it."""

    def __init__(self, records: Sequence[Record]) -> None:
        """`records`: as made by `record.Recorder`, in any order.

        Each is a mapping with "step", "prompt", "tokens" (strings), and per token "ratio",
        "advantage", "kl", "entropy" and "log_prob" (nats), or some; a "score" is shown, too.
        """
        _check("TokenMicroscope", records)
        self._records = sorted(records, key=lambda record: record["step"])
        self.prompts = list(dict.fromkeys(record["prompt"] for record in records))
        self.steps = sorted({record["step"] for record in records})
        self.quantities = [name for name in QUANTITIES if name in records[0]]
        self._tops = {name: _top(records, name) for name in self.quantities}
        lines = math.ceil(max(len(record["tokens"]) for record in records) / ACROSS)
        figure = Figure(figsize=(9, 0.4 + 0.5 * lines), layout="constrained")
        self._strip = _Strip(figure.subplots(), lines)
        super().__init__(figure, self._strip.artists)

    def move(
        self, *, prompt: str | None = None, step: int | None = None, quantity: str | None = None
    ) -> str:
        """Show a prompt's (default: the first) latest record up to a step (default: the last).

        The default quantity is the first that the records hold.
        """
        record, quantity = self.record(prompt, step), quantity or self.quantities[0]
        self.draw(self._strip, record, quantity)
        numbers, tokens = record[quantity], [_written(token) for token in record["tokens"]]
        shown = [_number(x, quantity) for x in numbers]
        low, high = int(np.argmin(numbers)), int(np.argmax(numbers))
        mean = _number(float(np.mean(numbers)), quantity)
        return (
            f"Step {record['step']}, {NAMES.get(quantity, quantity)}, {len(tokens)} tokens: "
            f"mean {mean}, from {shown[low]} at token {low + 1} "
            f"({tokens[low]}) to {shown[high]} at token {high + 1} ({tokens[high]}); "
            f"{_score(record, '; ')}prompt: {record['prompt']!r}."
        )

    def record(self, prompt: str | None, step: int | None) -> Record:
        """Return a prompt's latest record up to a step, or its first if none is that early."""
        prompt = self.prompts[0] if prompt is None else prompt
        if prompt not in self.prompts:
            fail("TokenMicroscope", "prompt", f"be one of {self.prompts}", repr(prompt))
        own = [record for record in self._records if record["prompt"] == prompt]
        return [own[0], *(r for r in own if step is None or r["step"] <= step)][-1]

    def draw(self, strip: "_Strip", record: Record, quantity: str) -> None:
        """Draw a record's tokens in a strip."""
        if quantity not in self.quantities:
            fail("TokenMicroscope", "quantity", f"be one of {', '.join(self.quantities)}", quantity)
        tokens = [_written(token) for token in record["tokens"]]
        strip.write(tokens, record[quantity], quantity, self._tops[quantity])
        step = "" if quantity == "log_prob" else f"step {record['step']}, "
        strip.title.set_text(
            f"{step}{_score(record, ': ')}"
            f"{NAMES.get(quantity, quantity)}, after {_cut(record['prompt'], 50)!r}"
        )


class _Strip:
    """Lines of as many cells as fit, each with a word, its number and the number's colour."""

    def __init__(self, axes: Any, lines: int) -> None:
        self._size = (lines, ACROSS)
        axes.set(xlim=(0, ACROSS), ylim=(lines, 0))
        axes.axis("off")
        self.title = axes.set_title(" ", loc="left", fontsize=10.5)
        mesh: dict[str, Any] = {"cmap": HEAT, "vmin": -1, "vmax": 1, "edgecolors": "white", "lw": 3}
        self._mesh = axes.pcolormesh(
            np.arange(ACROSS + 1), np.arange(lines + 1), np.zeros(self._size), **mesh
        )
        places = [(i % ACROSS + 0.5, i // ACROSS) for i in range(lines * ACROSS)]
        middle: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 9, "zorder": 3}
        self.words = [axes.text(x, y + 0.31, "", **middle) for x, y in places]
        self.numbers = [axes.text(x, y + 0.7, "", **middle) for x, y in places]
        self.artists: list[Artist] = [self.title, self._mesh, *self.words, *self.numbers]

    def write(
        self, tokens: Sequence[str], numbers: Sequence[float], quantity: str, top: float
    ) -> None:
        """`top`: distance from neutral at which the colour is darkest."""
        neutral, _ = QUANTITIES[quantity]
        heat = np.full(len(self.words), np.nan)  # NaN: draw nothing where there is no token
        heat[: len(numbers)] = (np.array(numbers) - neutral) / top
        self._mesh.set_array(heat.reshape(self._size))
        for i, (word, number) in enumerate(zip(self.words, self.numbers, strict=True)):
            there = i < len(tokens)
            colour = ink(heat[i])  # black where there is no token
            word.set(text=_cut(tokens[i], LETTERS) if there else "", color=colour)
            number.set(text=_number(numbers[i], quantity) if there else "", color=colour)


def token_microscope(
    records: Sequence[Record],
    *,
    prompt: str | None = None,
    step: int | None = None,
    quantity: str | None = None,
) -> Figure:
    """Plot one response at one step, each token coloured by ratio, advantage, KL or entropy.

    `records` as in `TokenMicroscope`; the default is the first prompt at the last step. A quantity
    has one colour scale for all records; palest is 1 for a ratio and 0 for the others. What to
    see: a few tokens carry most of the advantage and of the KL; entropy is high where there is a
    choice to make.
    """
    picture = TokenMicroscope(records)
    picture.move(prompt=prompt, step=step, quantity=quantity)
    return picture.figure


def token_microscope_panels(
    records: Sequence[Record],
    *,
    prompt: str | None = None,
    steps: Sequence[int] | None = None,
    quantity: str | None = None,
) -> Figure:
    """Plot the answers to one prompt at several steps (default: first and last), stacked.

    What to see: where the text changed, and whether the quantity had predicted it.
    """
    picture = TokenMicroscope(records)
    steps = (picture.steps[0], picture.steps[-1]) if steps is None else steps
    shown = [picture.record(prompt, step) for step in steps]
    lines = [math.ceil(len(record["tokens"]) / ACROSS) for record in shown]
    figure = Figure(figsize=(9, 0.5 * sum(lines) + 0.4 * len(lines)), layout="constrained")
    grid = figure.subplots(len(shown), 1, squeeze=False, height_ratios=lines)
    for axes, record, n in zip(grid[:, 0], shown, lines, strict=True):
        picture.draw(_Strip(axes, n), record, quantity or picture.quantities[0])
    return figure


def _top(records: Sequence[Record], name: str) -> float:
    """Distance from neutral of the darkest colour: 19 of 20 tokens are within it."""
    far = [abs(x - QUANTITIES[name][0]) for record in records for x in record[name]]
    return max(float(np.quantile(far, 0.95)), 1e-3)


def _score(record: Record, end: str) -> str:
    return f"score {record['score']:.2f}{end}" if "score" in record else ""


def _number(x: float, quantity: str) -> str:
    return QUANTITIES[quantity][1].format(round(x, 2) + 0.0)  # never -0.00


def _written(token: str) -> str:
    return "EOS" if token == "<|endoftext|>" else token.strip() or repr(token)[1:-1] or "''"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _check(caller: str, records: Sequence[Record]) -> None:
    if not records:
        fail(caller, "records", "hold at least one record", "none")
    for i, record in enumerate(records):
        some = [name for name in QUANTITIES if name in records[0]] or ["ratio"]
        wanted = ("step", "prompt", "tokens", *some)
        if missing := [key for key in wanted if key not in record]:
            fail(caller, f"records[{i}]", f"hold {', '.join(wanted)}", f"no {', '.join(missing)}")
        if not record["tokens"]:
            fail(caller, f"records[{i}]['tokens']", "hold at least one token", "none")
        for name in some:
            came, n = record[name], len(record["tokens"])
            if len(came) != n or not all(math.isfinite(x) for x in came):
                must = f"be {n} finite numbers, one for each token"
                fail(caller, f"records[{i}][{name!r}]", must, list(came))
