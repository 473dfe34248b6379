"""Configs beyond a kernel's list: near it, never in it, always the same."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from prewarm.core.manifest import Candidate
from prewarm.core.search_space import search_space

EVERYTHING = 10**6


def candidate(warps=4, stages=3, **constexprs):
    return Candidate(constexprs=constexprs, num_warps=warps, num_stages=stages)


def grid(blocks=(32, 64), warps=(2, 4), stages=(2, 3, 4)):
    return tuple(
        candidate(warps, stages, BV=block)
        for block, warps, stages in itertools.product(blocks, warps, stages)
    )


def values(found, what):
    return sorted({what(each) for each in found})


def test_a_grid_is_widened_by_one_step_either_side():
    found = search_space(grid(), EVERYTHING)

    assert values(found, lambda each: each.constexprs["BV"]) == [16, 32, 64, 128]
    assert values(found, lambda each: each.num_warps) == [1, 2, 4, 8]
    assert values(found, lambda each: each.num_stages) == [1, 2, 3, 4, 5]
    assert values(found, lambda each: each.maxnreg or 0) == [0, 128]
    assert len(found) == 4 * 4 * 5 * 2 - len(grid())


def test_steps_stop_where_kernels_stop_to_make_sense():
    found = search_space((candidate(1, 6, BV=16), candidate(16, 1, BV=256)), EVERYTHING)

    assert values(found, lambda each: each.constexprs["BV"]) == [16, 256]
    assert values(found, lambda each: each.num_warps) == [1, 16]
    assert values(found, lambda each: each.num_stages) == [1, 6]


def test_what_is_nearest_comes_first():
    candidates = (candidate(2, 2, BV=32), candidate(4, 3, BV=64))
    inside = 2 * 2 * 2 - 2

    found = search_space(candidates, inside + 1)

    assert all(each.num_warps in (2, 4) for each in found[:inside])
    assert all(each.num_stages in (2, 3) for each in found[:inside])
    assert all(each.constexprs["BV"] in (32, 64) for each in found[:inside])
    new = (
        found[inside].num_warps not in (2, 4),
        found[inside].num_stages not in (2, 3),
        found[inside].constexprs["BV"] not in (32, 64),
        found[inside].maxnreg is not None,
    )
    assert sum(new) == 1


def test_meta_parameters_that_are_not_sizes_take_only_what_the_list_says():
    candidates = (
        candidate(4, 2, TMA=True, STEP=3, ORDER="rows"),
        candidate(4, 2, TMA=False, STEP=5, ORDER="rows"),
    )

    found = search_space(candidates, EVERYTHING)

    assert {each.constexprs["TMA"] for each in found} == {True, False}
    assert {each.constexprs["STEP"] for each in found} == {3, 5}
    assert {each.constexprs["ORDER"] for each in found} == {"rows"}


def test_registers_and_clusters_take_only_what_the_list_says():
    candidates = (
        Candidate(num_warps=4, num_stages=2, maxnreg=128),
        Candidate(num_warps=8, num_stages=2, num_ctas=2),
    )

    found = search_space(candidates, EVERYTHING)

    assert {each.maxnreg for each in found} == {128, None}
    assert {each.num_ctas for each in found} == {1, 2}


def test_the_order_of_names_in_a_candidate_does_not_make_it_another():
    one = Candidate(constexprs={"BK": 32, "BV": 64}, num_warps=4, num_stages=2)
    two = Candidate(constexprs={"BV": 64, "BK": 64}, num_warps=4, num_stages=2)

    found = search_space((one, two), EVERYTHING)

    assert not any(each in (one, two) for each in found)


def test_a_list_of_one_or_none_is_no_choice():
    assert search_space((), EVERYTHING) == ()
    assert search_space(grid()[:1], EVERYTHING) == ()


candidates_of_one_kernel = st.lists(
    st.builds(
        candidate,
        st.sampled_from([1, 2, 4, 8]),
        st.integers(1, 5),
        BK=st.sampled_from([16, 32, 64, 128]),
        BV=st.sampled_from([32, 64, 256]),
    ),
    min_size=2,
    max_size=8,
)


@given(candidates_of_one_kernel, st.integers(0, 40))
def test_configs_are_new_and_different_and_a_shorter_list_is_the_start_of_a_longer(listed, most):
    found = search_space(listed, most)

    assert len(found) <= most
    assert not any(each in listed for each in found)
    assert all(each not in found[:at] for at, each in enumerate(found))
    assert search_space(listed, most + 5)[:most] == found
