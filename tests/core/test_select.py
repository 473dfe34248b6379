"""Tunings and a manifest, joined: what fits is chosen, what is stale is refused."""

from __future__ import annotations

import msgspec
import pytest

from prewarm.core.errors import InputError
from prewarm.core.manifest import Candidate
from prewarm.core.select import select
from prewarm.core.selection import selected_launches

replace = msgspec.structs.replace


def with_kernel(document, **changes):
    (kernel,) = document.kernels
    return replace(document, kernels=(replace(kernel, **changes),))


def with_key(tunings, **changes):
    (kernel,) = tunings.kernels
    return with_kernel(tunings, keys=(replace(kernel.keys[0], **changes),))


def with_second_key(manifest):
    (kernel,) = manifest.kernels
    (one,) = kernel.specializations
    two = replace(one, tuning_key={"n": 2}, via=("decode",))
    return with_kernel(manifest, specializations=(one, two, replace(two, via=("mixed",))))


def test_the_choice_is_the_winner_with_its_time_and_sizes(manifest, tunings):
    found = select(manifest, tunings)
    (tuned,) = tunings.kernels[0].keys

    (choice,) = found.selection.choices
    assert (choice.kernel, choice.key, choice.winner) == ("kernels:add", {"n": 1}, tuned.winner)
    assert choice.time == 100.0
    assert (choice.sizes, choice.sized_by) == (tuned.sizes, tuned.sized_by)
    assert found.untuned == ()
    assert (found.selection.gpu, found.selection.foreign) == ("NVIDIA B200", False)
    assert found.selection.tunings == tunings.digest


def test_only_winners_are_compiled_and_with_all_candidates_those_too(manifest, tunings):
    few = select(manifest, tunings).selection
    every = select(manifest, tunings, all_candidates=True).selection

    blocks = [launch.arguments["B"].value for launch in selected_launches(manifest, few)]
    assert sorted(blocks) == [64, 128, 256]
    one_winner = select(manifest, with_key(tunings, sizes=())).selection
    (launch,) = selected_launches(manifest, one_winner)
    assert launch.arguments["B"].value == 256
    assert len([*selected_launches(manifest, every)]) == 3


def test_the_time_is_that_of_the_size_that_counts_most_and_then_of_the_largest(manifest, tunings):
    (run,) = tunings.runs

    def time_with(*weights):
        sizes = tuple(
            replace(size, weight=weight) for size, weight in zip(run.sizes, weights, strict=True)
        )
        weighed = replace(tunings, runs=(replace(run, sizes=sizes),))
        return select(manifest, weighed).selection.choices[0].time

    assert time_with(3.0, 1.0, 2.0) == 3.5
    assert time_with(1.0, 1.0, 2.0) == 101.0
    assert time_with(1.0, 2.0, 0.0) == 100.0


def test_a_size_at_which_the_key_is_not_asked_for_has_no_time(manifest, tunings):
    (key,) = tunings.kernels[0].keys
    measured = tuple(
        replace(each, times=(each.times[0], None, None)) if each.times else each
        for each in key.measured
    )
    small = with_key(tunings, measured=measured, sizes=key.sizes[:1])

    assert select(manifest, small).selection.choices[0].time == 3.5


def test_sizes_that_all_want_the_winner_are_left_out(manifest, tunings):
    (key,) = tunings.kernels[0].keys
    sizes = tuple(replace(size, config=key.winner) for size in key.sizes)

    (choice,) = select(manifest, with_key(tunings, sizes=sizes)).selection.choices

    assert choice.sizes == ()


def test_a_key_without_tunings_is_told_once_and_keeps_its_candidates(manifest, tunings):
    more = with_second_key(manifest)

    found = select(more, tunings)

    assert [(each.kernel, each.key) for each in found.untuned] == [("kernels:add", {"n": 2})]
    assert [choice.key for choice in found.selection.choices] == [{"n": 1}]


def test_a_kernel_without_a_choice_is_not_untuned(manifest, tunings):
    (kernel,) = manifest.kernels
    (specialization,) = kernel.specializations
    alone = replace(
        kernel,
        name="kernels:alone",
        candidates=kernel.candidates[:1],
        specializations=(replace(specialization, candidates=(0,)),),
    )

    assert select(replace(manifest, kernels=(kernel, alone)), tunings).untuned == ()


def test_tunings_of_another_gpu_are_refused_unless_asked_for_and_then_marked(manifest, tunings):
    h100 = replace(tunings, gpu="NVIDIA H100 80GB HBM3", arch=90)

    with pytest.raises(InputError) as refused:
        select(manifest, h100)

    assert "NVIDIA H100 80GB HBM3" in str(refused.value)
    assert "NVIDIA B200" in str(refused.value)
    assert "--tunings-of-another-gpu" in refused.value.hint
    assert select(manifest, h100, other_gpu=True).selection.foreign
    assert not select(manifest, tunings, other_gpu=True).selection.foreign


def test_tunings_of_another_triton_are_refused(manifest, tunings):
    with pytest.raises(InputError, match=r"measured with Triton 3\.9\.0, .* with Triton 3\.6\.0"):
        select(manifest, replace(tunings, triton="3.9.0"), other_gpu=True)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"source": "sha256:0"}, "kernels:add: its source"),
        (
            {"candidates": (Candidate(num_warps=1, num_stages=1),)},
            "kernels:add: its list of candidates",
        ),
    ],
)
def test_a_changed_kernel_is_refused_with_the_command_that_mends_it(
    manifest, tunings, changes, what
):
    with pytest.raises(InputError, match=what) as refused:
        select(manifest, with_kernel(tunings, **changes))

    assert "prewarm tune" in refused.value.hint


def test_every_changed_kernel_is_named_and_one_that_the_manifest_lacks_is_not(manifest, tunings):
    (kernel,), (tuned,) = manifest.kernels, tunings.kernels
    two = replace(manifest, kernels=(kernel, replace(kernel, name="kernels:mul")))
    stale = tuple(
        replace(tuned, name=name, source="sha256:0")
        for name in ("kernels:add", "kernels:gone", "kernels:mul")
    )

    with pytest.raises(InputError) as refused:
        select(two, replace(tunings, kernels=stale))

    assert str(refused.value).splitlines()[1:] == [
        "  kernels:add: its source",
        "  kernels:mul: its source",
    ]


def test_tunings_that_hold_none_of_the_keys_are_refused(manifest, tunings):
    with pytest.raises(InputError, match=r"none of the 1 tuning keys .* among the 1 of"):
        select(manifest, with_key(tunings, key={"n": 3}))


def test_keys_differ_by_the_type_of_a_value_as_triton_s_do(manifest, tunings):
    with pytest.raises(InputError, match="none of the 1"):
        select(manifest, with_key(tunings, key={"n": True}))


def test_a_manifest_without_autotuned_kernels_wants_no_tunings(manifest, tunings):
    (kernel,) = manifest.kernels
    plain = replace(kernel.specializations[0], candidates=None)
    untuned = replace(kernel, tuned_by=None, candidates=(), specializations=(plain,))

    with pytest.raises(InputError, match="has no autotuned kernel"):
        select(replace(manifest, kernels=(untuned,)), replace(tunings, kernels=()))
