"""The plugin under real Triton with the driver of a virtual GPU, a process for each test."""

import re

import msgspec
import pytest

from prewarm.core.manifest import Candidate
from prewarm.core.selection import Choice, Selection
from prewarm.core.tunings import SizedBy, SizeWinner
from prewarm.serve.recording import (
    Benchmarked,
    Looked,
    Ready,
    Tuned,
    Worker,
    read_recording,
)

pytest.importorskip("triton")

NO_VLLM = "telling start-up from inference is off: ModuleNotFoundError"


def told(seen) -> list[str]:
    """Return the lines of the plugin, times left out, without the one that vLLM is not there."""
    lines = [re.sub(r"\b\d+\.\d (m?s)\b", r"_ \1", line) for line in seen["lines"]]
    assert all(line.startswith("prewarm: ") for line in lines)
    return [line.removeprefix("prewarm: ") for line in lines if NO_VLLM not in line]


def test_hits_compiles_and_benchmarks_are_counted_by_kernel_and_phase(serve, cache):
    seen = serve("everything")

    assert seen["counts"] == {
        "hits of served_kernels:convolve in start-up": 2,
        "compiles of served_kernels:outside in start-up": 1,
        "hits of served_kernels:gate in start-up": 3,
        "benchmarks of served_kernels:gate in start-up": 3,
        "compiles of served_kernels:convolve in unbound": 2,
        "hits of served_kernels:settle in inference": 1,
        "compiles of served_kernels:convolve in inference": 1,
        "compiles of served_kernels:gate in inference": 3,
        "benchmarks of served_kernels:gate in inference": 3,
    }
    assert told(seen) == [
        (
            "miss at start-up: served_kernels:gate is autotuned: the cache holds no winner for this"
            " tuning key: prewarm build --tunings FILE"
        ),
        (
            f"ready with the cache in {cache}: 5 hits, 0 compiles, 3 benchmarks (_ s);"
            " unbound (num_cache_lines=1001): 2 compiled, 0 found, in _ s;"
            " kernels outside the plan: 0 hits, 1 compile (_ s), 0 benchmarks"
        ),
        (
            "hit in inference: served_kernels:settle was in the cache, found in _ ms;"
            " vLLM's JIT monitor calls that a compilation too"
        ),
        (
            "miss in inference: served_kernels:convolve was compiled in _ s: `num_cache_lines` is"
            " 150 in the cache and 7 here: pin --num-gpu-blocks-override"
        ),
        (
            "miss in inference: served_kernels:gate is autotuned: `tuning key dtype of g` is"
            " torch.float32 in the cache and torch.bfloat16 here"
        ),
    ]


def test_a_second_start_finds_what_was_unbound_and_all_else_in_the_overlay(serve):
    serve("everything")

    second = serve("everything")

    assert not [name for name in second["counts"] if name.startswith(("compiles", "benchmarks"))]
    assert second["counts"]["hits of served_kernels:convolve in unbound"] == 2
    assert "unbound (num_cache_lines=1001): 0 compiled, 2 found" in told(second)[0]


def test_each_miss_names_what_differs_and_stops_repeating_itself(serve, cache):
    lines = told(serve("misses"))
    convolve = "miss at start-up: served_kernels:convolve was compiled in _ s:"
    pin = "here: pin --num-gpu-blocks-override"

    assert lines == [
        (
            f"{convolve} `x` is a tensor of float32 divisible by 16 in the cache and a tensor of"
            " bfloat16 divisible by 16 here"
        ),
        f"{convolve} `tokens` is int32 in the cache and int32 divisible by 16 here",
        f"{convolve} `option num_warps` is (absent) in the cache and 8 here",
        f"{convolve} `num_cache_lines` is 150 in the cache and 2 {pin}",
        f"{convolve} `num_cache_lines` is 150 in the cache and 3 {pin}",
        (
            f"{convolve} `num_cache_lines` is 150 in the cache and 4 {pin}"
            " (the next ones like this are only counted)"
        ),
        (
            f"ready with the cache in {cache}: 0 hits, 10 compiles (_ s), 0 benchmarks;"
            " kernels outside the plan: 0 hits, 0 compiles, 0 benchmarks"
        ),
        (
            "miss in inference: served_kernels:convolve was compiled in _ s: `num_cache_lines` is"
            f" 150 in the cache and 9 {pin}"
        ),
    ]


def test_an_entry_that_was_removed_is_named_and_compiled_again(serve, cache):
    seen = serve("removed")

    assert len(told(seen)) >= 2
    for kernel in ("convolve", "settle"):
        assert seen["counts"][f"compiles of served_kernels:{kernel} in start-up"] == 1
        (line,) = [line for line in told(seen) if f":{kernel} was compiled" in line]
        assert f"is not in {cache}/triton, or cannot be used" in line
        assert line.endswith(f"prewarm verify {cache} says more")


