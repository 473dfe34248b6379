"""Memory that nobody has written, filled with seeded noise instead of what happens to be there.

Kernels do not run on a virtual GPU, so what they would have written is never written. In a
captured step such memory holds normal values: what host code computes from it is then the same
in every run, and looks like activations.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch

_BLOCK = 1_048_583
"""Values until the noise repeats: a prime, so that rows of a matrix differ."""
_SMALL = 1 << 20
"""Bytes from which on tensors map the noise instead of holding a copy."""


class Noise:
    """Standard normal values in any amount, the same ones for the same seed.

    Large tensors are private mappings of one file in memory, so they cost address space only.
    """

    def __init__(self, seed: int = 0) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._block = torch.randn(_BLOCK, generator=self._generator)
        self._blocks: dict[torch.dtype, torch.Tensor] = {}
        self._files: dict[torch.dtype, _Repeated] = {}

    def values(self, count: int, dtype: torch.dtype) -> torch.Tensor:
        """Return `count` values of the floating-point `dtype`, in memory of their own."""
        block = self._blocks.setdefault(dtype, self._block.to(dtype))
        if count * dtype.itemsize < _SMALL:
            return block[:count].clone()
        file = self._files.setdefault(dtype, _Repeated(block))
        return file.mapped(count * dtype.itemsize).view(dtype)

    def fill(self, tensor: torch.Tensor, mean: float, deviation: float) -> None:
        """Draw every value of `tensor` anew."""
        drawn = torch.randn(tensor.shape, generator=self._generator)
        tensor.copy_(drawn * deviation + mean)


class _Repeated:
    """A file in memory that holds a block of bytes over and over."""

    def __init__(self, block: torch.Tensor) -> None:
        self._bytes = block.view(torch.uint8).numpy().tobytes()
        self._file = os.memfd_create("prewarm-noise")
        self._size = 0

    def mapped(self, size: int) -> torch.Tensor:
        while self._size < size:
            self._size += os.pwrite(self._file, self._bytes, self._size)
        path = f"/proc/self/fd/{self._file}"
        return torch.from_file(path, shared=False, size=size, dtype=torch.uint8)


@contextlib.contextmanager
def in_unwritten_memory(noise: Noise) -> Iterator[None]:
    """Let what torch would leave as it is hold `noise`, integers zero, inside the block."""
    # A TorchFunctionMode would not do: it is off inside vLLM's custom operators.
    places = [
        (torch, "empty"),
        (torch, "empty_like"),
        (torch, "empty_strided"),
        (torch.Tensor, "new_empty"),
        (torch.Tensor, "new_empty_strided"),
    ]
    before = [(place, name, getattr(place, name)) for place, name in places]
    for place, name, make in before:
        setattr(place, name, _noisy(make, noise))
    try:
        yield
    finally:
        for place, name, make in before:
            setattr(place, name, make)


def _noisy(make: Callable[..., torch.Tensor], noise: Noise) -> Callable[..., torch.Tensor]:
    def made(*args: Any, **keywords: Any) -> torch.Tensor:
        tensor = make(*args, **keywords)
        if tensor.device.type == "meta" or keywords.get("out") is not None:
            return tensor
        if not tensor.is_floating_point():
            return tensor.zero_()
        count = tensor.untyped_storage().nbytes() // tensor.dtype.itemsize
        values = noise.values(count, tensor.dtype)
        return values.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    return made
