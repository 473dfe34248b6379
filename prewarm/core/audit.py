"""What vLLM's own start-up does not cover of vLLM's own inference, read from a traced manifest.

A process compiles each launch once, and its autotuners settle each tuning key once, whatever the
other arguments are. What start-up asked for is therefore done; what inference asks for first is
done while a request waits.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from prewarm.core.asked import Asked, Difference, asked_by, differences, nearest
from prewarm.core.manifest import (
    BEFORE_SERVING,
    START_UP,
    Kernel,
    Manifest,
    Specialization,
    launches_of,
)
from prewarm.core.record import Record
from prewarm.core.selection import tuning_id

_KEY = "tuning key "
_DTYPE_OF = "dtype of "
_ALIGNED = " divisible by 16"


class Work(Record, kw_only=True):
    """What one rank does for launches that it has not made before."""

    compiles: int = 0
    benchmarks: int = 0
    """Timings of one candidate for one tuning key: what vLLM's users call autotune events."""

    def __add__(self, other: Work) -> Work:
        return Work(
            compiles=self.compiles + other.compiles,
            benchmarks=self.benchmarks + other.benchmarks,
        )

    def __bool__(self) -> bool:
        """Return whether there is any."""
        return bool(self.compiles or self.benchmarks)


class Mismatch(Record, kw_only=True):
    """One thing that inference asks for otherwise than start-up did."""

    difference: Difference
    """`known` is what start-up asked for, `here` what inference asks for."""
    tunes: bool
    """Whether it is part of tuning keys, so that autotuners benchmark again because of it."""


class Leak(Record, kw_only=True):
    """Something that inference asks for and start-up did not."""

    kernel: str
    asked: dict[str, str]
    """What it asks for, by argument, option or part of the tuning key."""
    via: tuple[str, ...]
    """The kinds of workload that reach it."""
    work: Work
    mismatches: tuple[Mismatch, ...] | None
    """In what it differs from what start-up asked for most alike; None where start-up never
    launches the kernel."""


class Cause(Record, kw_only=True):
    """Mismatches that the same leaks have, over all kernels, and what they cost."""

    mismatches: tuple[Mismatch, ...]
    kernels: tuple[str, ...]
    work: Work
    """Of these leaks; one that has other mismatches too counts with them as well.

    There are no benchmarks unless one of `mismatches` is part of tuning keys.
    """


class Waste(Record, kw_only=True):
    """What start-up does for a kernel and no inference asks for."""

    kernel: str
    work: Work


class Audit(Record, kw_only=True):
    """What one rank compiles and benchmarks, and when."""

    start_up: Work
    inference: Work
    """What is left to inference: the sum over `leaks`."""
    one_of_each: int
    """The benchmarks of `inference` if each kernel is asked for one tuning key only."""
    causes: tuple[Cause, ...]
    """Those that cost most first."""
    leaks: tuple[Leak, ...]
    """In the order of the manifest."""
    in_vain: tuple[Waste, ...]


def audit(manifest: Manifest) -> Audit:
    """Return what start-up leaves to inference in the traced deployment of `manifest`."""
    processes = [_Process(kernel) for kernel in manifest.kernels]
    start_up = [process.start_up() for process in processes]
    leaks = [tuple(process.inference()) for process in processes]
    every = tuple(itertools.chain.from_iterable(leaks))
    return Audit(
        start_up=_sum(start_up),
        inference=_sum(leak.work for leak in every),
        one_of_each=sum(max((leak.work.benchmarks for leak in each), default=0) for each in leaks),
        causes=_causes(every),
        leaks=every,
        in_vain=tuple(filter(lambda waste: waste.work, map(_in_vain, manifest.kernels))),
    )


def _sum(works: Iterable[Work]) -> Work:
    return sum(works, start=Work())


