"""Manifest -> what random request streams ask for, in a child process that plays the target GPU.

The streams go through vLLM's own scheduler and model runner, as those of `plan` do, and share
nothing else with it: neither the workloads nor what was found with them.
"""

from __future__ import annotations

import platform
from collections.abc import Callable

from prewarm.core.manifest import Kernel, Manifest
from prewarm.core.record import Record
from prewarm.core.target import check_host, target_named
from prewarm.trace.parent import ask


class StreamsRequest(Record, kw_only=True, tag="streams"):
    """What the child is asked for."""

    manifest: Manifest
    streams: int
    seed: int
    steps: int
    model: str | None


class Served(Record, kw_only=True):
    """What one engine asked for, and what it was made to do."""

    gpu_blocks: int
    streams: int
    steps: int
    """Scheduler steps."""
    requests: int
    preemptions: int
    prefix_hits: int
    aborts: int
    calls: int
    """Launches, each as often as it was made."""
    kernels: tuple[Kernel, ...]
    """`via` names `start-up`, `graph capture` and each stream by its number."""


class Streamed(Record, kw_only=True, tag=True):
    """The answer."""

    engines: tuple[Served, ...]


def serve_streams(
    manifest: Manifest,
    *,
    streams: int,
    seed: int,
    steps: int,
    model: str | None = None,
    progress: Callable[[str], object] = lambda text: None,
) -> Streamed:
    """Return what `streams` random request streams of at most `steps` steps each ask for.

    Half of them are served with the GPU blocks of the manifest's deployment and half with
    another number, unless the serve arguments pin it. `model` stands for the model of the serve
    arguments where that lies elsewhere on this machine. Raises InputError for another model or
    toolchain than the planned one, and what `prewarm.trace.plan.plan` raises.
    """
    check_host(target_named(manifest.deployment.target), platform.machine())
    request = StreamsRequest(
        manifest=manifest, streams=streams, seed=seed, steps=steps, model=model
    )
    return ask(request, Streamed, progress, doing="checking")