def test_off_counts_silently(serve):
    seen = serve("misses", PREWARM_ON_MISS="off")

    assert [line.partition(" ")[0] for line in told(seen)] == ["ready"]
    assert seen["counts"]["compiles of served_kernels:convolve in start-up"] == 10


def test_an_error_ends_a_miss_in_inference_and_nothing_else(serve, cache):
    seen = serve("an_error", PREWARM_ON_MISS="error")
    refusal = (
        f"MissError: inference asked for a kernel that the cache in {cache} does not hold, and"
        " PREWARM_ON_MISS=error: served_kernels"
    )

    mend = "; build the cache with the arguments of this deployment, or set PREWARM_ON_MISS=warn"

    lines = "`num_cache_lines` is 150 in the cache and 8 here: pin --num-gpu-blocks-override"
    assert seen["raised"] == [
        f"{refusal}:convolve: {lines}{mend}",
        *[f"{refusal}:gate: `tuning key H` is 4 in the cache and 8 here{mend}"] * 2,
    ]
    assert not [name for name in seen["counts"] if name.startswith("benchmarks")]
    assert seen["counts"]["compiles of served_kernels:outside in inference"] == 1


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"TARGET": "b200"}, "it was built for sm_90 (h100), and this GPU is sm_100"),
        (
            {"TRITON_DISABLE_LINE_INFO": "1"},
            "environment TRITON_DISABLE_LINE_INFO is (unset) in the cache and true here",
        ),
    ],
    ids=["another GPU", "another environment"],
)
def test_what_keeps_every_launch_from_its_entry_is_said_once(serve, environment, words):
    seen = serve("another", **environment)

    assert told(seen) == [
        (
            "miss at start-up: served_kernels:convolve was compiled in _ s: no entry of the cache"
            f" fits here: {words} (the next ones like this are only counted)"
        )
    ]
    assert seen["counts"]["compiles of served_kernels:settle in start-up"] == 1


def test_another_ptxas_is_named_with_the_way_to_mend_it(serve, built):
    path = next(built.glob("versions/*/prewarm/manifest.json"))
    toolchain = msgspec.json.decode(path.read_bytes(), type=dict)["toolchain"]
    toolchain["ptxas"] |= {"version": "1.2.3", "text": "sha256:0"}

    seen = serve("another", INDEX=msgspec.json.encode({"toolchain": toolchain}).decode())

    (line,) = [line for line in told(seen) if "ptxas" in line]
    assert re.search(r"ptxas is 1\.2\.3 in the cache and \d+\.\d+\.\d+ here: build the", line)


def test_whoever_listens_to_triton_besides_is_heard_and_hears_as_without_the_plugin(serve):
    seen = serve("listeners")

    assert seen["totals"] == [1, 2, 3, 4, 5, 6], "no event is missed or counted twice"
    assert seen["heard"] == {"before": 3, "chained": 2, "for a while": 1, "replacing": 1}


def test_an_event_of_another_shape_costs_a_line_and_no_launch(serve):
    seen = serve("strange")

    assert seen["counts"] == {"hits of served_kernels:convolve in start-up": 1}
    (line,) = told(seen)
    assert line.startswith("counting hits and compiles is off: TypeError")


def test_host_modules_that_a_c_compiler_builds_are_counted(serve):
    seen = serve("builds")

    assert seen["counts"]["builds of __triton_launcher in start-up"] == 1
    assert told(seen)[-1].endswith("; 1 host module built in _ s")


def test_a_forked_process_has_counts_of_its_own(serve):
    seen = serve("fork")
    once = {"compiles of served_kernels:convolve in start-up": 1}

    assert seen["counts"] == once
    assert seen["child"] == once


def test_a_recording_holds_what_was_asked_for_and_how_it_was_answered(serve, tmp_path):
    serve("everything", PREWARM_RECORD=tmp_path / "record")

    events = read_recording(tmp_path / "record")

    launches = [each for each in events if isinstance(each, Looked)]
    assert [
        (each.launch.kernel.partition(":")[2], each.phase, each.found)
        for each in launches
        if each.launch.kernel != "served_kernels:gate"
    ] == [
        ("convolve", "start-up", True),
        ("outside", "start-up", False),
        ("convolve", "unbound", False),
        ("convolve", "unbound", False),
        ("convolve", "start-up", True),
        ("settle", "inference", True),
        ("convolve", "inference", False),
    ]
    assert launches[0].launch.arguments["num_cache_lines"].value == 150
    assert launches[0].launch.arguments["x"].seen == "(64,) by (1,)"
    keys = [each for each in events if isinstance(each, Tuned)]
    assert [(each.kernel, each.phase, each.key, each.by_size) for each in keys] == [
        ("served_kernels:gate", phase, {"H": 4, "dtype of g": dtype}, False)
        for phase, dtype in (("start-up", "torch.float32"), ("inference", "torch.bfloat16"))
    ]
    assert sum(isinstance(each, Benchmarked) for each in events) == 6
    others = [each for each in events if isinstance(each, Worker | Ready)]
    assert [type(each) for each in others] == [Worker, Ready]
    assert others[0].gpu_blocks == 1000