class _Process:
    """A process that has not launched `kernel` yet."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._compiled: set[str] = set()
        self._settled: set[bytes] = set()

    def start_up(self) -> Work:
        """Return what start-up does, and let it be done."""
        return _sum(map(self.launch, _warmed(self._kernel)))

    def inference(self) -> Iterator[Leak]:
        """Yield what start-up did not do."""
        known = [asked_by(self._kernel, one) for one in _warmed(self._kernel)]
        for one in self._kernel.specializations:
            if work := self.launch(one):
                yield _leak(self._kernel, one, known, work)

    def launch(self, one: Specialization) -> Work:
        """Return what has to be done before `one` can be launched, and let it be done."""
        launches = {launch.digest for launch in launches_of(self._kernel, one)}
        compiles = len(launches - self._compiled)
        self._compiled |= launches
        if len(self._kernel.candidates) < 2:
            return Work(compiles=compiles)
        key = tuning_id(self._kernel.name, one.tuning_key)
        if key in self._settled:
            return Work(compiles=min(compiles, 1))  # the winner alone
        self._settled.add(key)
        return Work(compiles=compiles, benchmarks=len(launches))


def _warmed(kernel: Kernel) -> list[Specialization]:
    return [one for one in kernel.specializations if not BEFORE_SERVING.isdisjoint(one.via)]


def _in_vain(kernel: Kernel) -> Waste:
    """Return what start-up does for `kernel` that inference does not need.

    CUDA graphs are needed: inference replays what was captured, without a launch.
    """
    needed, only_start_up = _Process(kernel), []
    for one in kernel.specializations:
        if set(one.via) == {START_UP}:
            only_start_up.append(one)
        else:
            needed.launch(one)
    return Waste(kernel=kernel.name, work=_sum(map(needed.launch, only_start_up)))


def _leak(kernel: Kernel, one: Specialization, known: Sequence[Asked], work: Work) -> Leak:
    asked = asked_by(kernel, one)
    like = _most_alike(asked, known)
    return Leak(
        kernel=kernel.name,
        asked=dict(asked),
        via=one.via,
        work=work,
        mismatches=None if like is None else _mismatches(like, asked),
    )


def _most_alike(asked: Asked, known: Sequence[Asked]) -> Asked | None:
    """Return which of `known` has the tuning key most alike, and of several the rest most alike."""
    found = nearest(_tuning_key(asked), ((each, _tuning_key(each)) for each in known))
    if found is None:
        return None
    alike = [each for each in known if _tuning_key(each) == found[1]]
    closest = nearest(asked, ((each, each) for each in alike))
    assert closest is not None
    return closest[0]


def _tuning_key(asked: Asked) -> Asked:
    return {item: text for item, text in asked.items() if item.startswith(_KEY)}


def _mismatches(known: Asked, here: Asked) -> tuple[Mismatch, ...]:
    """Return in what the two differ; an argument and its part of the tuning key are one thing."""
    found = differences(known, here)
    fields = {each.field for each in found}
    tuning = {_subject(field) for field in fields if field.startswith(_KEY)}
    return tuple(
        Mismatch(difference=_without_alignment(each), tunes=_subject(each.field) in tuning)
        for each in found
        if not each.field.startswith(_KEY) or _subject(each.field) not in fields
    )


def _subject(field: str) -> str:
    """Return the argument that `field` is about."""
    return field.removeprefix(_KEY).removeprefix(_DTYPE_OF)


def _without_alignment(difference: Difference) -> Difference:
    """Return `difference` without the alignment of tensors, unless that is what differs."""
    known, here = (
        text.removesuffix(_ALIGNED) if text.startswith("*") else text
        for text in (difference.known, difference.here)
    )
    if known == here:
        return difference
    return msgspec.structs.replace(difference, known=known, here=here)


def _causes(leaks: Sequence[Leak]) -> tuple[Cause, ...]:
    having: dict[Mismatch, list[int]] = {}
    for at, leak in enumerate(leaks):
        for mismatch in leak.mismatches or ():
            having.setdefault(mismatch, []).append(at)
    together: dict[tuple[int, ...], list[Mismatch]] = {}
    for mismatch, found in having.items():
        together.setdefault(tuple(found), []).append(mismatch)
    causes = [_cause(each, [leaks[at] for at in found]) for found, each in together.items()]
    return tuple(sorted(causes, key=lambda cause: _cost(cause.work), reverse=True))


def _cause(mismatches: Sequence[Mismatch], leaks: Sequence[Leak]) -> Cause:
    work = _sum(leak.work for leak in leaks)
    tunes = any(mismatch.tunes for mismatch in mismatches)
    return Cause(
        mismatches=tuple(mismatches),
        kernels=tuple(dict.fromkeys(leak.kernel for leak in leaks)),
        work=work if tunes else Work(compiles=work.compiles),
    )


def _cost(work: Work) -> tuple[int, int]:
    return work.benchmarks, work.compiles
