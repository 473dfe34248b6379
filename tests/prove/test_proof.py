"""What a proof makes of the events of serving processes."""

import msgspec
import pytest

from prewarm.core.flashinfer import HOPPER
from prewarm.core.manifest import Argument, Kernel, Specialization, Unbound
from prewarm.core.selection import selected_launches
from prewarm.prove.message import STEADY, Lap, Served
from prewarm.prove.proof import Escape, Idle, Proof, Work, column, escapes_of, idle_of
from prewarm.serve.recording import Benchmarked, Built, Library, Looked, Other, Tuned, Worker

HERE = {"pid": 1, "rank": 0}
CONV = Kernel(
    name="vllm.m:conv",
    source="s",
    specializations=(
        Specialization(
            arguments={
                "x": Argument(type="*bf16"),
                "lines": Argument(type="constexpr", unbound=True),
            },
            options={"num_warps": 4},
            via=("decode",),
        ),
        Specialization(
            arguments={"x": Argument(type="*bf16"), "lines": Argument(type="constexpr", value=0)},
            options={"num_warps": 4},
            via=("mixed", "prefill"),
        ),
    ),
)
LINES = Unbound(
    argument="lines",
    kernels=("vllm.m:conv",),
    follows="number of GPU blocks",
    seen={"100": 200, "101": 202},
    pin="--num-gpu-blocks-override",
)


@pytest.fixture
def planned(manifest):
    return msgspec.structs.replace(manifest, kernels=(*manifest.kernels, CONV), unbound=(LINES,))


def looked(launch, *, phase="start-up", found=True):
    return Looked(**HERE, phase=phase, launch=launch, key="K", found=found, seconds=0.5)


def settled(launch, lines):
    value = Argument(type="constexpr", value=lines)
    return msgspec.structs.replace(launch, arguments={**launch.arguments, "lines": value})


def test_a_column_tells_planned_kernels_from_others_phase_by_phase(planned):
    add, *_ = selected_launches(planned, None)
    other = {**HERE, "kernel": "vllm.m:attention", "reason": "r", "found": False, "seconds": 2.0}
    events = (
        Worker(**HERE, gpu_blocks=100),
        looked(add, found=False),
        Benchmarked(**HERE, phase="start-up", kernel=add.kernel, seconds=0.25),
        Other(**other, phase="inference"),
        looked(add, phase="inference"),
        Built(**HERE, phase="start-up", module="cuda_utils", seconds=0.1),
    )
    laps = [Lap(kind=STEADY, tokens=100, seconds=s) for s in (4.0, 1.0, 1.0, 1.0)]
    laps += [Lap(kind="mixed", tokens=5, seconds=3.0), Lap(kind="decode", tokens=1, seconds=0.5)]
    served = Served(gpu="GPU", start_up=7.0, laps=tuple(laps))

    found = column("a name", served, events, frozenset({"kernels:add", "vllm.m:conv"}))

    assert found.planned["start-up"] == Work(compiles=1, benchmarks=1, seconds=0.75)
    assert found.planned["inference"] == Work(hits=1, seconds=0.5)
    assert found.others["inference"] == Work(compiles=1, seconds=2.0)
    assert found.compiled_besides["inference"] == {"vllm.m:attention": 1}
    assert found.host_modules == {"start-up": 1}
    assert (found.first, found.tenth, found.tokens_per_second) == (4.0, 1.0, 100.0)
    assert (found.worst, found.slowest) == (3.0, "mixed")
    assert found.gpu_blocks == (100,)


def test_what_was_planned_is_no_escape_and_unbound_values_follow_the_gpu_blocks(planned):
    *bound, unbound = sorted(selected_launches(planned, None), key=lambda one: one.unbound)
    events = [Worker(**HERE, gpu_blocks=150), *map(looked, bound), looked(settled(unbound, 300))]

    assert list(escapes_of(planned, None, events, whole=False)) == []


def test_an_escape_says_how_it_differs_from_the_nearest_that_was_planned(planned):
    unbound = next(each for each in selected_launches(planned, None) if each.unbound)
    strange = settled(unbound, 7)
    events = [looked(strange, phase="inference"), looked(strange, phase="inference")]

    (found,) = escapes_of(planned, None, events, whole=False)

    assert found == Escape(
        kernel="vllm.m:conv",
        phase="inference",
        words="`lines` is unbound in the manifest and 7 here",
        count=2,
    )


def test_kernels_of_other_layers_escape_only_where_there_are_none(planned):
    launch = msgspec.structs.replace(next(selected_launches(planned, None)), kernel="vllm.m:norm")

    (found,) = escapes_of(planned, None, [looked(launch)], whole=False)
    assert found.words == "the manifest does not know this kernel"
    assert list(escapes_of(planned, None, [looked(launch)], whole=True)) == []


def test_a_tuning_key_that_was_not_planned_is_an_escape(planned):
    def tuned(key):
        return Tuned(**HERE, phase="inference", kernel="kernels:add", key=key, by_size=False)

    assert list(escapes_of(planned, None, [tuned({"n": 1})], whole=True)) == []
    (found,) = escapes_of(planned, None, [tuned({"n": 2})], whole=True)
    assert found.words == "the manifest has no such tuning key: {'n': 2}"


def test_launches_that_nothing_asked_for_are_named_with_what_reached_them(planned):
    add, *_ = selected_launches(planned, None)

    assert list(idle_of(planned, None, [looked(add)])) == [
        Idle(kernel="kernels:add", launches=1, via=("prefill",)),
        Idle(kernel="vllm.m:conv", launches=1, via=("mixed", "prefill")),
    ]


def proof(events, planned, escapes=()):
    served = Served(gpu="GPU", start_up=1.0, laps=(Lap(kind=STEADY, tokens=1, seconds=1.0),) * 2)
    made = column("installed cache", served, events, frozenset({"kernels:add", "vllm.m:conv"}))
    return Proof(
        depth="layer", gpu="GPU", workloads=2, columns=(made,), escapes=tuple(escapes), idle=()
    )


def test_a_cache_holds_where_only_unbound_launches_are_compiled(planned):
    add, *_ = selected_launches(planned, None)
    unbound = looked(add, phase="unbound", found=False)

    assert proof([looked(add), unbound], planned).holds


@pytest.mark.parametrize("phase", ["start-up", "inference"])
def test_a_cache_does_not_hold_where_a_planned_kernel_is_compiled_or_timed(planned, phase):
    add, *_ = selected_launches(planned, None)
    timed = Benchmarked(**HERE, phase=phase, kernel=add.kernel, seconds=0.1)

    assert not proof([looked(add, phase=phase, found=False)], planned).holds
    assert not proof([timed], planned).holds


def test_a_cache_does_not_hold_where_the_plan_missed_something(planned):
    escape = Escape(kernel="vllm.m:conv", phase="inference", words="w")

    assert not proof([], planned, [escape]).holds


def taken(*, found):
    return Library(**HERE, phase="start-up", module=HOPPER, found=found, seconds=0.5)


@pytest.mark.parametrize(
    ("events", "holds"),
    [
        ([taken(found=True)], True),
        ([taken(found=True), taken(found=False)], False),
        ([], False),
    ],
    ids=["loaded", "built once", "never called for"],
)
def test_a_cache_holds_where_flashinfers_library_was_loaded_and_never_built(planned, events, holds):
    found = msgspec.structs.replace(proof(events, planned), modules=(HOPPER,))

    assert found.holds is holds
    assert found.columns[0].taken(HOPPER).loads == len([each for each in events if each.found])
