"""A captured step on a real GPU: its memory, and its launches, any of them with any config."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from prewarm.core.capture import CapturedLaunch, Step, Storage, TensorView
from prewarm.core.digest import canonical_json
from prewarm.core.errors import InputError
from prewarm.core.manifest import Candidate, Constexpr
from prewarm.device import triton_seam

_DEVICE = "cuda"


class Launchable:
    """One launch of a step, its tensors in place."""

    def __init__(self, launch: CapturedLaunch, tensors: Mapping[str, torch.Tensor]) -> None:
        self.launch = launch
        self.tensors = tensors
        self._function = triton_seam.kernel_named(launch.kernel)
        values = {name: triton_seam.value_of(value) for name, value in launch.values.items()}
        self._arguments = {**tensors, **values}
        self._options = {name: triton_seam.value_of(v) for name, v in launch.options.items()}
        self._grids = {canonical_json(grid.constexprs): grid.blocks for grid in launch.grids}

    @property
    def is_tuned(self) -> bool:
        """Whether an autotuner stands around it."""
        return bool(self.launch.tuning_key)

    def with_config(self, config: Candidate | None = None) -> Callable[[], Any]:
        """Return what launches it, an autotuned kernel with `config`, and returns what Triton does.

        Raises InputError where the capture has no grid for the config. What is returned raises
        whatever Triton raises: OutOfResources where the GPU lacks shared memory.
        """
        chosen = {} if config is None else config.constexprs
        blocks = self._grids.get(canonical_json(chosen))
        if blocks is None:
            raise InputError(f"the capture has no grid of {self.launch.kernel} for {chosen}")
        options = {**self._options, **({} if config is None else _options(config))}
        runner = self._function[blocks]
        return functools.partial(runner, **self._arguments, **options)


def _options(config: Candidate) -> dict[str, Any]:
    extra: dict[str, Constexpr] = {**config.constexprs, **config.options()}
    return {name: triton_seam.value_of(value) for name, value in extra.items()}


class Replay:
    """The memory and the launches of one step, in order."""

    def __init__(self, step: Step, seed: int = 0) -> None:
        """Allocate on the current GPU; raises torch's OutOfMemoryError where it is too small."""
        self.step = step
        self._seed = seed
        self._memory = [_allocate(storage) for storage in step.storages]
        self.reset()
        self.launches = [Launchable(each, self._tensors(each)) for each in step.launches]

    def reset(self) -> None:
        """Put every storage back to how it was before the first launch."""
        generator = torch.Generator(_DEVICE).manual_seed(self._seed)
        for storage, memory in zip(self.step.storages, self._memory, strict=True):
            _fill(storage, memory, generator)

    def tuned(self) -> Iterator[tuple[int, Launchable]]:
        """Yield every autotuned launch and its index."""
        return ((i, each) for i, each in enumerate(self.launches) if each.is_tuned)

    def _tensors(self, launch: CapturedLaunch) -> dict[str, torch.Tensor]:
        return {name: self._view(view) for name, view in launch.tensors.items()}

    def _view(self, view: TensorView) -> torch.Tensor:
        memory = self._memory[view.storage]
        dtype = _dtype(view.dtype)
        whole = memory[: memory.numel() // dtype.itemsize * dtype.itemsize].view(dtype)
        return whole.as_strided(view.shape, view.strides, view.offset)


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def _allocate(storage: Storage) -> torch.Tensor:
    return torch.empty(storage.size, dtype=torch.uint8, device=_DEVICE)


def _fill(storage: Storage, memory: torch.Tensor, generator: torch.Generator) -> None:
    if storage.data is not None:
        bytes_ = torch.frombuffer(bytearray(storage.data), dtype=torch.uint8)
        memory[: bytes_.numel()].copy_(bytes_)
    elif storage.normal is not None:
        mean, deviation = storage.normal
        dtype = _dtype(storage.dtype)
        whole = memory[: memory.numel() // dtype.itemsize * dtype.itemsize].view(dtype)
        whole.normal_(mean, deviation, generator=generator)
    else:
        memory.zero_()


def relative_distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return |found − wanted| / |wanted| over all elements; infinite where only one is finite."""
    a, b = found.float(), wanted.float()
    both = torch.isfinite(a) == torch.isfinite(b)
    if not bool(both.all()):
        return math.inf
    a, b = torch.nan_to_num(a, posinf=0, neginf=0), torch.nan_to_num(b, posinf=0, neginf=0)
    size = float(b.norm())
    distance = float((a - b).norm())
    return distance / size if size else distance
