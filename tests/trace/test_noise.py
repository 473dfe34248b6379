"""Unwritten memory in a captured step."""

from __future__ import annotations

import torch

from prewarm.trace.noise import Noise, in_unwritten_memory


def test_the_same_seed_gives_the_same_values() -> None:
    """In a copy and in a mapping, whose memory is its own."""
    first, again = Noise(seed=7), Noise(seed=7)

    for count in (10, 3_000_000):
        values = first.values(count, torch.bfloat16)
        assert torch.equal(values, again.values(count, torch.bfloat16))
        values[:] = 0
        assert first.values(count, torch.bfloat16).any()


def test_values_are_standard_normal() -> None:
    """At the end of a large tensor too, where the noise repeats."""
    values = Noise().values(4_000_000, torch.float32)[-10_000:]

    assert abs(values.mean()) < 0.1
    assert abs(values.std() - 1) < 0.1


def test_unwritten_memory_holds_noise_of_the_same_layout() -> None:
    """However torch is asked for it; integers are zero."""
    transposed = torch.zeros(8, 5).t()

    with in_unwritten_memory(Noise()):
        made = [
            torch.empty(5, 8),
            torch.empty_like(transposed),
            torch.empty_strided((5, 8), (1, 5)),
            transposed.new_empty(5, 8),
            transposed.new_empty_strided((5, 8), (1, 5)),
        ]
        counted = torch.empty(1000, dtype=torch.int64)

    assert all(tensor.shape == (5, 8) and tensor.all() for tensor in made)
    assert [tensor.stride() for tensor in made] == [(8, 1), (1, 5), (1, 5), (8, 1), (1, 5)]
    assert not counted.any()


def test_afterwards_torch_is_as_it_was() -> None:
    """Planning in the same process never sees noise."""
    before = (torch.empty, torch.empty_like, torch.Tensor.new_empty)

    with in_unwritten_memory(Noise()):
        assert torch.empty is not before[0]

    assert (torch.empty, torch.empty_like, torch.Tensor.new_empty) == before
