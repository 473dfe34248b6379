"""What times say and how surely: medians, scores, noise, who is out of the race."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prewarm.tune.timings import ConfigTimings, Rounds, Timings

LEAST_NOISE = 0.005
"""Nothing is measured more surely: clocks step, and a kernel's place in the cache differs."""
_COVERED = 0.95
_FROM_MIDDLE = 2.9
"""Of normal differences 95 % lie below 1.96 deviations, half below 0.67."""
_BEATEN = 0.10
"""What is this much slower everywhere is not measured again, however sure the times are."""
_BEATEN_NOISE = 3

Times = tuple[float, ...]
"""Median microseconds at each size at which the key is asked for."""


def median(times: Sequence[float]) -> float:
    """Return the middle of `times`: disturbed rounds, if fewer than half, hardly move it."""
    return statistics.median(times)


def medians(
    timings: Timings, configs: Iterable[int], group: Callable[[ConfigTimings], Rounds]
) -> dict[int, Times]:
    """Return the medians of each of `configs` over a `group` of its rounds."""
    asked = timings.asked
    rounds = {index: group(timings.configs[index]) for index in configs}
    return {index: tuple(median(each[at]) for at in asked) for index, each in rounds.items()}


def fastest(times: Mapping[int, Times]) -> Times:
    """Return the least time at each size."""
    return tuple(map(min, zip(*times.values(), strict=True)))


def mean_ratio(times: Times, others: Times, weights: Sequence[float]) -> float:
    """Return the weighted geometric mean of `times` over `others`."""
    logs = (w * math.log(a / b) for w, a, b in zip(weights, times, others, strict=True))
    return math.exp(math.fsum(logs) / math.fsum(weights))


def scores(times: Mapping[int, Times], weights: Sequence[float]) -> dict[int, float]:
    """Return the mean ratio of each config to the fastest at each size: 1.0 is best everywhere."""
    best = fastest(times)
    return {index: mean_ratio(each, best, weights) for index, each in times.items()}


def noise_floor(measured: Iterable[Timings]) -> float:
    """Return how far apart two medians of one config lie, 95 % of them nearer; 0.01 is 1 %."""
    differences = sorted(
        difference
        for timings in measured
        for at in timings.asked
        for difference in _differences(timings, at)
    )
    last = math.ceil(_COVERED * len(differences)) - 1
    return max(LEAST_NOISE, round(differences[last], 4)) if differences else LEAST_NOISE


def noise_at(timings: Timings) -> tuple[float, ...]:
    """Return the noise at each size at which the key is asked for.

    Each size has its own, for short launches are noisier than long ones. There may be few
    configs, and one whose times are out of line must not make all the others equal: so what 95 %
    lie below is reckoned from the middle one, as if they were spread normally.
    """
    found = (sorted(_differences(timings, at)) for at in timings.asked)
    return tuple(max(LEAST_NOISE, _FROM_MIDDLE * median(each or [0.0])) for each in found)


def noise_of_score(noise: Sequence[float], weights: Sequence[float]) -> float:
    """Return the relative difference below which two scores count as equal."""
    return statistics.fmean(noise, weights)


def _differences(timings: Timings, at: int) -> Iterator[float]:
    """Yield how far two medians of each finalist lie apart at a size.

    What moved all of them alike, such as a lower clock, changes no comparison and is taken out.
    """
    halves = [_halves(timings.configs[index], at) for index in timings.finalists]
    ratios = [median(second) / median(first) for first, second in halves if first and second]
    if ratios:
        common = median(ratios)
        yield from (abs(ratio / common - 1) for ratio in ratios)


def _halves(config: ConfigTimings, at: int) -> tuple[Sequence[float], Sequence[float]]:
    choosing = config.choosing[at]
    confirming = config.confirming[at] if config.confirming else ()
    return (choosing, confirming) if confirming else (choosing[::2], choosing[1::2])


def survivors(timings: Timings) -> tuple[int, ...]:
    """Return indexes of the configs that are worth more rounds, by those that choose.

    Out is what at every size is slower than the fastest, and in its score than the best, by more
    than 10 %, or three times the noise where that is more. The fastest listed candidates at the
    size of vLLM's warm-up stay, for winners are compared with them.
    """
    weights, noise = timings.weights, noise_at(timings)
    times = medians(timings, timings.finalists, lambda config: config.choosing)
    if not times:
        return ()
    best, scored = fastest(times), scores(times, weights)
    good_score = min(scored.values()) * (1 + _margin(noise_of_score(noise, weights)))
    good = [fast * (1 + _margin(each)) for fast, each in zip(best, noise, strict=True)]
    references = _references(timings, times, noise)
    return tuple(
        index
        for index, each in times.items()
        if index in references
        or scored[index] <= good_score
        or any(time <= most for time, most in zip(each, good, strict=True))
    )


def _margin(noise: float) -> float:
    return max(_BEATEN, _BEATEN_NOISE * noise)


def _references(timings: Timings, times: Mapping[int, Times], noise: Sequence[float]) -> set[int]:
    at = warm_up(timings)
    listed = {i: each[at] for i, each in times.items() if timings.configs[i].listed}
    most = min(listed.values(), default=0.0) * (1 + noise[at])
    return {index for index, time in listed.items() if time <= most}


def warm_up(timings: Timings) -> int:
    """Return where in `asked` the size is that is most like vLLM's own warm-up.

    That is one sequence, as few tokens as were measured.
    """
    sizes = [timings.sizes[at] for at in timings.asked]
    return min(range(len(sizes)), key=lambda i: (sizes[i].sequences, sizes[i].tokens))
