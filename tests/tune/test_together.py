"""The best configs of several kernels together, against trying every combination."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prewarm.tune.together import StepTimes


def steps(tables, limits, weights=None):
    return StepTimes(
        [dict(enumerate(table)) for table in tables], weights or [1.0] * len(limits), limits
    )


def test_a_mean_is_taken_over_what_the_kernels_take_in_all():
    step = steps([[(1.0, 30.0)], [(3.0, 70.0), (9.0, 900.0)]], (10.0, 99.0), weights=[3.0, 1.0])

    assert step.totals((0, 0)) == (4.0, 100.0)
    assert step.mean((0, 0)) == pytest.approx((3 * math.log(4) + math.log(100)) / 4)


def test_a_limit_is_what_the_kernels_may_take_in_all():
    tables = [[(1.0, 30.0)], [(3.0, 70.0)]]

    assert steps(tables, (4.0, 100.0)).keeps_limits((0, 0))
    assert not steps(tables, (4.0, 99.9)).keeps_limits((0, 0))


def test_noise_of_a_kernel_moves_the_mean_by_its_part_of_the_step():
    step = steps([[(25.0, 10.0)], [(75.0, 90.0)]], (100.0, 100.0), weights=[1.0, 3.0])

    moved = step.moved_by((0.02, 0.01), 0, (0, 0))

    assert moved == pytest.approx((1 * 0.02 * 0.25 + 3 * 0.01 * 0.1) / 4)
    louder = steps([[(25.0 * 1.02, 10.0 * 1.01)], [(75.0, 90.0)]], (200.0, 200.0), [1.0, 3.0])
    assert louder.mean((0, 0)) - step.mean((0, 0)) == pytest.approx(moved, rel=0.01)


def test_what_one_kernel_loses_at_a_size_another_may_make_up():
    tables = [[(10.0, 100.0), (12.0, 60.0)], [(10.0, 100.0), (9.0, 101.0)]]

    assert steps(tables, (20.6, 206.0)).best((0, 0)) == (0, 1)
    assert steps(tables, (21.0, 206.0)).best((0, 0)) == (1, 1)
    assert steps(tables[:1], (10.5, 103.0)).best((0,)) == (0,)


def test_a_limit_holds_at_a_size_that_counts_nothing():
    tables = [[(10.0, 100.0), (12.0, 60.0), (10.2, 90.0)]]

    assert steps(tables, (10.3, 200.0), weights=[0.0, 1.0]).best((0,)) == (2,)


def test_a_kernel_that_a_size_does_not_ask_for_takes_no_time_there():
    tables = [[(0.0, 100.0), (0.0, 60.0)], [(5.0, 10.0), (4.0, 60.0)]]

    assert steps(tables, (9.0, 999.0)).best((0, 0)) == (1, 0)
    assert steps(tables, (9.0, 999.0), weights=[9.0, 1.0]).best((0, 0)) == (1, 1)


def test_three_kernels_are_changed_together_where_no_two_of_them_would_do():
    tables = [
        [(5.0, 3.0), (2.0, 8.0), (3.0, 4.0)],
        [(2.0, 9.0), (8.0, 1.0), (6.0, 5.0)],
        [(7.0, 9.0), (1.0, 9.0), (7.0, 1.0)],
    ]

    assert steps(tables, (10.0, 18.0)).best((0, 0, 0)) == (2, 2, 1)


def test_of_equals_the_first_is_taken():
    step = StepTimes([{7: (5.0,), 3: (4.0,), 5: (4.0,)}, {2: (1.0,), 1: (1.0,)}], [1.0], [math.inf])

    assert step.best((7, 1)) == (3, 2)


def test_without_a_choice_that_keeps_the_limits_nothing_changes():
    assert steps([[(10.0,), (9.0,)], [(10.0,), (9.0,)]], (17.0,)).best((0, 1)) == (0, 1)


# --- whatever the times -------------------------------------------------------------------


@st.composite
def any_step(draw):
    """Draw tables, weights and limits, near enough to what the kernels take to matter."""
    sizes = draw(st.integers(1, 3))
    times = st.integers(1, 9).map(float) | st.floats(1.0, 100.0)
    row = st.tuples(*[times] * sizes)
    table = st.lists(row, min_size=1, max_size=4)
    tables = draw(st.lists(table, min_size=1, max_size=3))
    start = tuple(draw(st.integers(0, len(table) - 1)) for table in tables)
    weights = draw(
        st.lists(st.sampled_from([0.0, 1.0, 3.0]), min_size=sizes, max_size=sizes).filter(any)
    )
    rows = [draw(st.sampled_from(table)) for table in tables]
    slack = draw(st.sampled_from([0.9, 1.0, 1.03, 1.2]))
    limits = [math.fsum(times) * slack for times in zip(*rows, strict=True)]
    return tables, limits, weights, start


@settings(deadline=None)
@given(any_step())
def test_the_best_is_what_trying_every_combination_finds(drawn):
    tables, limits, weights, start = drawn
    step = steps(tables, limits, weights)

    found = step.best(start)

    every = itertools.product(*(range(len(table)) for table in tables))
    allowed = [picks for picks in every if step.keeps_limits(picks)]
    if not allowed:
        assert found == start
    else:
        assert step.keeps_limits(found)
        assert step.mean(found) <= min(map(step.mean, allowed)) + 1e-9


@settings(deadline=None)
@given(any_step(), st.integers(0, 20))
def test_a_search_that_is_cut_short_is_never_worse_than_its_start(drawn, most):
    tables, limits, weights, start = drawn
    step = steps(tables, limits, weights)

    found = step.best(start, most)

    if step.keeps_limits(start):
        assert step.keeps_limits(found)
        assert step.mean(found) <= step.mean(start)
    else:
        assert found == start or step.keeps_limits(found)


@settings(deadline=None)
@given(any_step(), st.integers(0, 20))
def test_the_same_tables_give_the_same_picks(drawn, most):
    tables, limits, weights, start = drawn

    first, second = (steps(tables, limits, weights).best(start, most) for _ in range(2))

    assert first == second


@settings(deadline=None)
@given(any_step(), st.integers(-3, 6))
def test_a_gpu_that_is_twice_as_slow_wants_the_same(drawn, power):
    tables, limits, weights, start = drawn
    slower = [[tuple(time * 2.0**power for time in row) for row in table] for table in tables]

    found = steps(slower, [limit * 2.0**power for limit in limits], weights).best(start)

    step = steps(tables, limits, weights)
    assert step.mean(found) == pytest.approx(step.mean(step.best(start)), abs=1e-9)


def test_many_configs_of_many_kernels_come_to_an_end():
    """No config of these is better everywhere than another, so that little can be left out."""
    source = random.Random(0)
    tables = [
        [tuple(2**at * source.uniform(1, 1.1) for at in range(11)) for _ in range(90)]
        for _ in range(6)
    ]
    start = (0,) * 6
    references = [table[0] for table in tables]
    step = steps(tables, [1.03 * math.fsum(times) for times in zip(*references, strict=True)])

    found = step.best(start)

    assert step.keeps_limits(found)
    assert step.mean(found) < step.mean(start) - 0.02
