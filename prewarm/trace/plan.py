"""`vllm serve` arguments -> Manifest, in a child process that plays the target GPU.

The child patches torch, Triton and vLLM for good, so nothing of it may happen here. It
writes one JSON document a line to a pipe of its own: progress, then the manifest or an error.
"""

from __future__ import annotations

import platform
from collections.abc import Callable

from prewarm.core.manifest import Manifest
from prewarm.core.record import Record
from prewarm.core.target import Target, check_host
from prewarm.trace.parent import ask


class Request(Record, kw_only=True, tag="plan"):
    """What the child is asked for."""

    serve_args: tuple[str, ...]
    target: Target
    closure: int
    seed: int


class Planned(Record, kw_only=True, tag=True):
    """The answer."""

    manifest: Manifest


def plan(
    serve_args: tuple[str, ...],
    target: Target,
    *,
    closure: int = 50,
    seed: int = 0,
    progress: Callable[[str], object] = lambda text: None,
) -> Manifest:
    """Return the manifest of `vllm serve` with `serve_args` on `target`.

    `closure` is the number of random workloads in a row that must show nothing new before the
    manifest counts as complete; `progress` hears of every workload. Raises InputError for
    arguments or a model that vLLM refuses, UnsupportedError for a model without GDN layers,
    HostError without vLLM, without a C compiler or on another CPU architecture than the
    target's hosts, TryAgainError when the hub cannot be reached.
    """
    check_host(target, platform.machine())
    request = Request(serve_args=serve_args, target=target, closure=closure, seed=seed)
    return ask(request, Planned, progress).manifest
