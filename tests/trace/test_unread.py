"""Values that nobody reads: left out, with torch's own shapes."""

from __future__ import annotations

import pytest
import torch

from prewarm.trace.unread import UnreadTables, unread_values


def test_floating_point_is_not_assigned_where_nobody_reads() -> None:
    states, indices = torch.zeros(4), torch.zeros(4, dtype=torch.int32)
    with unread_values(lambda: True):
        states[1:] = 1.0
        indices[1:] = 1

    assert states.tolist() == [0, 0, 0, 0]
    assert indices.tolist() == [0, 1, 1, 1]


def test_elsewhere_and_afterwards_torch_is_as_it_was() -> None:
    values = torch.zeros(2)
    with unread_values(lambda: False):
        values[0] = 1.0
    values[1] = 2.0

    assert values.tolist() == [1, 2]
    assert "__setitem__" not in vars(torch.Tensor)
    assert "reshape" not in vars(torch.Tensor)


@pytest.mark.parametrize(
    ("tensor", "shape"),
    [
        (torch.arange(24.0).view(2, 3, 4), (6, 4)),
        (torch.arange(24.0).view(2, 3, 4).transpose(0, 1), (6, 4)),
        (torch.arange(24.0).view(2, 3, 4)[:, :, :2], (2, 3, 2, 1)),
        (torch.arange(24.0).view(4, 6).t(), (-1,)),
        (torch.arange(24).view(4, 6).t(), (-1,)),
    ],
)
def test_a_reshape_has_the_layout_that_torch_gives_it(
    tensor: torch.Tensor, shape: tuple[int, ...]
) -> None:
    expected = tensor.reshape(*shape)
    with unread_values(lambda: True):
        found = tensor.reshape(*shape)

    assert (found.shape, found.stride(), found.dtype) == (
        expected.shape,
        expected.stride(),
        expected.dtype,
    )
    assert (found.data_ptr() == tensor.data_ptr()) == (expected.data_ptr() == tensor.data_ptr())


def test_large_tables_keep_their_layout_and_small_ones_their_values() -> None:
    positions, frequencies = torch.arange(4096.0), torch.arange(128.0)
    angles = torch.outer(positions, frequencies)
    expected = torch.cat((angles.cos(), angles.sin()), dim=-1)
    with UnreadTables():
        table = torch.outer(positions, frequencies)
        found = torch.cat((table.cos(), table.sin()), dim=-1)
        small = torch.outer(positions[:3], frequencies[:2])

    assert (found.shape, found.stride(), found.dtype) == (
        expected.shape,
        expected.stride(),
        expected.dtype,
    )
    assert small.tolist() == [[0, 0], [0, 1], [0, 2]]
