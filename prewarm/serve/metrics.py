"""Counts of every process in vLLM's own metrics endpoint.

Only the API server answers there, and what is counted is counted in workers. Each process keeps
its counts in a file of its own in one directory, which the first process makes and the others
inherit by name; the API server reads them when it is asked.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, MutableMapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

import prewarm
from prewarm.serve import counts as names
from prewarm.serve.counts import Counts

STATE = "PREWARM_STATE"
"""Names the directory to the processes that vLLM starts."""
_MEMORY = "/dev/shm"  # noqa: S108  (the directory in it is this user's alone)
"""Preferred: on a disk, replacing a file may take milliseconds, and inference would wait."""


_PREFIX = "prewarm-state-"
_OWNER = "owner"


class _Metric(NamedTuple):
    name: str
    help: str


_BY_KERNEL = {
    names.HITS: _Metric("prewarm_triton_hits", "Kernels that Triton found in its cache."),
    names.COMPILES: _Metric("prewarm_triton_compiles", "Kernels that Triton compiled."),
    names.COMPILE_SECONDS: _Metric(
        "prewarm_triton_compile_seconds", "Time that Triton's compiler took."
    ),
    names.BENCHMARKS: _Metric(
        "prewarm_triton_benchmarks", "Configs that Triton's autotuners measured."
    ),
    names.BENCHMARK_SECONDS: _Metric(
        "prewarm_triton_benchmark_seconds", "Time that autotuners took, compiling not counted."
    ),
}
_BY_MODULE = {
    names.BUILDS: _Metric("prewarm_host_module_builds", "Host modules built by a C compiler."),
    names.BUILD_SECONDS: _Metric(
        "prewarm_host_module_build_seconds", "Time that the C compiler took."
    ),
    names.LIBRARY_LOADS: _Metric(
        "prewarm_flashinfer_library_loads", "Libraries that FlashInfer found built."
    ),
    names.LIBRARY_BUILDS: _Metric(
        "prewarm_flashinfer_library_builds", "Libraries that FlashInfer had built by ninja."
    ),
    names.LIBRARY_BUILD_SECONDS: _Metric(
        "prewarm_flashinfer_library_build_seconds", "Time that FlashInfer's builds took."
    ),
}


def state_directory(environment: MutableMapping[str, str]) -> tuple[Path, bool]:
    """Return the directory of counts that `environment` names, and whether it was made here.

    What is made here is gone when this process ends. Raises OSError where none can be made.
    """
    if (given := environment.get(STATE)) and os.path.isdir(given):
        return Path(given), False
    parent = _MEMORY if os.access(_MEMORY, os.W_OK | os.X_OK) else tempfile.gettempdir()
    _sweep(parent)
    made = tempfile.mkdtemp(prefix=_PREFIX, dir=parent)
    _hold(made)
    environment[STATE] = made
    atexit.register(_remove, made, os.getpid())
    return Path(made), True


def _hold(directory: str) -> None:
    """Mark `directory` as used, until this process and all that it forked have ended."""
    path = f"{directory}/{_OWNER}"
    handle = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(handle, fcntl.LOCK_EX)
    os.rename(f"{path}.new", path)


def _sweep(parent: str) -> None:
    """Remove the directories of processes that were killed before they could do so."""
    for directory in Path(parent).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError), (directory / _OWNER).open("rb") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)


def _remove(directory: str, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(directory, ignore_errors=True)


def publish(state: Path, counts: Counts) -> None:
    """Put `counts` in place of what the same process published before; raises OSError."""
    path = f"{state}/{counts.pid}.json"
    # Not synced: it need not outlive the machine, and inference waits for it.
    with open(f"{path}.new", "wb") as stream:
        stream.write(msgspec.json.encode(counts))
    os.replace(f"{path}.new", path)


def published(state: Path) -> Iterator[Counts]:
    """Yield what each process published last."""
    for path in sorted(state.glob("*.json")):
        try:
            yield msgspec.json.decode(path.read_bytes(), type=Counts)
        except (OSError, msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            continue


class Collector:
    """What Prometheus's client asks for the metrics of every process."""

    def __init__(self, state: Path) -> None:
        self._state = state

    def describe(self) -> Iterable[Any]:
        """Return the metrics without their values."""
        return list(metrics_of(()))

    def collect(self) -> Iterable[Any]:
        """Return the metrics as they are now."""
        return list(metrics_of(published(self._state)))


def metrics_of(processes: Iterable[Counts]) -> Iterator[Any]:
    """Yield the metrics of `processes` as Prometheus's client holds them."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    found = list(processes)
    for tables, label in ((_BY_KERNEL, "kernel"), (_BY_MODULE, "module")):
        for what, metric in tables.items():
            labels = [label, "phase", "planned", "rank"]
            family = CounterMetricFamily(metric.name, metric.help, labels=labels)
            for key, value in sorted(_sums(found, what).items()):
                family.add_metric(key, value)
            yield family
    ready = GaugeMetricFamily(
        "prewarm_ready",
        "1 when a worker has ended its warm-up: later compiles stall requests.",
        labels=["rank", "cache", "version"],
    )
    for each in {(each.rank, each.cache): each for each in found if each.ready}.values():
        ready.add_metric([str(each.rank), each.cache, prewarm.__version__], 1)
    yield ready


def _sums(processes: Iterable[Counts], what: str) -> dict[tuple[str, ...], float]:
    """Return the values of `what` by subject, phase, planned and rank."""
    sums: dict[tuple[str, ...], float] = {}
    for process in processes:
        for count in process.counts:
            if count.what == what:
                planned = "yes" if count.planned else "no"
                key = (count.subject, count.phase, planned, str(process.rank))
                sums[key] = sums.get(key, 0) + count.value
    return sums


def expose(state: Path) -> None:
    """Let every registry that vLLM may answer from hold the counts in `state`.

    That is the default one, or, with several API servers, whatever collects for many processes:
    vLLM and its instrumentator each make a new one of that kind. Once a process.
    """
    from prometheus_client import REGISTRY
    from prometheus_client.multiprocess import MultiProcessCollector

    collector = Collector(state)
    REGISTRY.register(collector)
    for_many: Any = MultiProcessCollector
    collect = for_many.collect

    def with_counts(own: Any) -> Iterator[Any]:
        yield from collect(own)
        yield from collector.collect()

    for_many.collect = with_counts
