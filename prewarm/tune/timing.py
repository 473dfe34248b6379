"""Times of configs inside their step: interleaved rounds, cold L2, no launch overhead.

Before each replay a write larger than the L2 cache evicts what the last one left; then the
launches of the step run in their order, so that a kernel finds in the cache what its
predecessor wrote, as in serving. The write also keeps the GPU busy until the host has queued
the whole replay: events then measure kernels, not the host.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

_SETTLING = 0.5
"""Seconds of load before the first measurement, so that clocks have risen."""
_HEADROOM = 3
"""How much longer than the host's queueing the GPU is kept busy."""
_FLUSH = 4
"""Size of the write, in L2 caches."""
_LEAST_FLUSH = 256 << 20


Launcher = Callable[[], object]
Alive = Mapping[int, Mapping[int, Sequence[Launcher]]]
"""Group to config to what launches its launches, in their order."""


class Stopwatch:
    """Times groups of launches of a step: a group is a tuning key, its launches take one config."""

    def __init__(self, launches: Sequence[Launcher | int], l2_cache: int) -> None:
        """Hold the `launches` of a step in order: what launches one, or the group it belongs to."""
        self._launches = launches
        self._flush = torch.empty(
            max(_FLUSH * l2_cache, _LEAST_FLUSH), dtype=torch.uint8, device="cuda"
        )
        self._writes = 1

    def settle(self, alive: Alive) -> None:
        """Load the GPU until its clocks have risen, and learn how long the host queues.

        `alive` is that of `round`.
        """
        chosen = {group: next(iter(configs.values())) for group, configs in alive.items()}
        end = time.monotonic() + _SETTLING
        queueing = []
        while time.monotonic() < end:
            began = time.perf_counter()
            self._replay(chosen)
            queueing.append(time.perf_counter() - began)
            torch.cuda.synchronize()
        self._writes = 1 + int(_HEADROOM * statistics.median(queueing) / self._seconds_of_write())

    def _seconds_of_write(self) -> float:
        start, end = _mark(), _mark()
        start.record()
        for _ in range(10):
            self._flush.zero_()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 10 / 1000

    def round(self, alive: Alive, seed: int) -> dict[tuple[int, int], float]:
        """Return (group, config) to median microseconds in one shuffled pass.

        `alive` holds, of every group, the configs in play and what launches them. A replay runs
        one config of each group, so that a pass costs as many replays as the longest list; a
        group with fewer configs takes more than one time of each.
        """
        source = random.Random(seed)  # noqa: S311 (reproducible, not secret)
        orders = {group: source.sample(list(each), len(each)) for group, each in alive.items()}
        marks: dict[tuple[int, int], list[list[Marks]]] = {}
        for turn in range(max(map(len, alive.values()))):
            chosen = {group: order[turn % len(order)] for group, order in orders.items()}
            for _ in range(self._writes):
                self._flush.zero_()
            taken = self._replay({group: alive[group][each] for group, each in chosen.items()})
            for group, pairs in taken.items():
                marks.setdefault((group, chosen[group]), []).append(pairs)
        torch.cuda.synchronize()
        return {key: statistics.median(map(_microseconds, each)) for key, each in marks.items()}

    def _replay(self, chosen: Mapping[int, Sequence[Launcher]]) -> dict[int, list[Marks]]:
        waiting = {group: iter(each) for group, each in chosen.items()}
        taken: dict[int, list[Marks]] = {group: [] for group in chosen}
        for launch in self._launches:
            if not isinstance(launch, int):
                launch()
                continue
            start, end = _mark(), _mark()
            start.record()
            next(waiting[launch])()
            end.record()
            taken[launch].append((start, end))
        return taken


Marks = tuple[torch.cuda.Event, torch.cuda.Event]


def _mark() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)


def _microseconds(pairs: Sequence[Marks]) -> float:
    return sum(start.elapsed_time(end) for start, end in pairs) * 1000