def test_recorded_launches_are_those_of_the_plan(serve, cache, tmp_path):
    from prewarm.core.manifest_yaml import read_manifest

    serve("everything", PREWARM_RECORD=tmp_path / "record")
    plan = read_manifest(next(cache.glob("versions/*/prewarm/plan.yaml")))

    recorded = {
        each.launch.digest
        for each in read_recording(tmp_path / "record")
        if isinstance(each, Looked)
        and each.found
        and each.launch.kernel != "served_kernels:outside"
    }

    assert len(recorded - {launch.digest for launch in plan.launches()}) == 1, "the unbound one"
    assert len(recorded & {launch.digest for launch in plan.launches()}) == 5


def test_winners_by_size_are_taken_and_taken_down(serve, tmp_path):
    config = Candidate(constexprs={"BLOCK": 32}, num_warps=2, num_stages=3)
    choice = Choice(
        kernel="served_kernels:gate",
        key={"H": 4, "dtype of g": "torch.float32"},
        sized_by=SizedBy(tokens="T"),
        sizes=(SizeWinner(tokens=16, sequences=1, config=config),),
    )
    selection = Selection(gpu="H100", tunings="", all_candidates=True, choices=(choice,))

    seen = serve(
        "sized",
        INDEX=msgspec.json.encode({"selection": selection}).decode(),
        PREWARM_RECORD=tmp_path / "record",
    )

    assert seen["counts"]["hits of served_kernels:gate in start-up"] == 1
    assert seen["counts"]["benchmarks of served_kernels:gate in start-up"] == 3, "of H = 8"
    assert "; winners by size for 1 kernel;" in told(seen)[-1]
    keys = [each for each in read_recording(tmp_path / "record") if isinstance(each, Tuned)]
    assert [(each.key["H"], each.by_size) for each in keys] == [(4, True), (8, False)]


def test_records_that_triton_is_kept_from_reading_are_told(serve):
    first, *_ = told(serve("everything", TRITON_CACHE_AUTOTUNING="0"))

    assert first == (
        "TRITON_CACHE_AUTOTUNING=0: Triton reads no autotune records, and benchmarks what the"
        " cache has settled; unset it"
    )


def test_an_installed_cache_that_cannot_be_read_costs_explanations_and_no_start(serve, cache):
    next(cache.glob("versions/*/prewarm/manifest.json")).write_text("{}")

    seen = serve("everything")

    assert seen["counts"]["compiles of served_kernels:convolve in inference"] == 1
    assert sum("looking into the installed cache is off" in line for line in told(seen)) == 1
    assert any(line.startswith("ready without a cache:") for line in told(seen))


def test_a_plan_that_cannot_be_read_costs_explanations_and_no_start(serve, cache):
    next(cache.glob("versions/*/prewarm/plan.yaml")).unlink()

    seen = serve("everything")

    (why,) = [line for line in told(seen) if "explaining misses is off" in line]
    assert "cannot read the manifest" in why
    assert any(line.endswith("why could not be found out") for line in told(seen))
    assert any("compiling unbound launches is off" in line for line in told(seen))


def test_a_process_that_is_not_asked_to_do_anything_does_nothing(process, cache):
    seen = process("serve_kernels.py", "everything", cache)

    assert seen["registered"] == 0
    assert seen["lines"] == []


def test_what_is_wrong_with_the_environment_is_said_once_and_the_rest_goes_on(serve, tmp_path):
    seen = serve("everything", PREWARM_CACHE=tmp_path, PREWARM_ON_MISS="die")

    assert told(seen)[:2] == [
        (
            f"PREWARM_CACHE={tmp_path} holds no installed cache: prewarm install SOURCE --into"
            f" {tmp_path}; launches are only counted"
        ),
        "PREWARM_ON_MISS=die is none of warn, error, off: it is ignored",
    ]
    assert seen["counts"]["compiles of served_kernels:outside in start-up"] == 1
