"""A stand-in for an accelerator, on a machine that has none.

Tensors of the stand-in say that they are on the device "meta" and hold the numbers of a tensor on
the CPU. As on a real one, an operation on tensors of both devices is refused; and as on Apple's
GPU, float64 is refused there.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

AWAY = torch.device("meta")
aten = torch.ops.aten
# A copy may cross over, and an index of the CPU is taken along.
MIXED = {
    aten._to_copy.default, aten.copy_.default, aten.index.Tensor, aten.index_put_.default,
    aten.index_put.default, aten._index_put_impl_.default,
}  # fmt: skip


class Away(Tensor):
    """A tensor of the stand-in; `inner` holds its numbers."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Away":
        if inner.dtype == torch.float64:
            raise TypeError("Cannot convert a tensor to float64 on this device")
        made = Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device=AWAY,
        )  # fmt: skip
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation, on the numbers inside."""
    found = set[type]()  # what tensors of one dimension or more came

    def inner(x: Any) -> Any:
        if isinstance(x, list | tuple):
            return type(x)(map(inner, x))
        if isinstance(x, Tensor) and (isinstance(x, Away) or x.dim()):
            found.add(type(x) if isinstance(x, Away) else Tensor)
        return x.inner if isinstance(x, Away) else x

    def outer(x: Any) -> Any:
        if isinstance(x, list | tuple):
            return type(x)(map(outer, x))
        return Away(x) if isinstance(x, Tensor) else x

    unwrapped = [inner(x) for x in args]
    options = {name: inner(x) for name, x in kwargs.items()}
    if len(found) > 1 and func not in MIXED:
        raise RuntimeError(f"Expected all tensors to be on the same device: {func}")
    lands = Away in found
    if (target := kwargs.get("device")) is not None:
        options["device"], lands = torch.device("cpu"), torch.device(target) == AWAY
    out = func(*unwrapped, **options)
    if func._schema.is_mutable:  # in place: the same tensor, whose numbers have changed
        return args[0] if func._schema.returns else None
    return outer(out) if lands else out


class Mode(TorchDispatchMode):
    """New tensors on "meta" are the stand-in's."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class Literals(TorchFunctionMode):
    """From Python's numbers and to them: what does not pass `Mode`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.tolist and isinstance(args[0], Away):
            return args[0].to("cpu").tolist()
        if func is torch.tensor and torch.device(kwargs.get("device") or "cpu") == AWAY:
            return func(*args, **(kwargs | {"device": "cpu"})).to(AWAY)
        return func(*args, **kwargs)


@contextmanager
def accelerator() -> Iterator[torch.device]:
    """Until the end of the block accelerate's device is the stand-in."""
    from accelerate.state import PartialState

    PartialState()
    swap, autocast = torch.__future__.get_swap_module_params_on_conversion(), torch.autocast
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with (
            patch.dict(PartialState._shared_state, {"device": AWAY}),
            patch("torch.optim.optimizer._get_fused_kernels_supported_devices", lambda: ["meta"]),
            patch(
                "torch.autocast", lambda kind, *args, **options: autocast("cpu", *args, **options)
            ),
            Mode(),
            Literals(),
        ):
            yield AWAY
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swap)
