"""Captures the launches of one step with what a GPU needs to replay them."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch

from prewarm.core.capture import CapturedLaunch, Grid, Step, TensorView, TunedKernel, needed
from prewarm.core.digest import canonical_json
from prewarm.core.errors import UnsupportedError
from prewarm.core.manifest import START_UP, Candidate, Constexpr
from prewarm.core.search_space import search_space
from prewarm.device import triton_seam
from prewarm.device.triton_seam import Call
from prewarm.trace.memory import Memory
from prewarm.trace.vllm_seam import BATCH

Values = dict[str, Constexpr]
Arguments = tuple[dict[str, TensorView], Values]
"""Tensors, then every other value, by name."""

_CANDIDATE_OPTIONS = ("num_warps", "num_stages", "num_ctas", "maxnreg")


class Captor:
    """Captures what GDN layers launch after `begin`, up to the step that `reached` ends."""

    def __init__(self, search: int) -> None:
        self.via = START_UP
        self.kernels: dict[str, TunedKernel] = {}
        self.step: Step | None = None
        self._search = search
        self._memory = Memory()
        self._launches: list[CapturedLaunch] = []
        self._capturing = False
        self._calls: list[Call] | None = None

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Capture instead of launching, in the whole process, inside the block."""
        with triton_seam.intercepted(self._run, self._autotune):
            yield

    def begin(self) -> None:
        """Forget what was captured, and capture from now on."""
        self.step = None
        self._memory, self._launches, self._capturing = Memory(), [], True

    def reached(self) -> bool:
        """Return whether this step launched an autotuned kernel: keep it then, or begin again."""
        if not any(launch.kernel in self.kernels for launch in self._launches):
            self.begin()
            return False
        storages, launches = needed(self._memory.storages, self._launches, self.kernels)
        self.step = Step(
            tokens=BATCH.tokens, sequences=BATCH.sequences, storages=storages, launches=launches
        )
        self._memory, self._launches, self._capturing = Memory(), [], False
        return True

    def _run(self, function: Any, args: Sequence[Any], keywords: Mapping[str, Any]) -> None:
        if not (self._capturing and BATCH.in_layers):
            return
        call = triton_seam.call_of(function, args, keywords)
        if self._calls is not None:
            self._calls.append(call)
            return
        grids = (Grid(blocks=call.grid),)
        self._launches.append(_launch(call, _arguments(call, self._memory), grids))

    def _autotune(self, tuner: Any, args: Sequence[Any], keywords: Mapping[str, Any]) -> None:
        if not (self._capturing and BATCH.in_layers):
            return
        kernel = self._kernel(tuner)
        configs = _of_each_shape(kernel.configs)
        calls = [self._call(tuner, config, args, keywords) for config in configs]
        grids = tuple(
            Grid(constexprs=config.constexprs, blocks=call.grid)
            for config, call in zip(configs, calls, strict=True)
        )
        key = dict(triton_seam.tuning_key_of(tuner, args, keywords))
        self._launches.append(_launch(calls[0], self._settled(calls, configs), grids, key))

    def _call(
        self, tuner: Any, config: Candidate, args: Sequence[Any], keywords: Mapping[str, Any]
    ) -> Call:
        self._calls = []
        try:
            triton_seam.run_with(tuner, triton_seam.config_of(config), args, keywords)
            (call,) = self._calls
        finally:
            self._calls = None
        return call

    def _settled(self, calls: Sequence[Call], configs: Sequence[Candidate]) -> Arguments:
        """Return the arguments that `calls` share, one call of each of `configs`."""
        first, *others = (
            _arguments(call, self._memory, config.constexprs)
            for call, config in zip(calls, configs, strict=True)
        )
        if any(other != first for other in others):
            raise UnsupportedError(
                f"{calls[0].kernel}: an argument that is not the candidate's depends on it"
            )
        return first

    def _kernel(self, tuner: Any) -> TunedKernel:
        name = triton_seam.kernel_name(tuner)
        if name not in self.kernels:
            listed = triton_seam.candidates_of(tuner)
            self.kernels[name] = TunedKernel(
                name=name,
                source=triton_seam.source_digest(tuner),
                candidates=listed,
                configs=(*listed, *search_space(listed, self._search)),
            )
        return self.kernels[name]


def _of_each_shape(configs: Sequence[Candidate]) -> list[Candidate]:
    """Return the first config of each set of meta-parameters, which alone decide the grid."""
    first: dict[bytes, Candidate] = {}
    for config in configs:
        first.setdefault(canonical_json(config.constexprs), config)
    return list(first.values())


def _launch(
    call: Call, found: Arguments, grids: tuple[Grid, ...], key: Values | None = None
) -> CapturedLaunch:
    """Return `call` as data; with a tuning `key` that of an autotuned kernel."""
    tensors, values = found
    left_out = () if key is None else _CANDIDATE_OPTIONS
    return CapturedLaunch(
        kernel=call.kernel,
        source=call.source,
        tensors=tensors,
        values=values,
        constexprs=tuple(name for name in call.constexprs if name in values),
        options={name: v for name, v in call.options.items() if name not in left_out},
        tuning_key=key or {},
        grids=grids,
    )


def _arguments(call: Call, memory: Memory, left_out: Collection[str] = ()) -> Arguments:
    """Return the tensors and the other values of `call` by name."""
    tensors: dict[str, TensorView] = {}
    values: Values = {}
    for name, value in call.arguments.items():
        if isinstance(value, torch.Tensor):
            tensors[name] = memory.view(value)
        elif name not in left_out:
            values[name] = triton_seam.constexpr_of(value, name)
    return tensors, values
