"""What is replaced for the second model runner, as far as it needs no vLLM that has it."""

from __future__ import annotations

import subprocess
import sys

import torch

from prewarm.trace.vllm_second_runner import move_states_as_on_gpu


class Layer:
    """A layer whose module imports `gather_initial_states`, as that of Kimi-Linear does."""


def gather_initial_states(state: torch.Tensor) -> torch.Size:
    """Insist on the GPU as vLLM's does."""
    assert state.is_cuda
    return state.shape


def test_what_moves_states_hears_that_they_are_on_the_gpu() -> None:
    """However many engines a process starts, and nobody else hears it."""
    state = torch.empty(2, 3)

    move_states_as_on_gpu(Layer())
    once = gather_initial_states
    move_states_as_on_gpu(Layer())

    assert gather_initial_states is once
    assert gather_initial_states(state) == (2, 3)
    assert not state.is_cuda


def test_a_tensor_can_be_recorded_on_a_stream_that_is_not_there() -> None:
    """As the second runner does between the stages of a pipeline."""
    code = (
        "import torch\n"
        "from prewarm.core.target import target_named\n"
        "from prewarm.device.virtual_torch import install\n"
        "install(target_named('h200'))\n"
        "torch.zeros(2).record_stream(torch.cuda.Stream())\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
