"""Hears what Triton does in this process: counts it, has misses explained, takes it down."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prewarm.core.errors import UnsupportedError
from prewarm.core.manifest import Constexpr
from prewarm.serve import counts, recording
from prewarm.serve.counts import INFERENCE, UNBOUND, Counter
from prewarm.serve.explain import Explainer, launch_of, tuning_key_of
from prewarm.serve.installed import InstalledCache
from prewarm.serve.log import feature, say_once
from prewarm.serve.metrics import publish
from prewarm.serve.settings import OnMiss

if TYPE_CHECKING:
    from prewarm.serve.flashinfer_seam import Taken
    from prewarm.serve.triton_seam import Lookup


class Observer:
    """What is known of the installed cache, and what became of it in this process."""

    def __init__(
        self,
        cache: InstalledCache | None,
        on_miss: OnMiss,
        record: recording.Recording | None,
        state: Path | None,
    ) -> None:
        self.counter = Counter()
        self.cache = cache
        self._explainer = Explainer(on_miss)
        self._record = record
        self._state = state
        self._is_benchmarking = False
        self._compile_seconds = 0.0

    # --- Triton's events -----------------------------------------------------------------

    def looked_up(self, lookup: Lookup) -> None:
        """Hear of a kernel that was not in memory.

        Raises MissError in inference, where a miss is to be an error.
        """
        cache = self._cache_that_knows(lookup.kernel)
        phase = self.counter.phase
        with feature("counting"):
            self._count_lookup(lookup)
        with feature("PREWARM_RECORD"):
            self._take_down_lookup(lookup)
        if cache is None or self._is_benchmarking or phase == UNBOUND:
            return
        if not lookup.found:
            self._explainer.compiled(lookup, cache, phase)
        elif phase == INFERENCE:
            self._explainer.found(lookup)

    @contextlib.contextmanager
    def benchmark(self, kernel: str, tuner: Any, arguments: Mapping[str, Any]) -> Iterator[None]:
        """Hear of the benchmark of one config that runs in the block; raises as `looked_up`."""
        cache = self._cache_that_knows(kernel)
        if cache is not None:
            self._explainer.autotuned(kernel, tuner, arguments, cache, self.counter.phase)
        self._is_benchmarking = True
        began, compiling = time.monotonic(), self._compile_seconds
        try:
            yield
        finally:
            self._is_benchmarking = False
            took = time.monotonic() - began - (self._compile_seconds - compiling)
            with feature("counting"):
                self._count(kernel, {counts.BENCHMARKS: 1, counts.BENCHMARK_SECONDS: max(0, took)})
            self._write(recording.Benchmarked(**self._here(), kernel=kernel, seconds=max(0, took)))

    def met_tuning_key(self, kernel: str, tuner: Any, arguments: Mapping[str, Any]) -> None:
        """Hear of a tuning key that an autotuner has not in memory."""
        with feature("PREWARM_RECORD"):
            key = tuning_key_of(tuner, arguments)
            self._write(recording.Tuned(**self._here(), kernel=kernel, key=key, by_size=False))

    def tuned_by_size(self, kernel: str, key: Mapping[str, Constexpr]) -> None:
        """Hear of a tuning key that winners by size settle."""
        self._write(recording.Tuned(**self._here(), kernel=kernel, key=dict(key), by_size=True))

    def built(self, module: str, seconds: float) -> None:
        """Hear of a host module that was built."""
        with feature("counting"):
            self._count(module, {counts.BUILDS: 1, counts.BUILD_SECONDS: seconds})
        self._write(recording.Built(**self._here(), module=module, seconds=seconds))

    def took_library(self, taken: Taken) -> None:
        """Hear of a library of FlashInfer that was loaded, or built first."""
        with feature("counting"):
            planned = self.cache is not None and taken.module in self.cache.libraries
            what: dict[str, float] = {counts.LIBRARY_LOADS: 1}
            if not taken.prebuilt:
                seconds = taken.seconds
                what = {counts.LIBRARY_BUILDS: 1, counts.LIBRARY_BUILD_SECONDS: seconds}
                if planned:
                    say_once(
                        f"FlashInfer built {taken.module} in {seconds:.1f} s, though the installed"
                        " cache has it: prewarm verify DIR -- SERVE ARGS says why"
                    )
            self._add(taken.module, what, planned=planned)
        module, found, seconds = taken
        here = self._here()
        self._write(recording.Library(**here, module=module, found=found, seconds=seconds))

    # --- a worker's ----------------------------------------------------------------------

    def sized(self, blocks: int) -> None:
        """Hear how many GPU blocks the worker has."""
        rank = self.counter.rank
        self._write(recording.Worker(pid=os.getpid(), rank=rank, gpu_blocks=blocks))

    def ready(self) -> None:
        """Hear that what follows is inference."""
        self.counter.phase, self.counter.ready = INFERENCE, True
        self._write(recording.Ready(pid=os.getpid(), rank=self.counter.rank))
        self._publish()

    # --- counting and taking down --------------------------------------------------------

    def _cache_that_knows(self, kernel: str) -> InstalledCache | None:
        """Return the installed cache if it was planned with `kernel`."""
        if self.cache is None:
            return None
        with feature("looking into the installed cache"):
            return self.cache if kernel in self.cache.kernels else None
        self.cache = None
        return None

    def _count_lookup(self, lookup: Lookup) -> None:
        if lookup.found:
            self._count(lookup.kernel, {counts.HITS: 1})
        else:
            self._compile_seconds += lookup.seconds
            took = {counts.COMPILES: 1, counts.COMPILE_SECONDS: lookup.seconds}
            self._count(lookup.kernel, took)

    def _count(self, subject: str, what: Mapping[str, float]) -> None:
        self._add(subject, what, planned=self._cache_that_knows(subject) is not None)

    def _add(self, subject: str, what: Mapping[str, float], *, planned: bool) -> None:
        self.counter.add(subject, what.items(), planned=planned)
        # Before that nobody can ask: the server answers when all workers are ready.
        if self.counter.ready:
            self._publish()

    def _publish(self) -> None:
        if self._state is not None:
            with feature("the metrics of this process"):
                publish(self._state, self.counter.counts())

    def _here(self) -> dict[str, Any]:
        return {"pid": os.getpid(), "rank": self.counter.rank, "phase": self.counter.phase}

    def _write(self, event: recording.Event) -> None:
        if self._record is not None:
            with feature("PREWARM_RECORD"):
                self._record.write(event)

    def _take_down_lookup(self, lookup: Lookup) -> None:
        if self._record is None:
            return
        facts = {**self._here(), "found": lookup.found, "seconds": lookup.seconds}
        try:
            launch = launch_of(lookup)
        except UnsupportedError as error:
            reason = error.message
            self._write(recording.Other(**facts, kernel=lookup.kernel, reason=reason))
        else:
            self._write(recording.Looked(**facts, launch=launch, key=lookup.key))
