"""Captured prefill steps: what `tune` replays on a GPU, as data.

A step is its Triton launches in order. Tensors are views of storages; a storage says how its
memory looked before the first launch that sees it, so that the replay needs no vLLM engine.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import msgspec

from prewarm.core.manifest import Candidate, Constexpr
from prewarm.core.record import Record
from prewarm.core.tunings import Size, SizedBy

SCHEMA = "prewarm/capture/v1"


class Storage(Record, kw_only=True):
    """Memory that tensors of a step share."""

    size: int
    """In bytes."""
    dtype: str
    """Of the tensor that was first seen in it, as torch names it: `bfloat16`."""
    data: bytes | None = None
    """Its bytes, where they decide what a kernel reads: index tensors and small ones."""
    normal: tuple[float, float] | None = None
    """Mean and standard deviation of what to fill it with; neither this nor data: zeros."""


class TensorView(Record, kw_only=True):
    """A tensor argument."""

    storage: int
    """Index into the step's storages."""
    dtype: str
    offset: int
    """In elements."""
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In elements."""


class Grid(Record, kw_only=True):
    """The launch grid that the caller's function gives for some meta-parameters."""

    constexprs: dict[str, Constexpr] = {}
    """The candidate's own meta-parameters."""
    blocks: tuple[int, int, int]


class CapturedLaunch(Record, kw_only=True):
    """One launch; of an autotuned kernel, without what the candidate decides."""

    kernel: str
    """`module:function`."""
    source: str
    tensors: dict[str, TensorView]
    values: dict[str, Constexpr]
    """Every other argument by name, but those of the candidate."""
    constexprs: tuple[str, ...] = ()
    """Which of the values are compile-time arguments."""
    options: dict[str, Constexpr] = {}
    """Compile options, but those of the candidate."""
    tuning_key: dict[str, Constexpr] = {}
    grids: tuple[Grid, ...]
    """One; of an autotuned kernel, one for each set of meta-parameters."""


class Step(Record, kw_only=True):
    """One prefill step, as vLLM scheduled it."""

    tokens: int
    sequences: int
    asked: Size | None = None
    """The size that was asked for, where it is another: vLLM may cut prompts at KV cache blocks."""
    storages: tuple[Storage, ...]
    launches: tuple[CapturedLaunch, ...]


class TunedKernel(Record, kw_only=True):
    """An autotuned kernel that the steps reach."""

    name: str
    source: str
    candidates: tuple[Candidate, ...]
    """Its own list."""
    configs: tuple[Candidate, ...]
    """What to measure: the list, then configs beyond it."""


class Capture(Record, kw_only=True):
    """What a deployment launches in prefill steps of several sizes."""

    schema: str = SCHEMA
    manifest: str
    """Digest of the manifest."""
    kernels: tuple[TunedKernel, ...]
    steps: tuple[Step, ...]


def needed(
    storages: Sequence[Storage], launches: Sequence[CapturedLaunch], tuned: Collection[str]
) -> tuple[tuple[Storage, ...], tuple[CapturedLaunch, ...]]:
    """Return those `launches` that kernels called `tuned` depend on, and their storages.

    A launch depends on every earlier one that shares a storage with it.
    """
    kept: list[CapturedLaunch] = []
    reached: set[int] = set()
    for launch in reversed(launches):
        own = {view.storage for view in launch.tensors.values()}
        if launch.kernel in tuned or own & reached:
            kept.append(launch)
            reached |= own
    order = sorted(reached)
    places = {old: new for new, old in enumerate(order)}
    return (
        tuple(storages[old] for old in order),
        tuple(_moved(launch, places) for launch in reversed(kept)),
    )


def _moved(launch: CapturedLaunch, places: dict[int, int]) -> CapturedLaunch:
    tensors = {
        name: msgspec.structs.replace(view, storage=places[view.storage])
        for name, view in launch.tensors.items()
    }
    return msgspec.structs.replace(launch, tensors=tensors)


def shared(launch: CapturedLaunch) -> dict[str, Constexpr]:
    """Return the compile-time integers of an autotuned launch that its tuning key leaves out."""
    return {
        name: launch.values[name]
        for name in launch.constexprs
        if type(launch.values[name]) is int and name not in launch.tuning_key
    }


def sized_by(steps: Sequence[Step], kernel: str) -> SizedBy | None:
    """Return where launches of `kernel` show the size of their step, the same in all `steps`.

    None without such a launch, or when no run-time integer holds the tokens of each.
    """
    found = [(step, each) for step in steps for each in step.launches if each.kernel == kernel]
    tokens = _first(found, _holding_tokens)
    if tokens is None:
        return None
    return SizedBy(tokens=tokens, sequences=_first(found, _as_long_as_sequences))


Sighting = tuple[Step, CapturedLaunch]


def _first(found: Sequence[Sighting], names: Callable[[Sighting], list[str]]) -> str | None:
    """Return the first of `names` that every launch has; None without any."""
    first, *others = [names(each) for each in found] or [[]]
    return next((name for name in first if all(name in other for other in others)), None)


def _holding_tokens(found: Sighting) -> list[str]:
    step, launch = found
    return [
        name
        for name, value in launch.values.items()
        if type(value) is int and value == step.tokens and name not in launch.constexprs
    ]


def _as_long_as_sequences(found: Sighting) -> list[str]:
    step, launch = found
    length = (step.sequences + 1,)
    return [name for name, view in launch.tensors.items() if view.shape == length]
