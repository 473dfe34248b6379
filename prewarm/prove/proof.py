"""What serving processes asked Triton for -> what a cache spared, and how right the plan was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from prewarm.core.asked import Asked, asked_of, differences, in_words, nearest
from prewarm.core.manifest import Constexpr, Kernel, Launch, Manifest, Specialization
from prewarm.core.record import Record
from prewarm.core.selection import Selection, selected_launches
from prewarm.prove.message import STEADY, Depth, Lap, Served
from prewarm.serve.counts import INFERENCE, START_UP, UNBOUND
from prewarm.serve.recording import (
    Benchmarked,
    Built,
    Event,
    Library,
    Looked,
    Other,
    Tuned,
    Worker,
)
from prewarm.serve.unbound import settle

PHASES = (START_UP, UNBOUND, INFERENCE)


class Work(Record, kw_only=True):
    """What Triton did for some kernels in one phase, on all ranks together."""

    compiles: int = 0
    hits: int = 0
    benchmarks: int = 0
    """Configs that an autotuner timed: what others call autotune events."""
    seconds: float = 0.0
    """Of compiles, of benchmarks and of looking up."""

    @property
    def spared(self) -> bool:
        """Whether nothing was compiled and nothing benchmarked."""
        return not self.compiles and not self.benchmarks


class Libraries(Record, kw_only=True):
    """How often one module of FlashInfer was taken, on all ranks together."""

    loads: int = 0
    """From a library that was there."""
    builds: int = 0
    seconds: float = 0.0

    @property
    def loaded(self) -> bool:
        """Whether it was taken, and never built."""
        return bool(self.loads) and not self.builds


class Column(Record, kw_only=True):
    """One serving process and its workers."""

    name: str
    start_up: float
    """Seconds from the first import to readiness."""
    first: float
    """Seconds of the first steady prefill."""
    tenth: float
    """Seconds of the last of them."""
    tokens_per_second: float
    """Of the second half of them."""
    worst: float
    """Seconds of the slowest workload after them, and which: `slowest`."""
    slowest: str
    planned: dict[str, Work]
    """Phase to work for the kernels of the manifest."""
    others: dict[str, Work]
    """The same for every other kernel."""
    compiled_besides: dict[str, dict[str, int]]
    """Phase to the other kernels that were compiled in it, and how often."""
    host_modules: dict[str, int]
    """Phase to modules built with a C compiler."""
    gpu_blocks: tuple[int, ...]
    """Of each worker."""
    libraries: dict[str, Libraries] = {}
    """By module of FlashInfer."""

    def taken(self, module: str) -> Libraries:
        """Return how often `module` of FlashInfer was taken, be it never."""
        return self.libraries.get(module, Libraries())


class Escape(Record, kw_only=True):
    """A launch that a process made and the manifest does not hold."""

    kernel: str
    phase: str
    words: str
    """How it differs from the nearest that the manifest holds."""
    count: int = 1


class Idle(Record, kw_only=True):
    """Launches of one kernel that the cache holds and no workload asked for."""

    kernel: str
    launches: int
    via: tuple[str, ...]
    """The workloads that reached them when they were planned."""


class Proof(Record, kw_only=True):
    """The processes beside one another, and the manifest beside what they did."""

    depth: Depth
    gpu: str
    workloads: int
    columns: tuple[Column, ...]
    """The last one is that of the cache."""
    escapes: tuple[Escape, ...]
    """Of all columns: what the plan missed."""
    idle: tuple[Idle, ...]
    """Of the last column."""
    modules: tuple[str, ...] = ()
    """Of FlashInfer, that the plan says are called and whose loads and builds are counted."""
    uncounted: tuple[str, ...] = ()
    """What else the plan says is called outside Triton."""

    @property
    def holds(self) -> bool:
        """Whether the cache spared what was planned all work, and the plan missed nothing."""
        last = self.columns[-1]
        work = last.planned
        spared = work[START_UP].spared and work[INFERENCE].spared
        loaded = all(last.taken(each).loaded for each in self.modules)
        return spared and loaded and not self.escapes


def column(name: str, served: Served, events: Sequence[Event], planned: frozenset[str]) -> Column:
    """Return what one process and its workers did; `planned` are the kernels of the manifest."""
    steady = [lap for lap in served.laps if lap.kind == STEADY]
    rest = [lap for lap in served.laps if lap.kind != STEADY] or steady
    late = steady[len(steady) // 2 :]
    slowest = max(rest, key=lambda lap: lap.seconds)
    return Column(
        name=name,
        start_up=served.start_up,
        first=steady[0].seconds,
        tenth=steady[-1].seconds,
        tokens_per_second=_rate(late),
        worst=slowest.seconds,
        slowest=slowest.kind,
        planned={phase: _work(events, phase, planned, of_plan=True) for phase in PHASES},
        others={phase: _work(events, phase, planned, of_plan=False) for phase in PHASES},
        compiled_besides={phase: _besides(events, phase, planned) for phase in PHASES},
        host_modules=Counter(each.phase for each in events if isinstance(each, Built)),
        gpu_blocks=tuple(each.gpu_blocks for each in events if isinstance(each, Worker)),
        libraries=_libraries([each for each in events if isinstance(each, Library)]),
    )


def _libraries(taken: Sequence[Library]) -> dict[str, Libraries]:
    modules = sorted({each.module for each in taken})
    return {name: _taken([each for each in taken if each.module == name]) for name in modules}


def _taken(times: Sequence[Library]) -> Libraries:
    return Libraries(
        loads=sum(each.found for each in times),
        builds=sum(not each.found for each in times),
        seconds=sum(each.seconds for each in times),
    )


def _rate(laps: Sequence[Lap]) -> float:
    return sum(lap.tokens for lap in laps) / sum(lap.seconds for lap in laps)


def _work(events: Sequence[Event], phase: str, planned: frozenset[str], *, of_plan: bool) -> Work:
    looked = [
        each
        for each in events
        if isinstance(each, Looked | Other)
        and each.phase == phase
        and (_kernel(each) in planned) == of_plan
    ]
    timed = [
        each
        for each in events
        if isinstance(each, Benchmarked)
        and each.phase == phase
        and (each.kernel in planned) == of_plan
    ]
    return Work(
        compiles=sum(not each.found for each in looked),
        hits=sum(each.found for each in looked),
        benchmarks=len(timed),
        seconds=sum(each.seconds for each in (*looked, *timed)),
    )


def _besides(events: Sequence[Event], phase: str, planned: frozenset[str]) -> dict[str, int]:
    return Counter(
        _kernel(each)
        for each in events
        if isinstance(each, Looked | Other)
        and each.phase == phase
        and not each.found
        and _kernel(each) not in planned
    )


def _kernel(event: Looked | Other) -> str:
    return event.launch.kernel if isinstance(event, Looked) else event.kernel


def escapes_of(
    manifest: Manifest, selection: Selection | None, events: Iterable[Event], *, whole: bool
) -> Iterator[Escape]:
    """Yield what the workers of `events` asked for and `manifest` does not hold, each once.

    With a `selection` only its configs are held. Kernels that the manifest does not know are
    escapes unless the `whole` engine ran: then they are those of other layers.
    """
    events = tuple(events)
    known = _known(manifest, selection, events)
    digests = {launch.digest for launch in known}
    asked = [(launch, asked_of(launch)) for launch in known]
    kernels = {kernel.name for kernel in manifest.kernels}
    keys = {
        (kernel.name, _frozen(one.tuning_key))
        for kernel in manifest.kernels
        for one in kernel.specializations
    }
    found: Counter[tuple[str, str, str]] = Counter()
    for each in events:
        match each:
            case Looked(launch=launch, phase=phase) if launch.digest not in digests:
                if launch.kernel in kernels:
                    mates = [pair for pair in asked if pair[0].kernel == launch.kernel]
                    found[launch.kernel, phase, how_it_differs(launch, mates)] += 1
                elif not whole and launch.kernel.startswith("vllm."):
                    found[launch.kernel, phase, "the manifest does not know this kernel"] += 1
            case Tuned(kernel=kernel, key=key, phase=phase) if kernel in kernels:
                if (kernel, _frozen(key)) not in keys:
                    found[kernel, phase, f"the manifest has no such tuning key: {key}"] += 1
            case _:
                pass
    for (kernel, phase, words), count in found.items():
        yield Escape(kernel=kernel, phase=phase, words=words, count=count)


def _frozen(key: Mapping[str, Constexpr]) -> tuple[tuple[str, str], ...]:
    return tuple((name, repr(value)) for name, value in key.items())


def _known(
    manifest: Manifest, selection: Selection | None, events: Iterable[Event]
) -> tuple[Launch, ...]:
    launches = tuple(selected_launches(manifest, selection))
    sizes = {each.gpu_blocks for each in events if isinstance(each, Worker)}
    settled = (settle(launches, manifest.unbound, blocks).launches for blocks in sorted(sizes))
    return (*launches, *(launch for some in settled for launch in some))


def how_it_differs(launch: Launch, mates: Sequence[tuple[Launch, Asked]]) -> str:
    """Return how `launch` differs from the nearest of `mates`, launches of its kernel, in words."""
    here = asked_of(launch)
    mate = nearest(here, mates)
    if mate is None:
        return "the manifest holds no launch of this kernel"
    rows = differences(mate[1], here)
    return "; ".join(in_words(each, "in the manifest") for each in rows) or "its source differs"


def idle_of(
    manifest: Manifest, selection: Selection | None, events: Iterable[Event]
) -> Iterator[Idle]:
    """Yield, kernel by kernel, the bound launches that no worker of `events` asked for."""
    asked = {each.launch.digest for each in events if isinstance(each, Looked)}
    for kernel in manifest.kernels:
        idle: dict[str, set[str]] = {}
        for one in kernel.specializations:
            for launch in _launches_of(manifest, kernel, one, selection):
                if not launch.unbound and launch.digest not in asked:
                    idle.setdefault(launch.digest, set()).update(one.via)
        if idle:
            via = sorted(set().union(*idle.values()))
            yield Idle(kernel=kernel.name, launches=len(idle), via=tuple(via))


def _launches_of(
    manifest: Manifest, kernel: Kernel, one: Specialization, selection: Selection | None
) -> Iterator[Launch]:
    alone = msgspec.structs.replace(kernel, specializations=(one,))
    return selected_launches(msgspec.structs.replace(manifest, kernels=(alone,)), selection)
