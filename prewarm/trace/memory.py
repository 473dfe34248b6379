"""The memory of a captured step: its storages, and how each looked when it was first seen."""

from __future__ import annotations

import math

import torch

from prewarm.core.capture import Storage, TensorView

_EXACT_BYTES = 64 << 10
"""Floating-point storages up to this size are kept as they are."""
_SAMPLE = 4096
"""Elements by which a larger one is judged."""
_DIGITS = 3
"""Decimals of a mean and a standard deviation."""


class Memory:
    """Storages in the order in which they are first seen.

    It keeps every tensor alive, so that an address stands for one storage.
    """

    def __init__(self) -> None:
        self.storages: list[Storage] = []
        self._index: dict[int, int] = {}
        self._alive: list[torch.Tensor] = []

    def view(self, tensor: torch.Tensor) -> TensorView:
        """Return where `tensor` lies."""
        address = tensor.untyped_storage().data_ptr()
        if address not in self._index:
            self._index[address] = len(self.storages)
            self.storages.append(_storage(tensor))
        self._alive.append(tensor)
        return TensorView(
            storage=self._index[address],
            dtype=_name(tensor.dtype),
            offset=tensor.storage_offset(),
            shape=tuple(tensor.shape),
            strides=tuple(tensor.stride()),
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _storage(tensor: torch.Tensor) -> Storage:
    size = tensor.untyped_storage().nbytes()
    dtype = _name(tensor.dtype)
    if not tensor.is_floating_point():
        return Storage(size=size, dtype=dtype, data=_bytes(tensor))
    sample = _sample(tensor) if size > _EXACT_BYTES else _all(tensor).to(torch.float64)
    if not sample.any():
        return Storage(size=size, dtype=dtype)
    if size > _EXACT_BYTES or not sample.isfinite().all():
        return Storage(size=size, dtype=dtype, normal=_normal(sample))
    return Storage(size=size, dtype=dtype, data=_bytes(tensor))


def _all(tensor: torch.Tensor) -> torch.Tensor:
    """Return every element of the storage of `tensor`."""
    count = tensor.untyped_storage().nbytes() // tensor.dtype.itemsize
    return tensor.as_strided((count,), (1,), 0)


def _bytes(tensor: torch.Tensor) -> bytes:
    raw = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())  # type: ignore[call-overload]
    found: bytes = raw.numpy().tobytes()
    return found


def _sample(tensor: torch.Tensor) -> torch.Tensor:
    """Return elements of `tensor` at even distances, the first and the last among them."""
    count = tensor.numel()
    flat = torch.linspace(0, count - 1, min(count, _SAMPLE), dtype=torch.float64).long()
    places = torch.unravel_index(flat, tensor.shape)
    return tensor[places].to(torch.float64)


def _normal(sample: torch.Tensor) -> tuple[float, float]:
    """Return mean and standard deviation, (0, 1) where they are no numbers."""
    mean, deviation = sample.mean().item(), sample.std(correction=0).item()
    if not (math.isfinite(mean) and math.isfinite(deviation)):
        return (0.0, 1.0)
    return (round(mean, _DIGITS), round(deviation, _DIGITS))
