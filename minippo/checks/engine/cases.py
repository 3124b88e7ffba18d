"""Inputs for a check: generated from a seed, as nested lists that any process can read."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Nested = Any  # floats, ints or bools in lists of lists

# (batch, time, vocabulary): from the smallest to distinct primes, with more columns than rows and
# more rows than columns, so that no axis can be mistaken for another.
SIZES = ((1, 1, 2), (1, 2, 3), (2, 3, 2), (3, 5, 7), (5, 2, 3))


@dataclass(frozen=True)
class Case:
    """One call of a student's function.

    Attributes:
        inputs: Argument -> nested lists (they become tensors) or a number, in signature order.
        note: What is special about the case, in a few words.
        dtype: Dtype of the float tensors.
        slopes: Whether to compare gradients; False at kinks, where right implementations differ.
        padding: What is under the mask: "numbers" like the others, "zeros" or "junk".
        robust: Whether the idea may be right and the case fail, as for infinite numbers.
    """

    inputs: dict[str, Nested]
    note: str = ""
    dtype: str = "float32"
    slopes: bool = True
    padding: str = "numbers"
    robust: bool = False

    @property
    def special(self) -> str:
        """What asks for more than the idea; "" if nothing does."""
        if self.dtype != "float32":
            return "in half precision"
        if self.padding == "junk":
            return "NaN and 1000 under the mask"
        return self.note if self.robust else ""

    def tensors(self) -> dict[str, Any]:
        """Return the inputs as a function receives them."""
        return {name: to_tensor(x, self.dtype) for name, x in self.inputs.items()}


def to_tensor(x: Nested, dtype: str) -> Any:
    """Convert nested lists to a tensor of bools, integers or floats; numbers stay."""
    if not isinstance(x, list):
        return x
    tensor = torch.tensor(x)
    return tensor.to(getattr(torch, dtype)) if tensor.is_floating_point() else tensor


def to_nested(x: Tensor) -> Nested:
    """Convert a tensor exactly to nested lists of plain numbers."""
    return (x.cpu().double() if x.is_floating_point() else x).tolist()


class Draw:
    """Random inputs of one size. The same seed draws the same numbers, whatever is on padding.

    Attributes:
        batch, time, vocab: The size.
        mask: Ragged rows of ones, then zeros.
        padding: What is under the mask: "numbers" like the others, "zeros" or "junk".
    """

    def __init__(
        self, seed: int | str, size: tuple[int, int, int], *, padding: str = "numbers"
    ) -> None:
        self.random = random.Random(f"{seed} {size}")
        self.batch, self.time, self.vocab = size
        self.padding = padding
        lengths = [self.random.randint(1, self.time) for _ in range(self.batch)]
        # One row ends one column early, one is full, one is short.
        lengths[:3] = [max(1, self.time - 1), self.time, (self.time + 1) // 2][: self.batch]
        self.mask = [[t < length for t in range(self.time)] for length in lengths]

    def case(
        self, note: str = "", *, dtype: str = "float32", slopes: bool = True,
        robust: bool = False, **inputs: Nested,
    ) -> Case:  # fmt: skip
        """Make a case of these inputs, in signature order."""
        return Case(inputs, note, dtype, slopes, self.padding, robust)

    def number(self, low: float = -2.0, high: float = 2.0) -> float:
        """Draw a multiple of 1/64; up to 4, even bfloat16 represents it exactly."""
        return round(self.random.uniform(low, high) * 64) / 64

    def floats(self, *shape: int, low: float = -2.0, high: float = 2.0) -> Nested:
        """Draw numbers of this shape; () is one number."""
        if not shape:
            return self.number(low, high)
        return [self.floats(*shape[1:], low=low, high=high) for _ in range(shape[0])]

    def tokens_of(self, x: Nested) -> Nested:
        """Put the padding under the mask of [batch, time, ...] numbers."""
        return [
            [
                cell if real or self.padding == "numbers" else self._spoil(cell, i + t)
                for t, (cell, real) in enumerate(zip(row, mask, strict=True))
            ]
            for i, (row, mask) in enumerate(zip(x, self.mask, strict=True))
        ]

    def token_floats(self, low: float = -2.0, high: float = 2.0) -> Nested:
        """Draw [batch, time] numbers, with padding under the mask."""
        return self.tokens_of(self.floats(self.batch, self.time, low=low, high=high))

    def log_probs(self) -> Nested:
        """Draw [batch, time] log-probs in nats, with padding under the mask."""
        return self.token_floats(-3.0, -0.0625)

    def logits(self) -> Nested:
        """Draw [batch, time, vocab] logits without a mask."""
        return self.floats(self.batch, self.time, self.vocab)

    def tokens(self) -> Nested:
        """Draw [batch, time] token ids without a mask."""
        return [
            [self.random.randrange(self.vocab) for _ in range(self.time)] for _ in range(self.batch)
        ]

    def _spoil(self, cell: Nested, where: int) -> Nested:
        if isinstance(cell, list):
            return [self._spoil(c, where) for c in cell]
        return (math.nan if where % 2 else 1000.0) if self.padding == "junk" else 0.0


def settings(plain: dict[str, Any], /, **others: Any) -> list[dict[str, Any]]:
    """Plain, then each keyword alone changed, then all: so the one that decides can be named."""
    alone = [plain | {name: x} for name, x in others.items()]
    return [plain, *alone, plain | others]


def shape(x: Nested) -> list[int]:
    """Return the shape of nested lists, as for a tensor."""
    return [len(x), *(shape(x[0]) if x else [])] if isinstance(x, list) else []


def weights(n: int) -> list[float]:
    """Weights of the outputs in the scalar whose gradient is compared: 0.5 to 1.5, all different.

    A plain sum would miss mistakes whose gradients cancel.
    """
    return [0.5 + (0.618 * (i + 1)) % 1 for i in range(n)]


def each(f: Callable[..., Any], *, inner: int = 0) -> Callable[..., Nested]:
    """Map a definition of one element over nested lists, keeping `inner` axes together."""

    def lift(lists: Sequence[Nested], numbers: dict[str, Any]) -> Nested:
        if len(shape(lists[0])) == inner:
            return f(*lists, **numbers)
        return [lift(row, numbers) for row in zip(*lists, strict=True)]

    def lifted(**inputs: Nested) -> Nested:
        lists = [x for x in inputs.values() if isinstance(x, list)]
        return lift(lists, {name: x for name, x in inputs.items() if not isinstance(x, list)})

    return lifted
