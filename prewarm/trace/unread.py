"""Values that nobody reads are not computed: what layers copy between the kernels they launch.

Kernels do not run on a virtual GPU, so the floating-point values around them mean nothing. What
matters of such a tensor, its shape, strides and dtype, stays as torch has it. Nor does a state
that is written back then touch the pages of a KV cache that is larger than the machine.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_LARGE = 1 << 20
"""Bytes from which on what a model computes of its own while it is made is left out."""


@contextlib.contextmanager
def unread_values(where: Callable[[], bool]) -> Iterator[None]:
    """Inside the block, while `where()` is true, leave floating-point copies out.

    Assignment to a part of a tensor does nothing then, and a `reshape` that has to copy returns
    memory of the result's layout.
    """
    # A TorchFunctionMode would not do: it is off inside vLLM's custom operators.
    assign, reshape = torch.Tensor.__setitem__, torch.Tensor.reshape

    def assign_nothing(tensor: torch.Tensor, place: Any, values: Any) -> None:
        if not (where() and tensor.is_floating_point()):
            assign(tensor, place, values)

    def reshape_memory(tensor: torch.Tensor, *shape: Any) -> torch.Tensor:
        unread = where() and tensor.is_floating_point() and not tensor.is_contiguous()
        if not unread or _is_view(tensor, shape):
            return reshape(tensor, *shape)
        return reshape(tensor.new_empty(tensor.shape), *shape)

    replaced = {"__setitem__": assign_nothing, "reshape": reshape_memory}
    for name, function in replaced.items():
        setattr(torch.Tensor, name, function)
    try:
        yield
    finally:
        for name in replaced:
            delattr(torch.Tensor, name)  # torch.Tensor inherits them


def _is_view(tensor: torch.Tensor, shape: tuple[Any, ...]) -> bool:
    try:
        tensor.view(*shape)
    except RuntimeError:
        return False
    return True


class UnreadTables(TorchFunctionMode):
    """Large tables that a model computes while it is made, such as angles, are left unwritten.

    They are for attention, which does not run.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Return what `func` returns, unwritten where it is a large table."""
        if func in _TABLES:
            shape = func(*map(_on_meta, args), **(kwargs or {}))
            if shape.is_floating_point() and shape.numel() * shape.itemsize >= _LARGE:
                return torch.empty_strided(shape.shape, shape.stride(), dtype=shape.dtype)
        return func(*args, **(kwargs or {}))


_TABLES = {torch.einsum, torch.outer, torch.cat, torch.Tensor.cos, torch.Tensor.sin}


def _on_meta(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_on_meta(each) for each in value]
    return value.to("meta") if isinstance(value, torch.Tensor) else value
