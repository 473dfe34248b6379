"""From raw times to a winner that would win again."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prewarm.core.errors import TuneError
from prewarm.core.manifest import Candidate
from prewarm.core.tunings import Size, SizedBy
from prewarm.tune import choose as rules
from prewarm.tune.choose import OBJECTIVE
from prewarm.tune.statistics import mean_ratio
from prewarm.tune.timings import ConfigTimings, Timings
from tests.tune.examples import (
    EIGHT,
    ONE,
    WARM_UP,
    any_timings,
    config,
    steady,
    timed,
    timings,
)
from tests.tune.recorded import KERNELS, made_up, recorded, with_elimination

replace = msgspec.structs.replace


def choose(timings: Timings, run: int = 0):
    """Return the choice for a key whose kernel is the only one of its step."""
    (found,) = rules.choose([timings], run)
    return found


def chosen(found):
    return (found.winner, found.confirmed, [size.config for size in found.sizes])


def test_the_least_weighted_mean_wins():
    one, two = timed(1, 5, 100, 130), timed(2, 5, 102, 100)

    assert choose(timings(one, two)).winner == config(2)
    heavy = (WARM_UP, replace(ONE, weight=19.0), EIGHT)
    found = choose(timings(one, two, sizes=heavy))
    assert found.winner == config(1)
    assert found.score == pytest.approx(1.3**0.05, abs=1e-3)


def test_a_size_without_weight_does_not_count_but_has_its_own_winner():
    found = choose(timings(timed(1, 4.9, 110, 110), timed(2, 5, 100, 100)))

    assert chosen(found) == (config(2), True, [config(1), config(2), config(2)])
    assert found.score == 1.0


def test_where_no_size_has_weight_all_count():
    sizes = (WARM_UP, replace(ONE, weight=0.0))

    assert choose(timings(timed(1, 5, 100), timed(2, 5, 90), sizes=sizes)).winner == config(2)


@pytest.mark.parametrize(
    ("cheap", "dear"),
    [
        ({"num_warps": 2, "num_stages": 4}, {"num_warps": 4, "num_stages": 1}),
        ({"num_stages": 1, "constexprs": {"B": 99}}, {"num_stages": 2, "constexprs": {"B": 1}}),
        ({"constexprs": {"B": 8, "C": 4}}, {"constexprs": {"B": 4, "C": 9}}),
        ({"constexprs": {"B": 8, "C": True}}, {"constexprs": {"B": 9, "C": True}}),
    ],
)
def test_within_the_noise_the_cheaper_config_wins(cheap, dear):
    plain = {"num_warps": 4, "num_stages": 2}
    one = timed(1, 5, 100.1, 100, config=Candidate(**{**plain, **cheap}))
    two = timed(2, 5, 100.0, 100, config=Candidate(**{**plain, **dear}))

    assert choose(timings(one, two)).winner == one.config
    assert choose(timings(two, one)).winner == one.config


def test_within_the_noise_a_listed_candidate_wins_over_one_beyond_the_list_however_cheap():
    beyond = timed(1, 5, 100, 100, config=Candidate(num_warps=1, num_stages=1), listed=False)
    listed = timed(1, 5, 100, 100, config=Candidate(num_warps=8, num_stages=4))

    assert choose(timings(beyond, listed)).winner == listed.config


def test_a_config_beyond_the_list_wins_where_it_is_faster():
    found = choose(timings(timed(1, 5, 100, 100), timed(2, 5, 80, 80, listed=False)))

    assert found.winner == config(2)
    assert found.gain == 1.25
    assert [each.listed for each in found.measured] == [True, False]


def test_the_reference_is_the_listed_candidate_that_is_fastest_where_vllm_tunes():
    found = choose(
        timings(
            timed(1, 5, 100, 100),
            timed(2, 4, 120, 100),
            timed(3, 3, 100, 100, listed=False),
            sizes=(replace(EIGHT, tokens=64), ONE, replace(WARM_UP, tokens=128)),
        )
    )
    assert found.reference == config(1)

    found = choose(timings(timed(1, 5, 100, 100), timed(2, 4, 120, 100), timed(3, 4.1, 90, 90)))
    assert (found.reference, found.winner) == (config(2), config(3))
    assert found.gain == pytest.approx(math.sqrt(120 / 90 * 100 / 90), abs=1e-3)


def test_a_winner_is_at_no_size_more_than_three_percent_slower_than_the_reference():
    reference = timed(1, 3, 100, 100)
    lopsided = timed(2, 3, 60, 103.5)
    fair = timed(3, 3, 90, 102.5)

    assert choose(timings(reference, lopsided, fair)).winner == config(3)
    assert choose(timings(reference, lopsided)).winner == config(1)
    at_one_size = timings(reference, lopsided, sizes=(WARM_UP, ONE, replace(EIGHT, weight=0.0)))
    assert choose(at_one_size).winner == config(1)
    assert choose(timings(reference, timed(2, 3.2, 60, 60))).winner == config(1)


def test_where_the_whole_list_was_dropped_its_best_is_the_reference_and_nothing_is_confirmed():
    listed = [ConfigTimings(config=config(n), choosing=steady((2 + n, 100, 100))) for n in (1, 2)]

    found = choose(timings(*listed, timed(3, 3, 60, 60, listed=False)))

    assert (found.reference, found.winner, found.confirmed) == (config(1), config(3), False)


def test_a_winner_that_the_other_rounds_deny_is_chosen_again_over_all_and_marked():
    lucky = timed(1, 5, 100, 100, confirming=(5, 130, 130))
    steadier = timed(2, 5, 103, 103)
    others = [timed(n, 5, 150, 150) for n in range(3, 8)]

    found = choose(timings(lucky, steadier, *others))

    assert (found.winner, found.confirmed) == (config(2), False)


def test_a_winner_that_the_other_rounds_confirm_within_the_noise_stays():
    first = timed(2, 5, 100, 100, confirming=(5, 100.3, 100.3))
    second = timed(1, 5, 101, 101, confirming=(5, 100, 100))

    others = [timed(n, 5, 150, 150) for n in range(3, 8)]

    assert chosen(choose(timings(first, second, *others)))[:2] == (config(2), True)


def test_without_rounds_that_confirm_nothing_is_confirmed():
    configs = [replace(timed(n, 5, 100 + n), confirming=()) for n in (1, 9)]

    found = choose(timings(*configs, sizes=(WARM_UP, ONE)))

    assert (found.winner, found.confirmed) == (config(1), False)


def test_the_winner_serves_every_size_at_which_it_is_as_good_as_a_cheaper_config():
    found = choose(timings(timed(1, 5, 100, 100), timed(2, 5, 90, 100)))

    assert chosen(found) == (config(2), True, [config(2)] * 3)


def test_few_configs_serve_the_sizes_and_the_winner_where_it_is_as_good():
    sizes = tuple(Size(tokens=2**n, sequences=1, weight=n - 6.0) for n in range(6, 12))
    found = choose(
        timings(
            timed(1, 10.0, 10.2, 10.2, 10.0, 10.0, 10.0),
            timed(2, 9.8, 20.0, 20.0, 20.0, 20.0, 20.0),
            timed(3, 9.8, 10.0, 20.0, 20.0, 20.0, 20.0),
            timed(4, 20.0, 10.0, 9.0, 20.0, 20.0, 9.99),
            sizes=sizes,
        )
    )

    assert found.winner == config(1)
    taken = [size.config for size in found.sizes]
    assert taken == [config(3), config(3), config(4), config(1), config(1), config(1)]
    assert [size.tokens for size in found.sizes] == [size.tokens for size in sizes]


def test_a_size_winner_is_at_most_one_percent_slower_than_the_best_whatever_the_noise():
    sizes = (replace(WARM_UP, weight=1.0), ONE)
    made = [
        timed(1, 10.15, 100, confirming=(10.15, 100)),
        timed(2, 10.0, 120, confirming=(10.0, 120)),
        timed(3, 10.05, 120, confirming=(10.05, 120)),
        *(timed(n, 11, 130, confirming=(11 + 0.1 * n, 130)) for n in range(4, 9)),
    ]

    found = choose(timings(*made, sizes=sizes))

    assert found.noise[0] > 0.02
    assert (found.winner, found.sizes[0].config) == (config(1), config(2))


def test_noise_at_one_size_is_not_taken_for_noise_at_another():
    """A launch of 5 µs is noisier than one of 1 ms; what is 2 % faster there counts."""

    def noisy(number, time):
        return timed(number, 5, time, confirming=(5 + 0.1 * number, time))

    made = [noisy(1, 1020), noisy(2, 1000), *(noisy(n, 1100) for n in range(3, 9))]
    found = choose(timings(*made, sizes=(WARM_UP, ONE)))

    assert found.winner == config(2)
    assert found.noise[0] > 0.05
    assert found.noise[1] == 0.005


def test_what_failed_never_wins_and_says_why():
    failed = timed(1, 1, 10, 10, failed="another result than the others")
    half = ConfigTimings(config=config(2), choosing=((1.0,), (10.0,)), failed="out of memory")

    found = choose(timings(failed, half, timed(3, 5, 100, 100)))

    assert found.winner == found.reference == config(3)
    assert found.score == found.gain == 1.0
    assert [each.failed for each in found.measured] == [failed.failed, half.failed, None]
    assert found.measured[1].times == (1.0, 10.0, None)


def test_a_kernel_of_which_no_own_candidate_works_is_an_error_with_the_reasons():
    failed = [timed(n, 1, 1, 1, failed=f"reason {n}") for n in (2, 1)]

    with pytest.raises(TuneError, match=r"m:f: none of its own .*: reason 1; reason 2"):
        choose(timings(*failed, timed(3, 1, 1, 1, listed=False)))


def test_a_key_that_some_sizes_do_not_ask_for_is_judged_by_the_others():
    def only_large(number, time):
        (rounds,) = steady((time,))
        return ConfigTimings(
            config=config(number), choosing=((), rounds, ()), confirming=((), rounds, ())
        )

    found = choose(timings(only_large(1, 100), only_large(2, 90)))

    assert chosen(found) == (config(2), True, [config(2)])
    assert found.noise == (None, 0.005, None)
    assert found.measured[0].times == (None, 100.0, None)
    assert found.measured[0].rounds == 10


def test_what_was_dropped_early_keeps_its_times_and_never_wins():
    dropped = ConfigTimings(
        config=config(1), choosing=steady((1, 10, 10), rounds=2), confirming=((), (), ())
    )

    found = choose(timings(dropped, timed(2, 5, 100, 100), timed(3, 5, 120, 120)))

    assert (found.winner, found.confirmed) == (config(2), True)
    assert found.measured[0].rounds == 2
    assert found.measured[0].times[1] == pytest.approx(10, rel=0.01)


def test_what_the_measurement_knows_of_the_key_is_passed_on():
    sized_by = SizedBy(tokens="T", sequences="cu_seqlens")
    shared = {"STORE": True}

    found = choose(timings(timed(1, 5, 1, 1), shared=shared, sized_by=sized_by), run=3)

    assert (found.key, found.run, found.shared, found.sized_by) == ({"H": 16}, 3, shared, sized_by)


def test_the_rules_are_told_in_the_document():
    assert all(word in OBJECTIVE for word in ("geometric mean", "3 %", "warps", "stages"))


# --- whatever the times -------------------------------------------------------------------


@settings(deadline=None)
@given(any_timings(), st.randoms(use_true_random=False))
def test_the_order_of_rounds_and_configs_changes_nothing(made, source):
    def shuffled(rounds):
        return tuple(tuple(source.sample(times, len(times))) for times in rounds)

    configs = [
        replace(each, choosing=shuffled(each.choosing), confirming=shuffled(each.confirming))
        for each in source.sample(made.configs, len(made.configs))
    ]
    found, again = choose(made), choose(replace(made, configs=tuple(configs)))

    def by_config(measured):
        return sorted(measured, key=lambda each: each.config.constexprs["B"])

    assert by_config(again.measured) == by_config(found.measured)
    assert replace(again, measured=()) == replace(found, measured=())


@settings(deadline=None)
@given(any_timings(), st.integers(-3, 6))
def test_a_gpu_that_is_twice_as_slow_wants_the_same(made, power):
    def slower(rounds):
        return tuple(tuple(time * 2.0**power for time in times) for times in rounds)

    configs = [
        replace(each, choosing=slower(each.choosing), confirming=slower(each.confirming))
        for each in made.configs
    ]

    found, again = choose(made), choose(replace(made, configs=tuple(configs)))

    assert replace(again, measured=()) == replace(found, measured=())


@settings(deadline=None)
@given(any_timings(), st.booleans())
def test_what_is_best_everywhere_wins_everywhere(made, listed):
    def beating(group):
        ranked = zip(*(getattr(each, group) for each in made.configs), strict=True)
        return tuple(tuple(min(map(min, at)) * 0.7 for _ in range(5)) for at in ranked)

    best = ConfigTimings(
        config=config(9),
        listed=listed,
        choosing=beating("choosing"),
        confirming=beating("confirming"),
    )

    found = choose(replace(made, configs=(*made.configs, best)))

    assert chosen(found)[0] == config(9)
    assert found.confirmed
    assert {size.config == config(9) for size in found.sizes} == {True}
    assert found.score == 1.0
    assert found.gain >= 1.0


@settings(deadline=None)
@given(any_timings())
def test_score_and_gain_follow_from_the_times_in_the_document(made):
    found = choose(made)

    def mean(ratios):
        counted = ratios[1:]
        return math.prod(counted) ** (1 / len(counted))

    columns = zip(*(each.times for each in found.measured), strict=True)
    winner, reference = found.times(found.winner), found.times(found.reference)
    best = [min(column) for column in columns]
    assert found.score == pytest.approx(
        mean([w / b for w, b in zip(winner, best, strict=True)]), rel=2e-3
    )
    assert found.gain == pytest.approx(
        mean([r / w for r, w in zip(reference, winner, strict=True)]), rel=2e-3
    )


@settings(deadline=None)
@given(any_timings())
def test_the_winner_of_a_size_is_within_its_noise_of_the_best_there(made):
    found = choose(made)

    for at, size in enumerate(found.sizes):
        best = min(each.times[at] for each in found.measured)
        assert found.times(size.config)[at] <= best * (1 + found.noise[at]) * 1.001


# --- real times of an H100, and made up ones with their habits ------------------------------


SCORES = {
    "chunk_local_cumsum_scalar_kernel": 1.02,
    "chunk_scaled_dot_kkt_fwd_kernel": 1.52,
    "merge_16x16_to_64x64_inverse_kernel": 1.02,
    "recompute_w_u_fwd_kernel": 1.01,
    "chunk_gated_delta_rule_fwd_kernel_h_blockdim64": 1.03,
    "chunk_fwd_kernel_o": 1.06,
}
"""How far winners may be from the best everywhere. One kernel is slow at large sizes for the
others to be fast there: at 64 tokens the step has no more time to give."""
UNCONFIRMED = {"chunk_scaled_dot_kkt_fwd_kernel", "chunk_fwd_kernel_o"}
"""These two share that time, and other rounds give it to the other one."""


@pytest.fixture(scope="module")
def found():
    return dict(zip(SCORES, rules.choose(recorded()), strict=True))


SIZES = recorded()[0].sizes


def totals(measured, chosen) -> list[float]:
    """Return what the step takes at each size, by kernel its times and its config there."""
    return [
        sum(key.times(chosen[kernel][at])[at] for kernel, key in measured.items())
        for at in range(len(SIZES))
    ]


def references(found):
    return {kernel: [key.reference] * len(SIZES) for kernel, key in found.items()}


def winners(found):
    return {kernel: [key.winner] * len(SIZES) for kernel, key in found.items()}


def size_winners(found):
    return {kernel: [size.config for size in key.sizes] for kernel, key in found.items()}


@pytest.mark.parametrize("kernel", SCORES)
def test_recorded_winners_are_near_the_best_where_the_step_allows_it(found, kernel):
    assert found[kernel].score < SCORES[kernel]
    assert found[kernel].confirmed == (kernel not in UNCONFIRMED)


def test_a_step_of_recorded_winners_is_faster_and_nowhere_much_slower_than_the_references(found):
    pairs = zip(totals(found, references(found)), totals(found, winners(found)), strict=True)
    gains = [reference / winner for reference, winner in pairs]

    assert min(gains) >= 1 / 1.03
    large = [gain for gain, size in zip(gains, SIZES, strict=True) if size.tokens >= 2048]
    assert math.prod(large) ** (1 / len(large)) > 1.25


def test_recorded_size_winners_are_few_and_nowhere_a_percent_slower_than_the_others(found):
    by_size = totals(found, size_winners(found))

    for others in (winners(found), references(found)):
        pairs = zip(by_size, totals(found, others), strict=True)
        assert all(ours <= theirs * 1.01 for ours, theirs in pairs)
    different = [len({*map(repr, configs)}) for configs in size_winners(found).values()]
    assert sum(different) < 15


@pytest.mark.parametrize("made", recorded(), ids=list(SCORES))
def test_a_recorded_size_winner_is_within_one_percent_of_the_best_there(found, made):
    key = found[made.kernel.rpartition(":")[2]]

    for at, size in enumerate(key.sizes):
        best = min(key.measured[index].times[at] for index in made.finalists)
        assert key.times(size.config)[at] <= best * 1.0101


def every_other_round(made: Timings, first: int) -> Timings:
    configs = [
        replace(
            each,
            choosing=tuple(times[first::2] for times in each.choosing),
            confirming=tuple(times[first::2] for times in each.confirming),
        )
        for each in made.configs
    ]
    return replace(made, configs=tuple(configs))


def test_two_runs_choose_steps_that_take_the_same_within_two_percent(found):
    one, other = (
        dict(zip(SCORES, rules.choose([every_other_round(m, n) for m in recorded()]), strict=True))
        for n in (0, 1)
    )

    assert totals(found, winners(one)) == pytest.approx(totals(found, winners(other)), rel=0.02)


@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_dropping_what_is_clearly_beaten_costs_no_more_than_the_noise(kernel, seed):
    made = made_up(kernel, seed, 3, 6, 9)
    every = choose(made)

    found = choose(with_elimination(kernel, seed))

    loss = mean_ratio(every.times(found.winner), every.times(every.winner), made.weights)
    assert loss <= 1 + 2 * max(every.noise[1:])
    assert found.reference == every.reference
    assert sum(each.rounds for each in found.measured) < 0.8 * sum(
        each.rounds for each in every.measured
    )
