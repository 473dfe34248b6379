"""One config for each of several kernels that run one after the other: their sum is what counts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from operator import add, itemgetter

from prewarm.tune.statistics import Times

Table = Mapping[int, Times]
"""Config to its times at each size; of equals the first one is taken."""
Picks = tuple[int, ...]
"""A config of each table."""
_Partial = tuple[float, Picks, Times]
"""The least mean that it can lead to, configs of the first kernels, and what these take."""

_MOST_LOOKS = 100_000
"""Partial choices that a search looks at: half a second. Real kernels need some thousands."""
_ROUNDING = 1e-12
"""What differs by no more than this may do so by rounding alone."""


class StepTimes:
    """The times of kernels that run in one step, what its sizes count, and the most each may take.

    At every size some kernel takes time. Limits hold at every size, also where it counts nothing.
    """

    def __init__(
        self, tables: Sequence[Table], weights: Sequence[float], limits: Sequence[float]
    ) -> None:
        self._tables = tables
        self._weights = weights
        self._limits = limits

    def totals(self, picks: Picks) -> Times:
        """Return what the step takes at each size."""
        rows = (table[pick] for table, pick in zip(self._tables, picks, strict=True))
        return tuple(math.fsum(times) for times in zip(*rows, strict=True))

    def mean(self, picks: Picks) -> float:
        """Return the logarithm of the weighted geometric mean of what the step takes."""
        return self._mean(self.totals(picks))

    def keeps_limits(self, picks: Picks) -> bool:
        """Return whether the step takes more than it may at no size."""
        return self._within_limits(self.totals(picks))

    def moved_by(self, noise: Sequence[float], kernel: int, picks: Picks) -> float:
        """Return how far `mean` moves when one kernel's times are off by `noise` at each size."""
        own = self._tables[kernel][picks[kernel]]
        parts = zip(self._weights, noise, own, self.totals(picks), strict=True)
        moved = math.fsum(w * each * time / total for w, each, time, total in parts)
        return moved / math.fsum(self._weights)

    def best(self, start: Picks, most: int = _MOST_LOOKS) -> Picks:
        """Return the picks of least mean that keep the limits; `start` where none do.

        The same tables give the same picks. A search that is not over after `most` looks returns
        the best so far, which are never worse than `start`.
        """
        order = sorted(range(len(self._tables)), key=self._spread, reverse=True)
        tables = [_undominated(self._tables[kernel]) for kernel in order]
        rest = _least_of_rest(tables, len(self._limits))
        found, least = start, self.mean(start) if self.keeps_limits(start) else math.inf
        # Depth first: the most promising is last and goes first.
        waiting: list[_Partial] = [(-math.inf, (), rest[-1])]
        while waiting and most > 0:
            bound, picks, times = waiting.pop()
            if bound >= least - _ROUNDING:
                continue
            if len(picks) < len(tables):
                longer = [*self._longer(picks, times, tables[len(picks)], rest[len(picks) + 1])]
                waiting += sorted(longer, key=itemgetter(0))[::-1]
                most -= len(longer)
            elif self.keeps_limits(whole := _in_order(picks, order)):
                found, least = whole, bound
        return found

    def _longer(self, picks: Picks, times: Times, table: Table, rest: Times) -> Iterator[_Partial]:
        """Yield `picks` with each config of the next kernel that can still keep the limits."""
        for config, own in table.items():
            taken = _sum(times, own)
            least = _sum(taken, rest)
            if self._within_limits(least, _ROUNDING):
                yield self._mean(least), (*picks, config), taken

    def _mean(self, totals: Sequence[float]) -> float:
        logs = (w * math.log(total) for w, total in zip(self._weights, totals, strict=True))
        return math.fsum(logs) / math.fsum(self._weights)

    def _within_limits(self, totals: Sequence[float], more: float = 0.0) -> bool:
        pairs = zip(totals, self._limits, strict=True)
        return all(total <= limit * (1 + more) for total, limit in pairs)

    def _spread(self, kernel: int) -> float:
        """Return how much depends on the config of a kernel: a search begins where it is most."""
        columns = zip(*self._tables[kernel].values(), strict=True)
        pairs = zip(columns, self._limits, strict=True)
        return math.fsum((max(times) - min(times)) / limit for times, limit in pairs)


def _undominated(table: Table) -> Table:
    """Return the configs that no other one is as fast as, or faster than, at every size."""
    kept: dict[int, Times] = {}
    for config, times in sorted(table.items(), key=lambda item: math.fsum(item[1])):
        if not any(_is_as_fast(other, times) for other in kept.values()):
            kept[config] = times
    return kept


def _is_as_fast(times: Times, others: Times) -> bool:
    return all(time <= other for time, other in zip(times, others, strict=True))


def _least_of_rest(tables: Sequence[Table], sizes: int) -> list[Times]:
    """Return the least that the kernels from each on can take at each size; after the last, 0."""
    least = [(0.0,) * sizes]
    for table in reversed(tables):
        fastest = tuple(map(min, zip(*table.values(), strict=True)))
        least.append(_sum(fastest, least[-1]))
    return least[::-1]


def _in_order(picks: Picks, order: Sequence[int]) -> Picks:
    """Return `picks`, made for the kernels in `order`, in the order of the tables."""
    return tuple(pick for _, pick in sorted(zip(order, picks, strict=True)))


def _sum(times: Times, others: Times) -> Times:
    return tuple(map(add, times, others))
