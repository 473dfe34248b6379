"""What measuring needs, made without a GPU: tuning keys with their configs, compiled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from prewarm.core.capture import Capture, CapturedLaunch, TunedKernel, shared, sized_by
from prewarm.core.errors import CompileError
from prewarm.core.manifest import Manifest
from prewarm.core.selection import Choice, Selection, tuning_id
from prewarm.make.compile import compile_manifest
from prewarm.make.message import Recorded
from prewarm.tune.message import Share

Tell = Callable[[str], object]


def shares_of(capture: Capture) -> tuple[Share, ...]:
    """Return every tuning key that the steps reach, with the configs to measure."""
    kernels = {kernel.name: kernel for kernel in capture.kernels}
    keys = {
        tuning_id(launch.kernel, launch.tuning_key): launch
        for step in capture.steps
        for launch in step.launches
        if launch.tuning_key
    }
    return tuple(_share(capture, kernels[launch.kernel], launch) for launch in keys.values())


def _share(capture: Capture, kernel: TunedKernel, launch: CapturedLaunch) -> Share:
    return Share(
        kernel=launch.kernel,
        key=launch.tuning_key,
        configs=kernel.configs,
        listed=len(kernel.candidates),
        shared=shared(launch),
        sized_by=sized_by(capture.steps, kernel.name),
    )


def prepare(
    manifest: Manifest, capture: Capture, cache_dir: Path, jobs: int | None, tell: Tell
) -> None:
    """Compile the kernels of `capture`, with all configs that it asks for, into `cache_dir`.

    One that does not compile is told of; whoever measures it finds out again. Raises what
    `prewarm.make.compile.compile_manifest` raises but that.
    """
    shares = shares_of(capture)
    choices = tuple(
        Choice(kernel=share.kernel, key=share.key, others=share.configs) for share in shares
    )
    selection = Selection(gpu="", tunings="", choices=choices)
    configs = sum(len(share.configs) for share in shares)
    replayed = {launch.kernel for step in capture.steps for launch in step.launches}
    kernels = tuple(kernel for kernel in manifest.kernels if kernel.name in replayed)
    part = msgspec.structs.replace(manifest, kernels=kernels)
    tell(f"compiling {configs} configs of {len(shares)} tuning keys")
    try:
        for outcome in compile_manifest(part, cache_dir, jobs, selection):
            if not isinstance(outcome, Recorded):
                tell(f"{type(outcome).__name__.lower()} {outcome.kernel}")
    except CompileError as error:
        tell(error.message.splitlines()[0])
