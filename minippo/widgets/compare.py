"""Be the annotator: which of two responses is better, without knowing which is which."""

import html
import math
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import ipywidgets

from minippo._validate import fail
from minippo.plots import COLOURS
from minippo.widgets._explorer import Widget

Judge = Callable[[list[str], list[str]], Sequence[float]]  # prompts, responses -> scores
SAME = "same"
Z = 1.959964  # standard normal quantile: 95 % are within +-Z


class Share(NamedTuple):
    """k of n with Wilson's 95 % interval (Wilson 1927), which is honest even for small n.

    >>> print(Share(7, 10))
    7 of 10 (70 %, 95 % interval 40 to 89 %)
    """

    k: int
    n: int

    @property
    def value(self) -> float:
        """k / n; NaN if n is 0."""
        return self.k / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """(low, high): the shares consistent with k of n; (0, 1) if n is 0."""
        k, n = self
        if n == 0:
            return 0.0, 1.0
        centre = (k + Z**2 / 2) / (n + Z**2)
        half = Z / (n + Z**2) * math.sqrt(k * (n - k) / n + Z**2 / 4)
        return max(0.0, centre - half), min(1.0, centre + half)

    def __str__(self) -> str:
        if not self.n:
            return "none yet"
        low, high = self.interval
        share = f"{100 * self.value:.0f} %"
        interval = f"95 % interval {100 * low:.0f} to {100 * high:.0f} %"
        return f"{self.k} of {self.n} ({share}, {interval})"


class Comparison(Widget):
    """Pairs of responses, one at a time; made by `compare`.

    Attributes:
        labels: Per pair the name of the better side, "same", or None while unanswered.
        sentence: The reader's progress and, at the end, the results.
    """

    def __init__(
        self,
        pairs: Sequence[Mapping[str, str]],
        names: tuple[str, str],
        judges: Mapping[str, Judge],
        seed: int,
    ) -> None:
        self.pairs, self.names, self.sentence = _checked(pairs, names), names, ""
        self.labels: list[str | None] = [None] * len(pairs)
        self.choices = {name: _choices(name, judge, pairs, names) for name, judge in judges.items()}
        self._shown = _sides(len(pairs), names, seed)
        self._lock = threading.RLock()
        self._prompt, self._text = ipywidgets.HTML(), ipywidgets.HTML()
        frame = f"1px solid {COLOURS['reference']}"
        card = {"width": "26em", "border": frame, "padding": "0 0.8em"}
        self._cards = [ipywidgets.HTML(layout=card) for _ in range(2)]
        labels = ("A is better", "B is better", "no difference", "back")
        self.buttons = [ipywidgets.Button(description=label) for label in labels]
        answers: tuple[int | None, ...] = (0, 1, None)
        for button, answer in zip(self.buttons, answers, strict=False):
            button.on_click(lambda _, answer=answer: self._clicked(answer))
        self.buttons[-1].on_click(lambda _: self.back())
        rows = [ipywidgets.HBox(self._cards), ipywidgets.HBox(self.buttons)]
        self.box = ipywidgets.VBox([self._prompt, *rows, self._text])
        self._draw()

    @property
    def position(self) -> int:
        """Index of the current pair: the first without an answer."""
        return self.labels.index(None) if None in self.labels else len(self.labels)

    def answer(self, choice: int | None) -> str:
        """Say which is better, as a button would: 0 is A, 1 is B, None is no difference.

        Raises:
            ValueError: If the choice is none of these, or no pair is left.
        """
        if choice not in (0, 1, None):
            fail("answer", "choice", "be 0 (A), 1 (B) or None (no difference)", choice)
        with self._lock:
            if self.position == len(self.pairs):
                fail("answer", "choice", "be given while a pair is left", "one after the last pair")
            shown = self._shown[self.position]
            self.labels[self.position] = SAME if choice is None else shown[choice]
            self._draw()
            return self.sentence

    def back(self) -> str:
        """Undo the last answer."""
        with self._lock:
            if self.position:
                self.labels[self.position - 1] = None
            self._draw()
            return self.sentence

    def results(self) -> dict[str, Share]:
        """Return the win rate of the second side and the agreement with each judge.

        Pairs with no difference, to you or to the judge, are excluded from n.
        """
        first, second = self.names
        won = [label == second for label in self.labels if label in self.names]
        shares = {f"{second} over {first}": Share(sum(won), len(won))}
        for name, choices in self.choices.items():
            same = [
                mine == theirs
                for mine, theirs in zip(self.labels, choices, strict=True)
                if mine in self.names and theirs in self.names
            ]
            shares[f"agreement with {name}"] = Share(sum(same), len(same))
        return shares

    def preferences(self) -> list[dict[str, str]]:
        """Return your choices as {"prompt", "chosen", "rejected"}: data for a reward model."""
        decided = [(pair, x) for pair, x in zip(self.pairs, self.labels, strict=True) if x]
        other = dict(zip(self.names, self.names[::-1], strict=True))
        return [
            {"prompt": pair["prompt"], "chosen": pair[x], "rejected": pair[other[x]]}
            for pair, x in decided
            if x != SAME
        ]

    def _clicked(self, choice: int | None) -> None:
        with self._lock:
            if self.position < len(self.pairs):  # a second click may arrive after the last answer
                self.answer(choice)

    def _draw(self) -> None:
        now, n = self.position, len(self.pairs)
        asking = now < n
        if asking:
            pair = self.pairs[now]
            self.sentence = f"Pair {now + 1} of {n}: {now} answered."
            self._prompt.value = f"<p><b>Prompt</b> {html.escape(pair['prompt'])}</p>"
            for card, letter, side in zip(self._cards, "AB", self._shown[now], strict=True):
                card.value = f"<p><b>{letter}</b> {html.escape(pair[side].strip())}</p>"
        else:
            parts = [f"{name} in {share}" for name, share in self.results().items()]
            same = f"; no difference in {k}" if (k := self.labels.count(SAME)) else ""
            self.sentence = f"All {n} answered: {'; '.join(parts)}{same}."
            self._prompt.value = ""
            for card in self._cards:
                card.value = ""
        for button in self.buttons[:-1]:
            button.disabled = not asking
        self.buttons[-1].disabled = now == 0
        self._text.value = f"<p role='status'>{html.escape(self.sentence)}</p>"

    def __repr__(self) -> str:
        return f"compare: {self.sentence}"


