"""What of a deployment a cache was not built with, and in what the nearest entry differs."""

from __future__ import annotations

import msgspec
import pytest

from prewarm.core.asked import UNBOUND, Difference, config_fields
from prewarm.core.coverage import Lack, keys_lacking, launches_lacking, launches_unasked
from prewarm.core.manifest import Argument, Kernel, Manifest, Unbound
from prewarm.core.manifest_yaml import read_manifest
from prewarm.core.selection import Choice, Selection

SMALL = ("model-configs/Qwen3.5-0.8B", "--gdn-prefill-backend", "triton")
PINNED = ("--num-gpu-blocks-override", "3000")
OUTPUT, CONVOLUTION = "chunk_fwd_kernel_o", "_causal_conv1d_fwd_kernel"


@pytest.fixture(scope="module")
def plan(planned, root, monkeypatch_module) -> Manifest:
    monkeypatch_module.chdir(root)
    return read_manifest(planned("b200", *SMALL, *PINNED))


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def kernel_of(manifest: Manifest, function: str) -> Kernel:
    return next(each for each in manifest.kernels if each.name.endswith(f":{function}"))


def edited(manifest: Manifest, function: str, **arguments: Argument) -> Manifest:
    """Return the manifest with these arguments in every specialization of one kernel."""
    kernel = kernel_of(manifest, function)
    changed = msgspec.structs.replace(
        kernel,
        specializations=tuple(
            msgspec.structs.replace(each, arguments={**each.arguments, **arguments})
            for each in kernel.specializations
        ),
    )
    return with_kernel(manifest, changed)


def with_kernel(manifest: Manifest, changed: Kernel) -> Manifest:
    kernels = tuple(changed if each.name == changed.name else each for each in manifest.kernels)
    return msgspec.structs.replace(manifest, kernels=kernels)


def unpinned(manifest: Manifest) -> Manifest:
    """Return the manifest as it is where nothing pins the number of GPU blocks."""
    bare = edited(manifest, CONVOLUTION, num_cache_lines=Argument(type="constexpr", unbound=True))
    unbound = Unbound(
        argument="num_cache_lines",
        kernels=(kernel_of(manifest, CONVOLUTION).name,),
        follows="number of GPU blocks",
        seen={"150": 150, "160": 160},
        pin="--num-gpu-blocks-override",
    )
    return msgspec.structs.replace(bare, unbound=(unbound,))


def selection_of(manifest: Manifest, *functions: str) -> Selection:
    choices = tuple(
        Choice(kernel=kernel.name, key=each.tuning_key, winner=kernel.candidates[0], time=1.0)
        for kernel in (kernel_of(manifest, function) for function in functions)
        for each in kernel.specializations
    )
    return Selection(gpu="NVIDIA B200", tunings="sha256:0", choices=choices)


def test_the_deployment_that_the_cache_was_built_for_lacks_nothing(plan):
    assert launches_lacking(plan, None, plan) == {}
    assert launches_unasked(plan, None, plan) == ()


def test_every_candidate_lacks_for_the_one_argument_that_differs(plan):
    here = edited(plan, OUTPUT, g=Argument(type="*bf16", divisible_by_16=True))
    lacking = launches_lacking(plan, None, here)
    assert len(lacking) == 24
    assert {each.differences for each in lacking.values()} == {
        (Difference(field="g", known="*fp32 divisible by 16", here="*bf16 divisible by 16"),)
    }
    assert len({each.nearest for each in lacking.values()}) == 24
    assert len(launches_unasked(plan, None, here)) == 24


