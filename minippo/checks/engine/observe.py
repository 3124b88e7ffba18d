"""Call a student's function and record what it did as plain numbers.

This half of a check may run in another process: nothing here knows the right answer.
"""

import dis
import inspect
import random
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from minippo.checks.engine.cases import Case, Nested, to_nested, weights

PACKAGE = str(Path(__file__).parents[2])


@dataclass
class Observation:
    """The outcome of one call.

    Attributes:
        kind: "value", "unfinished", "none", "raised" or "wrong type".
        value: The returned value.
        dtype: Its dtype.
        slopes: Argument -> gradient of sum(weights * value); None if no gradient arrived.
        changed: Arguments that were modified in place.
        touched: Global random states that were advanced.
        message: The exception and its line, or what was returned instead of a tensor.
    """

    kind: str
    value: Nested = None
    dtype: str = ""
    slopes: dict[str, Nested] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    touched: list[str] = field(default_factory=list)
    message: str = ""


Call = Callable[..., Any]


def plain_call(function: Call, inputs: dict[str, Any], keywords: Sequence[str]) -> Any:
    """Call with tensors by position and numbers by keyword."""
    args = [x for name, x in inputs.items() if name not in keywords]
    return function(*args, **{name: inputs[name] for name in keywords if name in inputs})


@torch.enable_grad()  # even if the notebook has disabled it
def observe(call: Call, case: Case, slopes: Sequence[str]) -> Observation:
    """Run `call(inputs)` on a case and record value, gradients and side effects."""
    inputs = case.tensors()
    wanted = [name for name in slopes if isinstance(inputs.get(name), Tensor)]
    leaves = {name: inputs[name].requires_grad_() for name in wanted}
    inputs |= {name: leaf.clone() for name, leaf in leaves.items()}  # writing to a leaf raises
    before = {k: x.detach().clone() for k, x in inputs.items() if isinstance(x, Tensor)}
    states = _random_states()
    try:
        value = call(inputs)
        if value is None or value is ...:
            return Observation("none" if value is None else "unfinished")
        seen = _measure(value, leaves)
    except (Exception, SystemExit) as error:
        on_purpose = isinstance(error, NotImplementedError) and _was_raised(error)
        if on_purpose or "'ellipsis'" in str(error):  # a ... in the middle was used as a number
            return Observation("unfinished")
        seen = Observation("raised", message=at_their_line(error))
    seen.changed = [k for k, x in before.items() if not _same(inputs[k].detach(), x)]
    seen.touched = [k for k, x in _random_states().items() if x != states[k]]
    return seen


def _measure(value: Any, leaves: dict[str, Tensor]) -> Observation:
    if isinstance(value, bool | int | float):
        value = torch.tensor(value)
    if not isinstance(value, Tensor):
        return Observation("wrong type", message=_described(value))
    name = str(value.dtype).removeprefix("torch.")
    seen = Observation("value", to_nested(value.detach()), name)
    if leaves:
        grads: Sequence[Tensor | None] = [None] * len(leaves)
        if value.requires_grad:
            flat = value.cpu().double().reshape(-1)
            weighted = torch.tensor(weights(len(flat)), dtype=torch.float64) * flat
            grads = torch.autograd.grad(weighted.sum(), list(leaves.values()), allow_unused=True)
        seen.slopes = {
            name: None if grad is None else to_nested(grad)
            for name, grad in zip(leaves, grads, strict=True)
        }
    return seen


def is_a_stub(function: Any) -> bool:
    """Does the body do nothing, or does a line still hold nothing but `...`?"""
    code = getattr(function, "__code__", None)
    if code is None:
        return False
    try:
        lines = [line.strip() for line in inspect.getsource(function).splitlines()]
    except (OSError, TypeError):
        lines = []
    idle = {"RESUME", "NOP", "POP_TOP", "LOAD_CONST", "RETURN_VALUE", "RETURN_CONST", "CACHE"}
    return "..." in lines or {step.opname for step in dis.get_instructions(code)} <= idle


def _was_raised(error: NotImplementedError) -> bool:
    """Was it raised on purpose? torch raises it too, for dtypes it cannot handle."""
    line = traceback.extract_tb(error.__traceback__)[-1].line
    return not line or "raise" in line.split()


def _described(value: Any) -> str:
    if isinstance(value, tuple | list):
        kinds = ", ".join(type(part).__name__ for part in value)
        return f"a {type(value).__name__} ({kinds})"
    return f"a {type(value).__name__}"


def _same(a: Tensor, b: Tensor) -> bool:
    return (
        a.shape == b.shape
        and a.dtype == b.dtype
        and bool(torch.equal(a.nan_to_num(), b.nan_to_num()))
    )


def _random_states() -> dict[str, Any]:
    state: Any = numpy.random.get_state()  # its repr would take longer than most functions
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "random": random.getstate(),
        "numpy": (state[0], state[1].tobytes(), *state[2:]),
    }


def at_their_line(error: BaseException) -> str:
    """Format the exception, prefixed by the last line of the student's code that led to it."""
    said = f"{type(error).__name__}: {error}"
    ours = (PACKAGE, str(Path(torch.__file__).parent))
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(ours)
    ]
    if not frames:
        return said
    last = frames[-1]
    return f"line {last.lineno}, in {last.name}: {last.line}\n{said}"
