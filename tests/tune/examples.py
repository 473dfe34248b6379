"""Small timings, written down or drawn."""

from __future__ import annotations

import random

from hypothesis import strategies as st

from prewarm.core.manifest import Candidate
from prewarm.core.tunings import Size
from prewarm.tune.timings import ConfigTimings, Timings

WARM_UP = Size(tokens=64, sequences=1, weight=0.0)
ONE = Size(tokens=8192, sequences=1)
EIGHT = Size(tokens=8192, sequences=8)


def config(number: int) -> Candidate:
    """Return a config that costs the more the higher its number."""
    return Candidate(constexprs={"B": 16 * number}, num_warps=4, num_stages=2)


def steady(times, rounds=5):
    """Return rounds that lie close around each of `times`, the same way for all."""
    return tuple(tuple(t * (1 + 0.0005 * (n % 3 - 1)) for n in range(rounds)) for t in times)


def timed(number, *times, confirming=None, **fields) -> ConfigTimings:
    fields.setdefault("config", config(number))
    again = times if confirming is None else confirming
    return ConfigTimings(choosing=steady(times), confirming=steady(again), **fields)


def timings(*configs, sizes=(WARM_UP, ONE, EIGHT), kernel="m:f", **fields) -> Timings:
    return Timings(kernel=kernel, key={"H": 16}, sizes=sizes, configs=configs, **fields)


@st.composite
def any_runs(draw, kernels=3):
    """Draw timings of up to so many kernels with a few configs; rounds differ by up to 5 %."""
    more = draw(st.integers(1, 3))
    sizes = (WARM_UP, *(Size(tokens=1024 * 2**n, sequences=1) for n in range(more)))
    source = random.Random(draw(st.integers(0, 2**32)))
    spread = draw(st.sampled_from([0.001, 0.01, 0.05]))

    def rounds():
        times = [draw(st.floats(2.0, 50.0)) for _ in sizes]
        return tuple(
            tuple(tuple(time * source.uniform(1, 1 + spread) for _ in range(5)) for time in times)
            for _ in range(2)
        )

    def one(number):
        choosing, confirming = rounds()
        return ConfigTimings(
            config=config(number), listed=number < 3, choosing=choosing, confirming=confirming
        )

    return [
        timings(
            *(one(number) for number in range(1, draw(st.integers(2, 5)) + 1)),
            sizes=sizes,
            kernel=f"m:{kernel}",
        )
        for kernel in range(draw(st.integers(1, kernels)))
    ]


def any_timings():
    """Draw timings of the only kernel of its step."""
    return any_runs(kernels=1).map(lambda run: run[0])
