"""Whether results are as good as those of the kernel's own list."""

from __future__ import annotations

import math

import pytest
import torch

from prewarm.tune.replay import relative_distance
from prewarm.tune.results import Outcome, compared, judged, reason_of

GOOD = Outcome(deviation=0.0, floor=1e-5)


def test_equal_results_have_no_distance():
    values = torch.randn(100, generator=torch.Generator().manual_seed(0))

    assert relative_distance(values, values.clone()) == 0.0


def test_the_distance_is_relative_to_the_size_of_what_is_wanted():
    wanted = torch.full((100,), 4.0)

    assert relative_distance(wanted * 1.01, wanted) == pytest.approx(0.01, rel=1e-4)


def test_what_is_not_finite_in_both_is_no_difference_and_in_one_is_all_of_it():
    wanted = torch.tensor([1.0, math.nan, 3.0])

    assert relative_distance(wanted.clone(), wanted) == 0.0
    assert relative_distance(torch.tensor([1.0, 2.0, 3.0]), wanted) == math.inf


def test_a_result_where_nothing_is_wanted_counts_as_it_is():
    assert relative_distance(torch.full((4,), 0.5), torch.zeros(4)) == pytest.approx(1.0)


def test_a_config_beyond_the_list_may_be_as_far_off_as_the_list_and_a_tenth_more():
    spread = Outcome(deviation=1e-3, floor=1e-5)
    outcomes = [GOOD, spread, Outcome(deviation=1.09e-3), Outcome(deviation=1.2e-3)]

    reasons = judged(outcomes, 2)

    assert reasons[:3] == [None, None, None]
    assert reasons[3] == "its results are 0.0012 off, those of the list 0.001"


def test_where_the_list_agrees_to_the_bit_rounding_is_still_allowed():
    assert judged([GOOD, Outcome(deviation=0.9e-5, floor=1e-5)], 1) == [None, None]


def test_the_wrong_result_that_a_real_gpu_gave_is_refused():
    """`chunk_fwd_kernel_o` with BK=128, BV=32, 4 warps and 4 stages on an H100 (Triton 3.6.0)."""
    spread = Outcome(deviation=9.8e-06, floor=2.0**-9)
    wrong = Outcome(deviation=0.9, floor=2.0**-9)

    assert (
        judged([GOOD, spread, wrong], 2)[2] == "its results are 0.9 off, those of the list 9.8e-06"
    )


def test_a_result_that_is_not_finite_fails_by_name():
    wanted = torch.ones(4)
    found = {"h": (wanted, wanted), "v": (torch.tensor([1.0, math.nan, 1.0, 1.0]), wanted)}

    assert compared(found).failed == "its result v is not finite where that of the list is"


def test_the_worst_result_of_a_launch_counts_and_its_dtype_says_what_rounding_explains():
    wanted = torch.ones(4, dtype=torch.bfloat16)
    found = {"h": (wanted.float(), wanted.float()), "v": (wanted * 2, wanted)}

    assert compared(found) == Outcome(deviation=1.0, floor=2.0**-9)


def test_what_failed_keeps_its_reason_and_a_listed_one_is_not_judged():
    failed = Outcome(failed="OutOfResources: shared memory")

    assert judged([GOOD, Outcome(deviation=0.5), failed], 2) == [None, None, failed.failed]


def test_a_reason_is_one_short_line():
    assert reason_of(ValueError("a\n  b" * 200)).count("\n") == 0
    assert len(reason_of(ValueError("a" * 1000))) == 300