class Table:
    """The same pairs on a page, for readers without a kernel; made by `compare_panels`."""

    def __init__(self, comparison: Comparison) -> None:
        self.rows: list[tuple[str, str, str, str]] = []
        for i, (pair, shown) in enumerate(zip(comparison.pairs, comparison._shown, strict=True)):
            letters = dict(zip(shown, "AB", strict=True)) | {SAME: "neither"}
            key = [f"B is {shown[1]}"]
            key += [f"{name}: {letters[c[i]]}" for name, c in comparison.choices.items()]
            a, b = (pair[side].strip() for side in shown)
            self.rows.append((pair["prompt"], a, b, ", ".join(key)))

    def __repr__(self) -> str:
        return "\n".join(
            f"Prompt {i}: {prompt}\n  A: {a}\n  B: {b}\n  ({key})"
            for i, (prompt, a, b, key) in enumerate(self.rows, start=1)
        )

    def _repr_html_(self) -> str:
        names = ("Prompt", "A", "B", "Which is which, who chose")
        left = 'style="text-align: left; vertical-align: top"'
        lines = ["".join(f"<th {left}>{name}</th>" for name in names)]
        for row in self.rows:
            prompt, a, b, key = (html.escape(cell) for cell in row)
            fold = f"<details><summary>choose first</summary>{key}</details>"
            lines.append("".join(f"<td {left}>{cell}</td>" for cell in (prompt, a, b, fold)))
        return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def compare(
    pairs: Sequence[Mapping[str, str]],
    *,
    names: tuple[str, str] = ("rejected", "chosen"),
    judges: Mapping[str, Judge] | None = None,
    seed: int = 0,
) -> Comparison:
    """Choose the better response of each pair; compare yourself with others afterwards.

    Sides are randomised for each pair, and nothing is revealed before the last answer. At the end
    you see how often you chose the second of `names`: with shipped preferences that is your
    agreement with the simulated annotator; with names ("before", "after") it is a blind
    evaluation's win rate. Intervals are Wilson's, at 95 %.

    Args:
        pairs: Mappings with "prompt" and two responses under `names`.
        names: The keys of the two responses.
        judges: Name -> a score function of (prompts, responses); it chooses the higher-scoring
            response of each pair, and your agreement with it is counted. A reward model:
            `lambda prompts, responses: score(encode(tokenizer, prompts, responses))`.
        seed: Seed of the sides.

    >>> two = [{"prompt": "Say hi.", "before": "no", "after": "hi"}] * 2
    >>> by_length = {"short": lambda prompts, responses: [-len(r) for r in responses]}
    >>> game = compare(two, names=("before", "after"), judges=by_length)
    >>> game.answer(0)
    'Pair 2 of 2: 1 answered.'
    """
    return Comparison(pairs, names, judges or {}, seed)


def compare_panels(
    pairs: Sequence[Mapping[str, str]],
    *,
    names: tuple[str, str] = ("rejected", "chosen"),
    judges: Mapping[str, Judge] | None = None,
    seed: int = 0,
) -> Table:
    """Show the pairs as a table, with the same sides as `compare` and the key folded away."""
    return Table(Comparison(pairs, names, judges or {}, seed))


def _checked(
    pairs: Sequence[Mapping[str, str]], names: tuple[str, str]
) -> Sequence[Mapping[str, str]]:
    if not pairs:
        fail("compare", "pairs", "hold at least one pair", "none")
    if len({*names, SAME}) != 3:
        fail("compare", "names", 'be two different ones, and not "same"', names)
    for number, pair in enumerate(pairs):
        if missing := [key for key in ("prompt", *names) if not isinstance(pair.get(key), str)]:
            must = f"hold a text under {', '.join(missing)}"
            fail("compare", f"pair {number}", must, ", ".join(map(str, pair)))
    return list(pairs)


def _choices(
    name: str, judge: Judge, pairs: Sequence[Mapping[str, str]], names: tuple[str, str]
) -> list[str]:
    """Return the side that a judge scores higher in each pair."""
    prompts = [pair["prompt"] for pair in pairs]
    scores = [[float(s) for s in judge(prompts, [pair[side] for pair in pairs])] for side in names]
    if [len(side) for side in scores] != [len(pairs)] * 2:
        fail("compare", name, f"give {len(pairs)} scores", f"{len(scores[0])}")
    first, second = names
    return [
        SAME if a == b else first if a > b else second
        for a, b in zip(*scores, strict=True)
    ]  # fmt: skip


def _sides(n: int, names: tuple[str, str], seed: int) -> list[tuple[str, str]]:
    rng = random.Random(seed)
    return [names if rng.random() < 0.5 else names[::-1] for _ in range(n)]
