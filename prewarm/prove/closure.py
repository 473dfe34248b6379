"""What random request streams asked for, held against a manifest both ways."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from prewarm.core.asked import Asked, asked_of
from prewarm.core.manifest import BEFORE_SERVING, Kernel, Launch, Manifest, launches_of
from prewarm.core.record import Record
from prewarm.core.selection import tuning_id
from prewarm.prove.proof import how_it_differs
from prewarm.serve.unbound import settle
from prewarm.trace.check import Served

_NO_KEY = "the manifest has no such tuning key"


class Escape(Record, kw_only=True):
    """Launches of one kernel that were asked for and that the manifest does not hold."""

    kernel: str
    words: str
    """How they differ from the nearest that it holds."""
    launches: int
    first: str
    """What asked for one of them first: `stream 7`."""


class Idle(Record, kw_only=True):
    """Launches of one kernel that the manifest holds and no stream asked for."""

    kernel: str
    launches: int
    via: tuple[str, ...]
    """Why they are there: what reached them when they were planned."""


class Closure(Record, kw_only=True):
    """A manifest beside random request streams."""

    manifest: str
    """Digest of the manifest."""
    seed: int
    streams: int
    steps: int
    requests: int
    preemptions: int
    prefix_hits: int
    aborts: int
    calls: int
    """Launches, each as often as it was made."""
    gpu_blocks: tuple[int, ...]
    planned: int
    """Launches of the manifest."""
    asked: int
    """Different launches that were asked for, start-up and graph capture included."""
    escapes: tuple[Escape, ...]
    dead: tuple[Idle, ...]
    """Dead weight: neither a stream nor start-up and graph capture of its engine asked for it."""
    before_serving: tuple[Idle, ...]
    """What only start-up or graph capture asked for: needed, but by no step of inference."""

    @property
    def holds(self) -> bool:
        """Whether the manifest holds everything that was asked for."""
        return not self.escapes

    @property
    def dead_weight(self) -> float:
        """Share of the manifest's launches that is dead weight."""
        return sum(each.launches for each in self.dead) / self.planned if self.planned else 0.0


def closure_of(manifest: Manifest, engines: Sequence[Served], seed: int) -> Closure:
    """Return what the streams that `engines` served found in `manifest`, and what not."""
    asked: set[str] = set()
    used: dict[str, set[str]] = {}
    for engine in engines:
        planned = _planned_as(manifest, engine.gpu_blocks)
        for launch, via in _launches(engine.kernels):
            asked.add(launch.digest)
            if launch.digest in planned:
                used.setdefault(planned[launch.digest], set()).update(via)
    return Closure(
        manifest=manifest.digest,
        seed=seed,
        streams=sum(each.streams for each in engines),
        steps=sum(each.steps for each in engines),
        requests=sum(each.requests for each in engines),
        preemptions=sum(each.preemptions for each in engines),
        prefix_hits=sum(each.prefix_hits for each in engines),
        aborts=sum(each.aborts for each in engines),
        calls=sum(each.calls for each in engines),
        gpu_blocks=tuple(each.gpu_blocks for each in engines),
        planned=sum(1 for _ in manifest.launches()),
        asked=len(asked),
        escapes=_escapes(manifest, engines),
        dead=tuple(_idle(manifest, lambda digest: digest not in used)),
        before_serving=tuple(
            _idle(manifest, lambda digest: used.get(digest, {""}) <= BEFORE_SERVING)
        ),
    )


def _launches(kernels: Iterable[Kernel]) -> Iterator[tuple[Launch, tuple[str, ...]]]:
    """Yield every launch of `kernels`, and what reached it."""
    for kernel in kernels:
        for one in kernel.specializations:
            for launch in launches_of(kernel, one):
                yield launch, one.via


def _planned_as(manifest: Manifest, gpu_blocks: int) -> dict[str, str]:
    """Return digest to digest in `manifest` of what it holds for `gpu_blocks` GPU blocks."""
    held: dict[str, str] = {}
    for launch in manifest.launches():
        held[launch.digest] = launch.digest
        for settled in settle((launch,), manifest.unbound, gpu_blocks).launches:
            held[settled.digest] = launch.digest
    return held


def _escapes(manifest: Manifest, engines: Sequence[Served]) -> tuple[Escape, ...]:
    found: dict[tuple[str, str], dict[str, str]] = {}
    for engine in engines:
        for kernel, words, digest, first in _escapes_of(manifest, engine):
            found.setdefault((kernel, words), {}).setdefault(digest, first)
    return tuple(
        Escape(
            kernel=kernel,
            words=words,
            launches=len(firsts),
            first=min(firsts.values(), key=_moment),
        )
        for (kernel, words), firsts in found.items()
    )


def _escapes_of(manifest: Manifest, engine: Served) -> Iterator[tuple[str, str, str, str]]:
    """Yield kernel, words, digest of the launch, and what asked for it first."""
    held = _planned_as(manifest, engine.gpu_blocks)
    mates = _mates(manifest, engine.gpu_blocks)
    keys = {
        tuning_id(kernel.name, one.tuning_key)
        for kernel in manifest.kernels
        for one in kernel.specializations
    }
    for kernel in engine.kernels:
        for one in kernel.specializations:
            first = min(one.via, key=_moment)
            unknown = kernel.name in mates and tuning_id(kernel.name, one.tuning_key) not in keys
            for launch in launches_of(kernel, one):
                if launch.digest not in held:
                    yield (
                        kernel.name,
                        how_it_differs(launch, mates.get(kernel.name, ())),
                        launch.digest,
                        first,
                    )
                elif unknown:
                    yield kernel.name, f"{_NO_KEY}: {one.tuning_key}", launch.digest, first


def _mates(manifest: Manifest, gpu_blocks: int) -> dict[str, list[tuple[Launch, Asked]]]:
    """Return the launches of each kernel as they are with `gpu_blocks` GPU blocks."""
    mates: dict[str, list[tuple[Launch, Asked]]] = {}
    for launch in manifest.launches():
        settled = settle((launch,), manifest.unbound, gpu_blocks).launches or (launch,)
        mates.setdefault(launch.kernel, []).extend((each, asked_of(each)) for each in settled)
    return mates


def _moment(via: str) -> tuple[bool, int]:
    """Return a key that orders what reaches launches: before serving, then stream by stream."""
    name, _, number = via.rpartition(" ")
    return (name == "stream", int(number) if name == "stream" else 0)


def _idle(manifest: Manifest, chosen: Callable[[str], bool]) -> Iterator[Idle]:
    """Yield, kernel by kernel, the launches of `manifest` whose digest is `chosen`."""
    for kernel in manifest.kernels:
        idle: dict[str, set[str]] = {}
        for launch, via in _launches((kernel,)):
            if chosen(launch.digest):
                idle.setdefault(launch.digest, set()).update(via)
        if idle:
            via = tuple(sorted(set().union(*idle.values())))
            yield Idle(kernel=kernel.name, launches=len(idle), via=via)
