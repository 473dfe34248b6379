"""`vllm serve` arguments -> Manifest, in a child process that plays the target GPU.

The child patches torch, Triton and vLLM for good, so nothing of it may happen here. It
writes one JSON document a line to a pipe of its own: progress, then the manifest or an error.
Who plans many deployments asks a `Planner`, whose child forks for each.
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable
from types import TracebackType
from typing import Self

import msgspec

from prewarm.core.child import Child, child
from prewarm.core.manifest import Manifest
from prewarm.core.record import Record
from prewarm.core.target import Target, check_host
from prewarm.trace.parent import ask, hear

_FORK_SERVER = "prewarm.trace.fork_server"


class Request(Record, kw_only=True, tag="plan"):
    """What the child is asked for."""

    serve_args: tuple[str, ...]
    target: Target
    closure: int
    seed: int
    cache_directory: bool = False
    """Whether to say as well where such a process looks for Triton's entries."""


class Planned(Record, kw_only=True, tag=True):
    """The answer."""

    manifest: Manifest
    cache_directory: str | None = None
    """None where nobody names one, or it was not asked for."""


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
    request = Request(serve_args=serve_args, target=target, closure=closure, seed=seed)
    return _ask(request, progress).manifest


def plan_to_serve(
    serve_args: tuple[str, ...],
    target: Target,
    *,
    closure: int = 50,
    seed: int = 0,
    progress: Callable[[str], object] = lambda text: None,
) -> tuple[Manifest, str | None]:
    """Return what `plan` does, and what TRITON_CACHE_DIR comes to in such a process here.

    None where nobody names a directory. Raises what `plan` raises.
    """
    request = Request(
        serve_args=serve_args, target=target, closure=closure, seed=seed, cache_directory=True
    )
    found = _ask(request, progress)
    return found.manifest, found.cache_directory


def _ask(request: Request, progress: Callable[[str], object]) -> Planned:
    check_host(request.target, platform.machine())
    return ask(request, Planned, progress)


class Planner:
    """Plans one deployment after another, each in a process of its own that shares imports.

    A context manager: what it started is gone when it is left.
    """

    def __init__(self) -> None:
        """Start nothing yet."""
        self._servers: dict[str, Child] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self._servers.clear()
        self._stack.close()

    def plan(
        self,
        serve_args: tuple[str, ...],
        target: Target,
        *,
        closure: int = 50,
        seed: int = 0,
        progress: Callable[[str], object] = lambda text: None,
    ) -> Manifest:
        """Return what the function `plan` returns, byte for byte; raises what it raises."""
        check_host(target, platform.machine())
        if target.name not in self._servers:
            started = self._stack.enter_context(child(_FORK_SERVER, None))
            self._servers[target.name] = started
        server = self._servers[target.name]
        request = Request(serve_args=serve_args, target=target, closure=closure, seed=seed)
        server.ask(msgspec.json.encode(request))
        try:
            return hear(server, Planned, progress).manifest
        finally:
            if server.process.poll() is not None:
                del self._servers[target.name]
