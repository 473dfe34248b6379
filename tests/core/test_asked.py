"""Launches in words, and what tells two of them apart."""

import pytest

from prewarm.core.asked import (
    ABSENT,
    Difference,
    asked_of,
    config_fields,
    differences,
    in_words,
    nearest,
    pairs,
)
from prewarm.core.manifest import Argument, Launch, Unbound

PIN = Unbound(
    argument="num_cache_lines",
    kernels=("m:conv",),
    follows="number of GPU blocks",
    seen={"150": 150, "160": 160},
    pin="--num-gpu-blocks-override",
)


def launch(gate="*fp32", lines=150, **options):
    return Launch(
        kernel="m:conv",
        source="s",
        arguments={
            "g": Argument(type=gate, divisible_by_16=True),
            "tokens": Argument(type="i32"),
            "num_cache_lines": Argument(type="constexpr", value=lines),
        },
        options={"num_warps": 4, **options},
    )


def test_the_nearest_differs_in_the_fewest_items():
    known = [(name, asked_of(each)) for name, each in (
        ("far", launch("*bf16", 7)), ("near", launch(lines=7)), ("as near", launch(lines=8)),
    )]  # fmt: skip
    found = nearest(asked_of(launch()), known)
    assert found is not None
    assert found[0] == "near"


def test_nothing_is_nearest_where_nothing_is_known():
    assert nearest(asked_of(launch()), []) is None


def test_equal_launches_do_not_differ():
    assert differences(asked_of(launch()), asked_of(launch())) == ()


def test_every_difference_is_named_also_what_one_side_lacks():
    found = differences(asked_of(launch("*bf16")), asked_of(launch(lines=1204, maxnreg=128)))
    assert found == (
        Difference(field="g", known="*bf16 divisible by 16", here="*fp32 divisible by 16"),
        Difference(field="num_cache_lines", known="150", here="1204"),
        Difference(field="option maxnreg", known=ABSENT, here="128"),
    )


@pytest.mark.parametrize(
    ("difference", "words"),
    [
        (
            Difference(field="g", known="*bf16 divisible by 16", here="*fp32"),
            "`g` is a tensor of bfloat16 divisible by 16 in the cache and a tensor of float32 here",
        ),
        (
            Difference(field="num_cache_lines", known="150", here="1204"),
            "`num_cache_lines` is 150 in the cache and 1204 here: pin --num-gpu-blocks-override",
        ),
        (
            Difference(field="option num_warps", known="4", here="8"),
            "`option num_warps` is 4 in the cache and 8 here",
        ),
        (
            Difference(field="n", known="i64", here="i32 equal to 1"),
            "`n` is int64 in the cache and int32 equal to 1 here",
        ),
    ],
)
def test_differences_are_told_with_torchs_names_and_the_argument_that_mends_them(difference, words):
    assert in_words(difference, unbound=(PIN,)) == words


def test_what_is_pinned_in_neither_or_one_place_is_told_with_what_mends_it():
    unbound_there = Difference(field="num_cache_lines", known="unbound", here="3000")
    unbound_here = Difference(field="num_cache_lines", known="3000", here="unbound")
    assert in_words(unbound_there, unbound=(PIN,)) == (
        "`num_cache_lines` is unbound in the cache and 3000 here:"
        " build with --num-gpu-blocks-override"
    )
    assert in_words(unbound_here, unbound=(PIN,)) == (
        "`num_cache_lines` is 3000 in the cache and unbound here: pin --num-gpu-blocks-override"
    )


def test_each_is_paired_with_what_it_is_most_like_and_the_rest_with_nothing():
    old = [{"a": "1", "b": "1"}, {"a": "2", "b": "2"}, {"a": "9", "b": "9"}]
    new = [{"a": "2", "b": "3"}, {"a": "1", "b": "1"}]
    assert [*pairs(old, new)] == [(0, 1), (1, 0), (2, None)]
    assert [*pairs(new, old)] == [(0, 1), (1, 0), (None, 2)]
    assert [*pairs([], new)] == [(None, 0), (None, 1)]


def test_the_config_of_an_autotuned_kernel_is_its_own_matter(manifest):
    (kernel,) = manifest.kernels
    options = {"option num_warps", "option num_stages", "option num_ctas"}
    assert config_fields(kernel) == {"B", *options}
    assert config_fields() == set()
