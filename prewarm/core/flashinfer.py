"""FlashInfer's GDN prefill in nouns: how it is called, what that needs, what was built of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from prewarm.core.record import Record

SCHEMA = "prewarm/flashinfer/v1"
RECORD_NAME = "prewarm-flashinfer.json"
"""The record in a directory of built modules."""
AOT = "aot"
"""In it, laid out as FlashInfer's directory of prebuilt libraries."""
PYTHON = "python"
"""For PYTHONPATH: by what is in it FlashInfer finds the other directory."""

HOPPER = "gdn_prefill_sm90"
"""A library of CUDA instances, which FlashInfer compiles with nvcc at first use."""
BLACKWELL = "gdn_kernels.blackwell"
"""A CuTe-DSL kernel, which FlashInfer compiles in every process that calls it."""

SHIPPED = frozenset({HOPPER})
"""Modules that FlashInfer reads from a file if there is one, so that an image can hold them."""

_DTYPES = {"bf16": "bf16", "fp16": "half"}
"""Ours to that of FlashInfer's file names."""


class PrefillCall(Record, kw_only=True):
    """One way in which a deployment calls FlashInfer's GDN prefill: all that picks code."""

    dtype: str
    """Of queries, keys and values: `bf16`, `fp16`."""
    state_dtype: str
    """Of the recurrent states as they are handed over: `fp32`."""
    query_heads: int
    """Of one rank, as `value_heads` is."""
    value_heads: int
    head_dim: int
    gate: bool
    """Whether a forget gate (alpha) is given."""
    beta: bool
    initial_state: bool
    final_state: bool
    checkpoints: bool
    """Whether states within sequences are kept."""

    @property
    def grouped(self) -> bool:
        """Whether several value heads share a query head (FlashInfer's GVA)."""
        return self.value_heads > self.query_heads


def instance_of(module: str, call: PrefillCall) -> str:
    """Return the name of the instance of `module` that `call` runs.

    On Hopper as FlashInfer names the source file; on Blackwell, where heads are compiled in and
    nothing has a name, one of ours.
    """
    if module == HOPPER:
        given = (call.grouped, call.beta, call.gate, call.initial_state, call.checkpoints)
        return _hopper_name(call.dtype, given)
    flags = f"i{call.initial_state:d}f{call.final_state:d}c{call.checkpoints:d}"
    heads = f"q{call.query_heads}v{call.value_heads}d{call.head_dim}"
    return f"{call.dtype}_{call.state_dtype}_{heads}_{flags}"


def instances_of(module: str, calls: Iterable[PrefillCall]) -> tuple[str, ...]:
    """Return the instances of `module` that `calls` run, each once, in order of their names."""
    return tuple(sorted({instance_of(module, call) for call in calls}))


def every_hopper_instance() -> tuple[str, ...]:
    """Return all instances that FlashInfer compiles into its Hopper library."""
    flags = itertools.product((False, True), repeat=5)
    return tuple(sorted(_hopper_name(dtype, each) for each in flags for dtype in _DTYPES))


def _hopper_name(dtype: str, flags: Sequence[bool]) -> str:
    given = "".join(f"{letter}{flag:d}" for letter, flag in zip("gbaic", flags, strict=True))
    return f"{_DTYPES.get(dtype, dtype)}_{given}"


class Library(Record, kw_only=True):
    """One built file."""

    module: str
    file: str
    """Relative to the directory of the record."""
    instances: tuple[str, ...]
    digest: str
    size: int
    """In bytes."""


class BuiltModule(Record, kw_only=True):
    """What was built of one module, and what it must be served with."""

    schema: str = SCHEMA
    module: str
    arch: str
    """`sm_90a`."""
    flashinfer: str
    tvm_ffi: str
    compiler: str
    """`nvcc 13.0.88`, `nvidia-cutlass-dsl 4.5.2`."""
    cuda: str
    """CUDA release of torch, whose runtime library is loaded: `13.0`."""
    machine: str
    libc: str
    multiprocessors: int | None = None
    """Of the GPU, where they are compiled in."""
    calls: tuple[PrefillCall, ...] = ()
    """Of the deployment that it was built for; none where the manifest did not say."""
    libraries: tuple[Library, ...]
