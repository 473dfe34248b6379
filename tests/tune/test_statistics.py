"""Medians, noise, and which configs are worth more rounds."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prewarm.core.manifest import Candidate
from prewarm.core.tunings import Size
from prewarm.tune.statistics import (
    LEAST_NOISE,
    mean_ratio,
    median,
    noise_at,
    noise_floor,
    noise_of_score,
    survivors,
)
from prewarm.tune.timings import ConfigTimings, Timings

replace = msgspec.structs.replace

SIZES = (
    Size(tokens=64, sequences=1, weight=0.0),
    Size(tokens=2048, sequences=1),
    Size(tokens=8192, sequences=8),
)


def timed(*times, rounds=4, **fields) -> ConfigTimings:
    """Return a config that takes each of `times` at its size in every round."""
    fields.setdefault("config", Candidate(num_warps=4, num_stages=2))
    return ConfigTimings(choosing=tuple((time,) * rounds for time in times), **fields)


def timings(*configs, sizes=SIZES) -> Timings:
    return Timings(kernel="m:f", key={}, sizes=sizes, configs=configs)


def noisy(noise, count=40, rounds=9, drift=1.0, seed=0) -> Timings:
    source = random.Random(seed)

    def group(scale):
        return (tuple(scale * (1 + source.gauss(0, noise)) for _ in range(rounds)),)

    configs = [
        replace(timed(), choosing=group(100.0 + n), confirming=group((100.0 + n) * drift))
        for n in range(count)
    ]
    return timings(*configs, sizes=SIZES[1:2])


def test_a_median_is_not_moved_by_disturbed_rounds():
    assert median([10.0, 10.1, 9.9, 31.0, 55.0]) == 10.1
    assert median([10.0, 10.2]) == 10.1


@given(st.lists(st.floats(1, 100), min_size=1, max_size=9), st.floats(100, 1000))
def test_disturbed_rounds_fewer_than_half_leave_it_among_the_others(times, disturbed):
    assert median([*times, *[disturbed] * (len(times) - 1)]) <= max(times)


def test_a_mean_ratio_weighs_by_size():
    assert mean_ratio((2.0, 8.0), (1.0, 1.0), (1.0, 1.0)) == pytest.approx(4.0)
    assert mean_ratio((2.0, 8.0), (1.0, 1.0), (1.0, 0.0)) == pytest.approx(2.0)


@pytest.mark.parametrize("noise", [0.01, 0.03])
def test_the_noise_is_that_of_medians_and_not_of_single_rounds(noise):
    """A median of nine normal values is off by 0.4 of their deviation, two of them by 0.58."""
    found = noise_floor([noisy(noise, count=400)])

    assert found == pytest.approx(1.96 * 0.58 * noise, rel=0.2)
    assert noise_at(noisy(noise, count=400)) == (pytest.approx(found, rel=0.2),)


def test_there_is_a_floor_to_the_noise():
    assert noise_floor([noisy(1e-5)]) == LEAST_NOISE
    assert noise_floor([]) == LEAST_NOISE
    assert noise_at(timings(timed(5.0, 100.0, 100.0, rounds=1))) == (LEAST_NOISE,) * 3


def test_one_config_that_is_out_of_line_does_not_make_the_others_equal():
    made = noisy(0.001, count=8)
    (rounds,) = made.configs[0].confirming
    wild = replace(made.configs[0], confirming=(tuple(1.5 * time for time in rounds),))

    assert noise_at(replace(made, configs=(wild, *made.configs[1:]))) == (LEAST_NOISE,)


def test_a_clock_that_drops_for_all_configs_is_no_noise():
    assert noise_floor([noisy(0.001, drift=1.2)]) == LEAST_NOISE


def test_before_there_are_rounds_that_confirm_every_other_round_is_compared():
    early = replace(
        noisy(0.02), configs=tuple(replace(each, confirming=()) for each in noisy(0.02).configs)
    )

    assert 0.01 < noise_floor([early]) < 0.08


def test_the_noise_of_a_score_is_weighed_like_the_score():
    assert noise_of_score((0.5, 0.01, 0.03), (0.0, 1.0, 1.0)) == pytest.approx(0.02)


def test_what_is_slower_everywhere_by_more_than_ten_percent_is_dropped():
    found = survivors(
        timings(
            timed(5.0, 100.0, 100.0),
            timed(5.6, 111.0, 111.0),
            timed(5.6, 109.0, 150.0),
            timed(5.6, 111.0, 111.0, listed=False),
            timed(5.6, 111.0, 104.0, listed=False),
        )
    )

    assert found == (0, 2, 4)


def test_what_is_fast_at_a_size_that_does_not_count_stays_for_that_size():
    assert survivors(timings(timed(6.0, 100.0, 100.0), timed(5.0, 200.0, 200.0, listed=False))) == (
        0,
        1,
    )


def test_what_has_nearly_the_best_score_stays_though_it_is_best_nowhere():
    sides = (timed(5.0, 100.0, 200.0), timed(5.0, 200.0, 100.0))

    assert survivors(timings(*sides, timed(5.6, 115.0, 115.0))) == (0, 1, 2)


def test_what_vllm_itself_may_choose_stays():
    """With a better one beyond the list, all of the list would go."""
    found = survivors(
        timings(
            timed(5.00, 200.0, 200.0),
            timed(5.01, 210.0, 210.0),
            timed(5.20, 190.0, 190.0),
            timed(4.00, 100.0, 100.0, listed=False),
        )
    )

    assert found == (0, 1, 3)


def test_noisy_times_drop_less():
    source = random.Random(1)

    def shaken(time, listed):
        rounds = tuple(tuple(time * source.uniform(0.8, 1.2) for _ in range(4)) for _ in SIZES)
        return replace(timed(), choosing=rounds, listed=listed)

    made = [shaken(100.0 + 20 * (n > 10), n == 0) for n in range(20)]

    assert len(survivors(timings(*made))) == 20
    assert len(survivors(timings(*(timed(*[100.0 + 20 * (n > 10)] * 3) for n in range(20))))) == 11


def test_what_failed_or_was_dropped_before_does_not_come_back():
    made = timings(
        timed(5.0, 100.0, 100.0),
        timed(4.0, 50.0, 50.0, rounds=2),
        timed(4.0, 50.0, 50.0, failed="out of shared memory"),
        replace(timed(), choosing=(), failed="out of shared memory"),
    )

    assert survivors(made) == (0,)
    assert survivors(timings(*made.configs[2:])) == ()


@given(st.lists(st.tuples(*[st.floats(1, 10)] * 3), min_size=1, max_size=12))
def test_the_leaders_always_stay_and_a_second_look_drops_nothing_more(times):
    made = timings(*(timed(*each, listed=n % 2 == 0) for n, each in enumerate(times)))

    found = survivors(made)

    for at in range(3):
        assert min(range(len(times)), key=lambda n: times[n][at]) in found
    left = replace(made, configs=tuple(made.configs[n] for n in found))
    assert survivors(left) == tuple(range(len(found)))
