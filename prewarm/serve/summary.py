"""What start-up took, in one line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from prewarm.serve import counts
from prewarm.serve.counts import START_UP, Counts
from prewarm.serve.unbound import Done


def summary(found: Counts, cache: Path | None, unbound: Done, sized: Sequence[str] = ()) -> str:
    """Return the line of a worker that is ready: hits, compiles, benchmarks, seconds, unbound."""
    return "; ".join(_parts(found, cache, unbound, sized))


def _parts(found: Counts, cache: Path | None, unbound: Done, sized: Sequence[str]) -> Iterator[str]:
    if cache is None:
        yield f"ready without a cache: {_did(found, planned=False)}"
    else:
        yield f"ready with the cache in {cache}: {_did(found, planned=True)}"
        if unbound.values:
            yield _unbound(unbound)
        if sized:
            yield f"winners by size for {_many(len(sized), 'kernel')}"
        yield f"kernels outside the plan: {_did(found, planned=False)}"
    if builds := found.total(counts.BUILDS):
        seconds = found.total(counts.BUILD_SECONDS)
        yield f"{_many(builds, 'host module')} built in {seconds:.1f} s"
    if loads := found.total(counts.LIBRARY_LOADS):
        yield f"{_many(loads, 'FlashInfer module')} loaded as built"
    if builds := found.total(counts.LIBRARY_BUILDS):
        seconds = found.total(counts.LIBRARY_BUILD_SECONDS)
        yield f"{_many(builds, 'FlashInfer module')} built in {seconds:.1f} s"


def _did(found: Counts, *, planned: bool) -> str:
    def total(what: str) -> float:
        return found.total(what, phase=START_UP, planned=planned)

    return ", ".join(
        (
            _many(total(counts.HITS), "hit"),
            _many(total(counts.COMPILES), "compile") + _took(total(counts.COMPILE_SECONDS)),
            _many(total(counts.BENCHMARKS), "benchmark") + _took(total(counts.BENCHMARK_SECONDS)),
        )
    )


def _many(number: float, noun: str) -> str:
    return f"{number:.0f} {noun}" if number == 1 else f"{number:.0f} {noun}s"


def _took(seconds: float) -> str:
    return f" ({seconds:.1f} s)" if seconds else ""


def _unbound(done: Done) -> str:
    values = ", ".join(f"{name}={value}" for name, value in sorted(done.values.items()))
    return (
        f"unbound ({values}): {done.compiled} compiled, {done.found} found, in {done.seconds:.1f} s"
    )
