"""The winner of each tuning key of a run: what counts is what their kernels take together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from prewarm.core.digest import canonical_json
from prewarm.core.errors import TuneError
from prewarm.core.record import Record
from prewarm.tune.statistics import Times, medians, noise_at, warm_up
from prewarm.tune.timings import ConfigTimings, Rounds, Timings
from prewarm.tune.together import Picks, StepTimes

MOST_SLOWER = 0.03
"""How much more than with the references a step may take at any size."""
MOST_GIVEN = 0.01
"""How much of the noise, at most, is given away for a cheaper config, or for fewer ones."""

_Group = Callable[[ConfigTimings], Rounds]


class Winners(Record, kw_only=True):
    """Indexes of configs, one for each tuning key."""

    references: Picks
    """The listed candidates that vLLM's own warm-up would choose."""
    winners: Picks
    confirmed: tuple[bool, ...]
    """Whether rounds that took no part in the choice agree, within the noise."""


def winners_of(timings: Sequence[Timings]) -> Winners:
    """Return the winners of the tuning keys of one run, at least one of them.

    They are chosen over the rounds that choose; over all rounds where those that confirm do not
    agree, or where all together take more than they may. Raises TuneError where no config, or
    no listed one, of a key can be used.
    """
    run = _Run(timings)
    first = run.choose(choosing)
    agreed = run.are_confirmed(first)
    settled = all(agreed) and run.step(all_rounds).keeps_limits(first)
    winners = first if settled else run.choose(all_rounds)
    return Winners(
        references=run.references,
        winners=winners,
        confirmed=tuple(
            agrees and one == other
            for agrees, one, other in zip(agreed, first, winners, strict=True)
        ),
    )


def all_rounds(config: ConfigTimings) -> Rounds:
    """Return both groups of rounds of a config."""
    return config.all_rounds


def choosing(config: ConfigTimings) -> Rounds:
    """Return the rounds of a config that choose."""
    return config.choosing


def confirming(config: ConfigTimings) -> Rounds:
    """Return the rounds of a config that take no part in the choice."""
    return config.confirming


def cost(config: ConfigTimings) -> tuple[bool, int, int, int, bytes]:
    """Return what orders configs from cheap to dear, the last part only to settle the order.

    The kernel's own candidates come first: one beyond them has to be really faster.
    """
    blocks = [value for value in config.config.constexprs.values() if type(value) is int]
    return (
        not config.listed,
        config.config.num_warps,
        config.config.num_stages,
        math.prod(blocks),
        canonical_json(config.config),
    )


class _Run:
    """The keys of a run as kernels of one step: one that a size does not ask for takes no time."""

    def __init__(self, timings: Sequence[Timings]) -> None:
        self._timings = timings
        self._asked = [each.asked for each in timings]
        self._sizes = sorted(set(itertools.chain(*self._asked)))
        weights = [timings[0].sizes[at].weight for at in self._sizes]
        self._weights = weights if any(weights) else [1.0] * len(weights)
        self.references = tuple(map(_reference, timings))
        self._contenders = [
            _cheap_first(each, {*each.finalists, reference})
            for each, reference in zip(timings, self.references, strict=True)
        ]
        self._noise = [self._row(key, noise_at(each)) for key, each in enumerate(timings)]

    def _row(self, key: int, values: Times) -> Times:
        """Return `values` at the sizes that a key is asked for as values at those of the run."""
        found = dict(zip(self._asked[key], values, strict=True))
        return tuple(found.get(at, 0.0) for at in self._sizes)

    def step(self, group: _Group) -> StepTimes:
        """Return the times of the step by the medians over a group of rounds."""
        tables = [self._table(key, group) for key in range(len(self._timings))]
        references = [table[config] for table, config in zip(tables, self.references, strict=True)]
        limits = [math.fsum(times) * (1 + MOST_SLOWER) for times in zip(*references, strict=True)]
        return StepTimes(tables, self._weights, limits)

    def _table(self, key: int, group: _Group) -> dict[int, Times]:
        found = medians(self._timings[key], self._contenders[key], group)
        return {config: self._row(key, times) for config, times in found.items()}

    def choose(self, group: _Group) -> Picks:
        """Return the best picks, of each key the cheapest config that is as good in its noise."""
        step = self.step(group)
        picks = step.best(self.references)
        for key, contenders in enumerate(self._contenders):
            noise = [min(each, MOST_GIVEN) for each in self._noise[key]]
            most = step.mean(picks) + step.moved_by(noise, key, picks)
            swaps = (_swapped(picks, key, config) for config in contenders)
            picks = next(s for s in swaps if step.keeps_limits(s) and step.mean(s) <= most)
        return picks

    def are_confirmed(self, winners: Picks) -> list[bool]:
        """Return of each key whether the rounds that confirm have nothing better for it.

        Better is what is faster by more than twice the noise, among what keeps the limits in the
        rounds that chose.
        """
        keys = zip(self._timings, self._contenders, strict=True)
        if not all(each.are_confirmed(contenders) for each, contenders in keys):
            return [False] * len(winners)
        chosen, again = self.step(choosing), self.step(confirming)
        return [self._is_confirmed(winners, key, chosen, again) for key in range(len(winners))]

    def _is_confirmed(self, winners: Picks, key: int, chosen: StepTimes, again: StepTimes) -> bool:
        swaps = (_swapped(winners, key, config) for config in self._contenders[key])
        least = min(again.mean(swap) for swap in swaps if chosen.keeps_limits(swap))
        return again.mean(winners) <= least + 2 * again.moved_by(self._noise[key], key, winners)


def _reference(timings: Timings) -> int:
    """Return the listed candidate that is fastest where vLLM tunes, one that nobody dropped."""
    usable = [index for index in timings.usable if timings.configs[index].listed]
    if not usable:
        reasons = {each.failed for each in timings.configs if each.listed and each.failed}
        why = "; ".join(sorted(reasons)) or "none was timed at every size"
        raise TuneError(f"{timings.kernel}: none of its own candidates can be used: {why}")
    finalists = [index for index in timings.finalists if timings.configs[index].listed]
    times = medians(timings, finalists or usable, all_rounds)
    at = warm_up(timings)
    return min(times, key=lambda index: (times[index][at], cost(timings.configs[index])))


def _cheap_first(timings: Timings, configs: set[int]) -> tuple[int, ...]:
    return tuple(sorted(configs, key=lambda index: cost(timings.configs[index])))


def _swapped(picks: Picks, key: int, config: int) -> Picks:
    """Return `picks` with another config of one key."""
    return (*picks[:key], config, *picks[key + 1 :])
