"""How the memory of a captured step is described."""

from __future__ import annotations

import math

import pytest
import torch

from prewarm.core.capture import Storage, TensorView
from prewarm.trace.memory import Memory

LARGE = (64 << 10) // 4 + 1
"""Elements of a float32 storage that is not kept byte by byte."""


def _seen(tensor: torch.Tensor) -> Storage:
    memory = Memory()
    memory.view(tensor)
    (storage,) = memory.storages
    return storage


def test_integers_are_kept_byte_by_byte() -> None:
    """Of the whole storage, whatever its size."""
    ends = torch.arange(100_000, dtype=torch.int32)

    storage = _seen(ends[10:20])

    assert storage == Storage(size=400_000, dtype="int32", data=ends.numpy().tobytes())


def test_small_floats_are_kept_byte_by_byte() -> None:
    """In their own type."""
    gates = torch.tensor([0.5, -2.0], dtype=torch.bfloat16)

    assert _seen(gates) == Storage(size=4, dtype="bfloat16", data=b"\x00\x3f\x00\xc0")


def test_large_floats_become_a_distribution() -> None:
    """Of the elements that are seen: memory around them is not read."""
    values = torch.full((4, LARGE), math.nan)
    values[1] = torch.randn(LARGE, generator=torch.Generator().manual_seed(0)) * 3 + 5

    storage = _seen(values[1])

    assert storage.size == 16 * LARGE
    assert storage.data is None
    assert storage.normal == (pytest.approx(5, abs=0.2), pytest.approx(3, abs=0.2))


@pytest.mark.parametrize("count", [8, LARGE])
def test_zeros_are_only_a_size(count: int) -> None:
    """Kernels rely on outputs that torch.zeros made."""
    assert _seen(torch.zeros(count)) == Storage(size=4 * count, dtype="float32")


@pytest.mark.parametrize("count", [8, LARGE])
def test_values_that_are_no_numbers_become_standard_normal(count: int) -> None:
    """Nobody wrote them."""
    assert _seen(torch.full((count,), math.inf)).normal == (0.0, 1.0)


def test_views_share_a_storage_as_it_was_first_seen() -> None:
    """Whatever was written to it since."""
    memory = Memory()
    values = torch.zeros(6, 4)

    first = memory.view(values)
    values += 1
    second = memory.view(values.t()[1:])

    assert first == TensorView(storage=0, dtype="float32", offset=0, shape=(6, 4), strides=(4, 1))
    assert second == TensorView(storage=0, dtype="float32", offset=1, shape=(3, 6), strides=(1, 4))
    assert memory.storages == [Storage(size=96, dtype="float32")]


def test_a_freed_address_is_no_storage_seen_before() -> None:
    """The memory of a step stays until the step is written."""
    memory = Memory()

    views = [memory.view(torch.full((1000,), number)) for number in range(50)]

    assert [view.storage for view in views] == list(range(50))
