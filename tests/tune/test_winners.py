"""Winners of several keys that share a step."""

from __future__ import annotations

import math

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from prewarm.tune.statistics import medians
from prewarm.tune.timings import ConfigTimings, Timings
from prewarm.tune.winners import all_rounds, winners_of
from tests.tune.examples import ONE, WARM_UP, any_runs, steady, timed, timings

replace = msgspec.structs.replace
SIZES = (WARM_UP, ONE)


def key(*configs, sizes=SIZES, kernel="m:f") -> Timings:
    return timings(*configs, sizes=sizes, kernel=kernel)


def among_slow_ones(*configs) -> Timings:
    """Return a key with more configs, so that its noise is that of the rounds."""
    slow = [timed(n, 50, 500, listed=False) for n in range(6, 12)]
    return key(*configs, *slow)


def test_the_step_counts_and_not_each_kernel():
    """The second kernel more than makes up for what the first one loses at 64 tokens."""
    first = key(timed(1, 10.0, 100), timed(2, 10.8, 60))
    second = key(timed(1, 10.0, 100), timed(2, 9.5, 99, listed=False))

    assert winners_of([first]).winners == (0,)
    assert winners_of([first, second]).winners == (1, 1)


def test_what_is_slow_in_a_step_of_much_else_counts_little():
    small = key(timed(1, 1.0, 10.0), timed(2, 1.5, 9.0))

    assert winners_of([small]).winners == (0,)
    assert winners_of([small, key(timed(1, 100, 1000))]).winners == (1, 0)


def test_a_kernel_that_a_size_does_not_ask_for_takes_no_time_there():
    def only_large(number, time):
        (rounds,) = steady((time,))
        both = ((), rounds)
        return ConfigTimings(config=timed(number).config, choosing=both, confirming=both)

    slower_at_first = key(timed(1, 10.0, 100), timed(2, 10.31, 60))
    found = winners_of([slower_at_first, key(only_large(1, 900), only_large(2, 800))])

    assert found.winners == (0, 1)
    assert all(found.confirmed)


def test_a_size_that_nobody_asks_for_decides_nothing():
    sizes = (WARM_UP, replace(ONE, tokens=128), ONE)

    def skipping(number, *times):
        first, last = steady(times)
        both = (first, (), last)
        return ConfigTimings(config=timed(number).config, choosing=both, confirming=both)

    found = winners_of([key(skipping(1, 5, 100), skipping(2, 5, 90), sizes=sizes)])

    assert found.winners == (1,)


def test_a_cheaper_config_costs_one_percent_at_most_however_noisy_the_times():
    noise = [timed(n, 50, 500, confirming=(50, 500 + 20 * n), listed=False) for n in range(6, 12)]

    dearer = timed(2, 5, 100)

    assert winners_of([key(timed(1, 5, 100.9), dearer, *noise)]).winners == (0,)
    assert winners_of([key(timed(1, 5, 101.2), dearer, *noise)]).winners == (1,)


def test_a_cheaper_config_may_not_break_the_limit():
    reference = timed(3, 5.0, 100)
    within, beyond = timed(2, 5.14, 60.0), timed(1, 5.16, 60.1)

    assert winners_of([among_slow_ones(beyond, within, reference)]).winners == (1,)


def test_only_the_key_that_other_rounds_deny_is_not_confirmed():
    lucky = among_slow_ones(timed(1, 5, 100, confirming=(5, 130)), timed(2, 5, 103))
    sure = among_slow_ones(timed(1, 5, 120), timed(2, 5, 100))

    found = winners_of([lucky, sure])

    assert (found.winners, found.confirmed) == ((1, 1), (False, True))


def test_a_winner_is_confirmed_within_twice_the_noise():
    """The noise is half a percent, and the kernel takes half of the step."""
    other = key(timed(1, 5, 100))

    def confirmed(again):
        made = among_slow_ones(timed(1, 5, 103, confirming=(5, again)), timed(2, 5, 100))
        return winners_of([made, other]).confirmed

    assert confirmed(99.1) == (True, True)
    assert confirmed(98.9) == (False, True)


def test_a_winner_that_changes_when_all_rounds_choose_is_not_confirmed():
    """Alone the first key is confirmed. Over all rounds both configs are as good."""
    near = among_slow_ones(
        timed(1, 5, 100.9, confirming=(5, 99.6)), timed(2, 5, 100.0, confirming=(5, 100.45))
    )
    lucky = among_slow_ones(timed(1, 5, 100, confirming=(5, 130)), timed(2, 5, 103))
    calm = among_slow_ones(timed(1, 5, 100), timed(2, 5, 103))

    found = winners_of([near, calm])
    assert (found.winners, found.confirmed) == ((1, 0), (True, True))

    found = winners_of([near, lucky])
    assert (found.winners, found.confirmed) == ((0, 1), (False, False))


def test_the_limit_holds_over_all_rounds():
    """What the rounds that choose allow is 3.5 % slower over all of them."""
    made = among_slow_ones(timed(1, 10.0, 100), timed(2, 10.28, 60, confirming=(10.48, 60)))

    found = winners_of([made])

    assert (found.winners, found.confirmed) == ((0,), (False,))


def test_without_rounds_that_confirm_in_one_key_none_is_confirmed():
    hasty = key(*(replace(timed(n, 5, 100 * n), confirming=()) for n in (1, 2)))

    assert winners_of([hasty, key(timed(1, 5, 100))]).confirmed == (False, False)


# --- whatever the times -------------------------------------------------------------------


def totals(run, picks):
    rows = [medians(each, [pick], all_rounds)[pick] for each, pick in zip(run, picks, strict=True)]
    return [math.fsum(times) for times in zip(*rows, strict=True)]


@settings(deadline=None)
@given(any_runs())
def test_winners_take_at_no_size_more_than_three_percent_over_the_references(run):
    found = winners_of(run)

    pairs = zip(totals(run, found.winners), totals(run, found.references), strict=True)
    assert all(total <= 1.03 * reference * (1 + 1e-12) for total, reference in pairs)


@settings(deadline=None)
@given(any_runs())
def test_winners_are_hardly_slower_than_the_references_over_the_sizes_that_count(run):
    """What a cheaper config gives away is 1 % at most; what other rounds say is noise."""
    calm = [
        replace(
            each,
            configs=tuple(
                replace(c, choosing=c.choosing, confirming=c.choosing) for c in each.configs
            ),
        )
        for each in run
    ]
    found = winners_of(calm)

    pairs = zip(totals(calm, found.winners), totals(calm, found.references), strict=True)
    ratios = [total / reference for total, reference in pairs][1:]
    assert math.prod(ratios) ** (1 / len(ratios)) <= 1.0101


@settings(deadline=None)
@given(any_runs(), st.randoms(use_true_random=False))
def test_the_order_of_configs_changes_nothing(run, source):
    orders = [source.sample(range(len(each.configs)), len(each.configs)) for each in run]
    shuffled = [
        replace(each, configs=tuple(each.configs[index] for index in order))
        for each, order in zip(run, orders, strict=True)
    ]
    found, again = winners_of(run), winners_of(shuffled)

    def of_first(picks):
        return tuple(order[pick] for order, pick in zip(orders, picks, strict=True))

    assert of_first(again.references) == found.references
    assert of_first(again.winners) == found.winners
    assert again.confirmed == found.confirmed


@settings(deadline=None)
@given(any_runs())
def test_the_same_timings_give_the_same_winners(run):
    copies = msgspec.json.decode(msgspec.json.encode(run), type=list[Timings])

    assert winners_of(copies) == winners_of(run)
