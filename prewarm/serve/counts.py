"""What Triton did in this process besides launching, by kernel and phase."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable

from prewarm.core.record import Record

START_UP = "start-up"
UNBOUND = "unbound"
"""While the plugin itself compiles the launches that were unbound."""
INFERENCE = "inference"

HITS = "hits"
COMPILES = "compiles"
COMPILE_SECONDS = "compile seconds"
BENCHMARKS = "benchmarks"
BENCHMARK_SECONDS = "benchmark seconds"
BUILDS = "builds"
BUILD_SECONDS = "build seconds"
LIBRARY_LOADS = "library loads"
"""Of FlashInfer's libraries that were there."""
LIBRARY_BUILDS = "library builds"
LIBRARY_BUILD_SECONDS = "library build seconds"


class Count(Record, kw_only=True):
    """How much of one thing happened to one kernel in one phase."""

    what: str
    """One of the names above."""
    subject: str
    """A kernel as `module:function`, a host module or a library of FlashInfer by its name."""
    phase: str
    planned: bool
    """Whether the installed cache's plan knows the kernel."""
    value: float


class Counts(Record, kw_only=True):
    """Everything that one process counted."""

    pid: int
    rank: int = 0
    cache: str = ""
    """Digest of the manifest that the installed cache was made from; empty without one."""
    ready: bool = False
    counts: tuple[Count, ...] = ()

    def total(self, what: str, *, phase: str | None = None, planned: bool | None = None) -> float:
        """Return how much of `what` happened, in all phases and kernels or in those named."""
        return sum(
            each.value
            for each in self.counts
            if each.what == what and phase in {None, each.phase} and planned in {None, each.planned}
        )


class Counter:
    """Counts for this process; a child that it forks begins at nothing."""

    def __init__(self) -> None:
        self.phase = START_UP
        self.rank = 0
        self.cache = ""
        self.ready = False
        self._lock = threading.Lock()
        self._values: dict[tuple[str, str, str, bool], float] = {}

    def add(self, subject: str, what: Iterable[tuple[str, float]], *, planned: bool) -> None:
        """Add each of `what`, a name and how much, to `subject` in the present phase."""
        with self._lock:
            for name, value in what:
                key = (name, subject, self.phase, planned)
                self._values[key] = self._values.get(key, 0) + value

    def counts(self) -> Counts:
        """Return what was counted so far."""
        with self._lock:
            found = tuple(
                Count(what=what, subject=subject, phase=phase, planned=planned, value=value)
                for (what, subject, phase, planned), value in self._values.items()
            )
        return Counts(
            pid=os.getpid(), rank=self.rank, cache=self.cache, ready=self.ready, counts=found
        )

    def begin_again(self) -> None:
        """Forget everything, in a process that was forked."""
        self._lock = threading.Lock()
        self._values = {}
        self.phase = START_UP
        self.ready = False
