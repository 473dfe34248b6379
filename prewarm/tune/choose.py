"""Raw times -> the winner of a tuning key, what vLLM itself would have taken, and the gain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prewarm.core.tunings import KeyTuning, Measured, SizeWinner
from prewarm.tune.statistics import Times, fastest, mean_ratio, median, medians, noise_at
from prewarm.tune.timings import ConfigTimings, Timings
from prewarm.tune.winners import MOST_GIVEN, all_rounds, cost, winners_of

OBJECTIVE = (
    "least weighted geometric mean, over the sizes, of what the tuned kernels of a step take"
    " together, at no size more than 3 % above the references;"
    " a reference is the listed candidate that is fastest at one sequence of the fewest tokens,"
    " where vLLM tunes; within the noise, at most 1 %, a listed candidate wins, then fewer"
    " warps, then fewer stages, then smaller blocks"
)
"""What winners are."""


def choose(timings: Sequence[Timings], run: int = 0) -> tuple[KeyTuning, ...]:
    """Return what `timings` say that the keys of one run want; `run` is the run they belong to.

    Scores, gains and winners of single sizes follow from the medians over all rounds, which are
    those in the document. Raises TuneError where no config, or no listed one, of a key can be
    used.
    """
    if not timings:
        return ()
    found = winners_of(timings)
    keys = zip(timings, found.references, found.winners, found.confirmed, strict=True)
    return tuple(
        _key_tuning(each, run, reference, winner, confirmed)
        for each, reference, winner, confirmed in keys
    )


def _key_tuning(
    timings: Timings, run: int, reference: int, winner: int, confirmed: bool
) -> KeyTuning:
    times = medians(timings, timings.usable, all_rounds)
    finalists = {index: times[index] for index in timings.finalists}
    noise = noise_at(timings)
    at_sizes = _size_winners(timings, finalists, winner, noise)
    return KeyTuning(
        key=timings.key,
        run=run,
        shared=timings.shared,
        winner=timings.configs[winner].config,
        confirmed=confirmed,
        score=_rounded(mean_ratio(times[winner], fastest(finalists), timings.weights)),
        reference=timings.configs[reference].config,
        gain=_rounded(mean_ratio(times[reference], times[winner], timings.weights)),
        noise=_at_every_size(timings, noise),
        sized_by=timings.sized_by,
        sizes=tuple(
            SizeWinner(
                tokens=timings.sizes[at].tokens,
                sequences=timings.sizes[at].sequences,
                config=timings.configs[index].config,
            )
            for at, index in zip(timings.asked, at_sizes, strict=True)
        ),
        measured=tuple(
            _measured(each, rounds, len(timings.sizes))
            for each, rounds in zip(timings.configs, timings.rounds, strict=True)
        ),
    )


def _size_winners(
    timings: Timings, times: Mapping[int, Times], winner: int, noise: Sequence[float]
) -> list[int]:
    """Return the best config at each size, as few different ones as the noise allows.

    That is the single winner where it is as good as any, then whatever is best at most of the
    other sizes.
    """
    limits = [
        fast * (1 + min(each, MOST_GIVEN)) for fast, each in zip(fastest(times), noise, strict=True)
    ]
    good = [
        {index for index in times if times[index][at] <= most} for at, most in enumerate(limits)
    ]
    found = {at: winner for at, equal in enumerate(good) if winner in equal}
    while len(found) < len(good):
        left = [at for at in range(len(good)) if at not in found]
        counts = {index: sum(index in good[at] for at in left) for index in times}
        most = max(counts.values())
        widest = [index for index, count in counts.items() if count == most]
        taken = min(widest, key=lambda index: cost(timings.configs[index]))
        found.update({at: taken for at in left if taken in good[at]})
    return [found[at] for at in range(len(good))]


def _measured(timed: ConfigTimings, rounds: int, sizes: int) -> Measured:
    found = dict(enumerate(timed.all_rounds))
    times = [round(median(found[at]), 3) if found.get(at) else None for at in range(sizes)]
    return Measured(
        config=timed.config,
        listed=timed.listed,
        times=tuple(times) if any(times) else (),
        rounds=rounds,
        failed=timed.failed,
    )


def _at_every_size(timings: Timings, values: Sequence[float]) -> tuple[float | None, ...]:
    found = dict(zip(timings.asked, values, strict=True))
    return tuple(_rounded(found[at]) if at in found else None for at in range(len(timings.sizes)))


def _rounded(value: float) -> float:
    return round(value, 4)
