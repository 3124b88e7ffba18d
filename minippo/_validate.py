"""Checks of arguments, and the one form of error message for all of them.

`checked` reads the jaxtyping annotations of a signature: the shape that a reader sees is the
shape that is enforced. All errors are `ValueError` and name the caller, the argument, what it
must be and what it was. Shapes and dtypes are always checked; the contents of a tensor only on
the CPU, because reading them on an accelerator would make the program wait for the device.
The trainer checks a rollout once, on entry; nothing is checked again inside `update`.
"""

import functools
import inspect
import math
import sys
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import field, fields
from types import NoneType
from typing import Any, Literal, NoReturn, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")
_DONE = ContextVar("_DONE", default=False)  # True inside `checked_at_the_door`


@contextmanager
def checked_at_the_door() -> Iterator[None]:
    """Skip the checks of all functions called in this block: the caller has already checked."""
    token = _DONE.set(True)
    try:
        yield
    finally:
        _DONE.reset(token)


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Check each tensor of a call against the signature; turn half precision into float32.

    8 bits of mantissa are too few for a log or a mean.
    """
    signature = inspect.signature(function)
    annotations = {name: p.annotation for name, p in signature.parameters.items()}
    specs = {name: found for name, a in annotations.items() if (found := _tensor_specs(a))}

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        sizes: dict[str, Any] = {}  # the size of each named axis, shared by all arguments
        named = {} if _DONE.get() else signature.bind(*args, **kwargs).arguments
        for name, value in named.items():
            if name in specs and not _is_plain(value, annotations[name]):
                _check_tensor(function.__name__, name, value, specs[name], sizes)
        wide = {name: upcast(value) for name, value in kwargs.items()}
        return function(*map(upcast, args), **wide)

    return wrapper


def upcast(x: Any) -> Any:
    """Half precision becomes float32; anything else stays as it is."""
    return x.float() if isinstance(x, Tensor) and x.dtype in (torch.half, torch.bfloat16) else x


def _is_plain(value: object, annotation: Any) -> bool:
    """True for None or a number where an annotation allows it instead of a tensor."""
    kind = NoneType if value is None else float if isinstance(value, int | float) else type(value)
    return kind in typing.get_args(annotation)


def _tensor_specs(annotation: Any) -> list[Any]:
    """The jaxtyping alternatives in an annotation; [] for a plain number."""
    choices = typing.get_args(annotation) or (annotation,)
    return [choice for choice in choices if hasattr(choice, "dim_str")]


def _check_tensor(
    caller: str, name: str, value: Any, specs: list[Any], sizes: dict[str, Any]
) -> None:
    if isinstance(value, Tensor):
        for spec in specs:
            dtype = str(value.dtype).removeprefix("torch.")
            bound = _bind(spec.dim_str.split(), tuple(value.shape), sizes)
            # torch cannot compute with floats of 8 bits or fewer.
            if dtype in spec.dtypes and bound is not None and "float8" not in dtype:
                sizes.update(bound)
                return
        came = f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    else:
        came = type(value).__name__
    wanted = " or ".join(
        f"{spec.__name__.split('[')[0].lower()} [{spec.dim_str.strip()}]" for spec in specs
    )
    known = ", ".join(f"{axis.lstrip('*')} = {size}" for axis, size in sizes.items())
    fail(caller, name, f"be a tensor {wanted}" + (f" with {known}" if known else ""), came)


def _bind(axes: list[str], shape: tuple[int, ...], sizes: dict[str, Any]) -> dict[str, Any] | None:
    """Match axis names such as ["*shape", "vocab"] with a shape; None if they disagree."""
    if axes and axes[0].startswith("*"):
        cut = len(shape) - len(axes) + 1
        if cut < 0:
            return None
        found: dict[str, Any] = {axes[0]: list(shape[:cut])} | dict(
            zip(axes[1:], shape[cut:], strict=True)
        )
    elif len(axes) == len(shape):
        found = dict(zip(axes, shape, strict=True))
    else:
        return None
    return found if all(sizes.get(axis, size) == size for axis, size in found.items()) else None


def fail(caller: str, name: str, must: str, came: object) -> NoReturn:
    """Raise the one kind of error that this package uses for an invalid argument."""
    raise ValueError(f"{caller}: {name} must {must}, got {came}.")


def check_number(
    caller: str, low: float, high: float = math.inf, *, above: bool = False, **values: float
) -> None:
    """Require finite numbers in [low, high], or in (low, high] with `above`."""
    for name, value in values.items() if not _DONE.get() else ():
        if isinstance(value, bool) or not isinstance(value, int | float):
            fail(caller, name, "be a number", repr(value))
        finite = abs(value) <= sys.float_info.max  # neither NaN nor an integer beyond floats is
        if not (finite and low <= value <= high) or (above and value == low):
            left = "(" if above else "["
            right = ")" if high == math.inf else "]"
            fail(caller, name, f"lie in {left}{low:g}, {high:g}{right}", value)


def bounded(default: Any, *, low: float = 0, high: float = math.inf, above: bool = False) -> Any:
    """Make a dataclass field for a number in [low, high], or in (low, high] with `above`."""
    return field(default=default, metadata={"low": low, "high": high, "above": above})


def check_fields(config: Any) -> None:
    """Require of each field of a dataclass what its annotation and its bounds say."""
    caller, kinds = type(config).__name__, typing.get_type_hints(type(config))
    for f in fields(config):
        value, allowed = getattr(config, f.name), alternatives(kinds[f.name])
        if value is None and NoneType in allowed:
            continue
        if bool in allowed and not isinstance(value, bool):
            fail(caller, f.name, "be True or False", repr(value))
        elif int in allowed and (type(value) is not int or value < f.metadata["low"]):
            must = f"be a whole number of {f.metadata['low']} or more"
            fail(caller, f.name, must, repr(value))
        elif float in allowed:
            low, high, above = f.metadata.values()
            check_number(caller, low, high, above=above, **{f.name: value})
        elif isinstance(allowed[0], str) and value not in allowed:
            names = ", ".join(name for name in allowed if isinstance(name, str))
            fail(caller, f.name, f"be one of {names}", repr(value))


def alternatives(kind: Any) -> tuple[Any, ...]:
    """What an annotation allows, flat: the words of a Literal, and the types of a union.

    >>> alternatives(Literal["a", "b"] | None)
    ('a', 'b', <class 'NoneType'>)
    """
    parts = typing.get_args(kind) or (kind,)
    if typing.get_origin(kind) is Literal or parts == (kind,):
        return parts
    return tuple(choice for part in parts for choice in alternatives(part))


def _contents(x: Tensor) -> bool:
    """Whether to check the contents of a tensor."""
    return x.device.type == "cpu" and not _DONE.get()


def check_mask(caller: str, mask: Tensor) -> None:
    """Require a mask with at least one real token."""
    if _contents(mask) and not mask.any():
        fail(caller, "mask", "hold at least one True", f"none in shape {list(mask.shape)}")


def check_response_mask(caller: str, mask: Tensor) -> None:
    """Require rows of ones (the real tokens, at least one), then zeros (the padding)."""
    if not _contents(mask) or len(mask) == 0:
        return
    if (bad := ~mask[:, :1].any(1)).any():
        row = int(bad.nonzero()[0])
        must = "hold at least one leading real token per row"
        fail(caller, "mask", must, f"none in row {row}")
    if (bad := (mask[:, 1:] & ~mask[:, :-1]).any(1)).any():
        row = int(bad.nonzero()[0])
        came = "".join(str(int(m)) for m in mask[row, :40])
        fail(caller, "mask", "be a run of ones, then zeros, in each row", f"{came} in row {row}")


def check_tokens(caller: str, tokens: Tensor, vocab: int) -> None:
    """Require token ids inside the vocabulary."""
    if _contents(tokens) and tokens.numel():
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= vocab:
            fail(caller, "tokens", f"lie in [0, {vocab - 1}]", low if low < 0 else high)


def varies(least: Tensor, most: Tensor) -> Tensor:
    """Whether numbers in [least, most] differ by more than rounding."""
    return most - least > 4 * torch.finfo(most.dtype).eps * torch.maximum(least.abs(), most.abs())