def test_with_winners_alone_a_candidate_of_another_key_lacks_for_the_key_not_for_its_config(plan):
    selection = selection_of(plan, OUTPUT)
    kernel = kernel_of(plan, OUTPUT)
    changed = msgspec.structs.replace(
        kernel,
        specializations=tuple(
            msgspec.structs.replace(
                each,
                arguments={**each.arguments, "H": Argument(type="constexpr", value=3)},
                tuning_key={**each.tuning_key, "H": 3},
            )
            for each in kernel.specializations
        ),
    )
    here = with_kernel(plan, changed)
    (value,) = {each.arguments["H"].value for each in kernel.specializations}
    lacking = launches_lacking(plan, selection, here)
    assert len(lacking) == 24
    assert {each.differences for each in lacking.values()} == {
        (Difference(field="H", known=str(value), here="3"),)
    }
    (untuned,) = [each for each in keys_lacking(plan, selection, here) if each.lack.known]
    assert untuned.asked.kernel == kernel.name
    assert untuned.lack.differences == (
        Difference(field="tuning key H", known=str(value), here="3"),
    )


def test_a_candidate_that_the_cache_was_not_built_with_is_named_by_its_config(plan):
    kernel = kernel_of(plan, OUTPUT)
    fewer = msgspec.structs.replace(
        kernel,
        specializations=tuple(
            msgspec.structs.replace(each, candidates=each.candidates[:-1])
            for each in kernel.specializations
        ),
    )
    (lack,) = launches_lacking(with_kernel(plan, fewer), None, plan).values()
    assert lack.differences
    assert {each.field for each in lack.differences} <= config_fields(kernel)


def test_kernels_without_a_winner_are_all_named_where_there_are_no_tunings(plan):
    lacking = [*keys_lacking(plan, None, plan)]
    assert len(lacking) == 6
    assert not any(each.lack.known for each in lacking)


def test_a_kernel_that_the_cache_never_saw_has_no_nearest(plan):
    others = tuple(each for each in plan.kernels if each != kernel_of(plan, OUTPUT))
    cached = msgspec.structs.replace(plan, kernels=others)
    assert {*launches_lacking(cached, None, plan).values()} == {Lack(known=False)}


def test_another_source_is_the_reason_by_itself(plan):
    changed = msgspec.structs.replace(kernel_of(plan, CONVOLUTION), source="sha256:0")
    (lack,) = {*launches_lacking(plan, None, with_kernel(plan, changed)).values()}
    assert (lack.known, lack.source_differs, lack.differences) == (True, True, ())


def test_what_is_unbound_on_both_sides_lacks_nothing(plan):
    assert launches_lacking(unpinned(plan), None, unpinned(plan)) == {}
    assert launches_unasked(unpinned(plan), None, unpinned(plan)) == ()


@pytest.mark.parametrize("pinned_here", [True, False])
def test_what_is_pinned_on_one_side_alone_lacks_for_that(plan, pinned_here):
    cached, here = (unpinned(plan), plan) if pinned_here else (plan, unpinned(plan))
    lacking = launches_lacking(cached, None, here).values()
    known, now = (UNBOUND, "3000") if pinned_here else ("3000", UNBOUND)
    assert {each.differences for each in lacking} == {
        (Difference(field="num_cache_lines", known=known, here=now),)
    }


def test_an_unbound_launch_that_differs_otherwise_is_left_to_the_first_start(plan):
    here = edited(unpinned(plan), CONVOLUTION, dim=Argument(type="constexpr", value=7))
    assert launches_lacking(unpinned(plan), None, here) == {}


def test_a_value_that_no_pin_gave_is_held_against_another_such_value(plan):
    """What vLLM's own measuring of graphs asks with, beside a launch that is unbound."""
    kernel = kernel_of(unpinned(plan), CONVOLUTION)
    (one, *_) = kernel.specializations

    def with_lines(lines: int) -> Manifest:
        fixed = {**one.arguments, "num_cache_lines": Argument(type="constexpr", value=lines)}
        more = msgspec.structs.replace(one, arguments=fixed)
        every = (*kernel.specializations, more)
        return with_kernel(unpinned(plan), msgspec.structs.replace(kernel, specializations=every))

    (lack,) = launches_lacking(with_lines(400), None, with_lines(512)).values()
    assert lack.differences == (Difference(field="num_cache_lines", known="400", here="512"),)
