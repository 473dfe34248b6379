"""The whole way without a GPU: plan, compile, pack, install, then serve with vLLM's own engine.

The engine runs on a virtual GPU with the plugin loaded by vLLM. Kernels are looked up and
compiled by Triton itself; what is launched does nothing.
"""

import json
import shutil

import pytest

from prewarm.core.cache import ENTRIES
from prewarm.core.manifest_yaml import read_manifest
from prewarm.make.compile import compile_manifest
from prewarm.serve.counts import INFERENCE, UNBOUND
from prewarm.serve.recording import Looked, Ready, Worker, read_recording
from prewarm.ship.install import install
from prewarm.ship.pack import pack

SMALL = "model-configs/Qwen3.5-0.8B"
ARGS = (SMALL, "--enforce-eager")
PROMPTS = [[5, 70], [2000, 1, 3], [8192]]
"""Prefill of one and of several, mixed with decodes, and a full step."""


@pytest.fixture(scope="module")
def plan(planned, root):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        return read_manifest(planned("h100", *ARGS))


@pytest.fixture(scope="module")
def deployed(plan, tmp_path_factory):
    """Return the directory of an install, made without a GPU."""
    scratch = tmp_path_factory.mktemp("deployed")
    list(compile_manifest(plan, scratch / "compiled", jobs=2))
    pack(plan, scratch / "compiled", scratch / "image")
    install(scratch / "image", scratch / "prewarm")
    return scratch / "prewarm"


@pytest.fixture(scope="module")
def first(process, deployed, tmp_path_factory):
    """Return what a first start and a few requests show, its overlay and its recording."""
    scratch = tmp_path_factory.mktemp("first")
    seen = process(
        "serve_engine.py",
        "h100",
        json.dumps(PROMPTS),
        *ARGS,
        TRITON_CACHE_DIR=deployed / "triton",
        PREWARM_OVERLAY=scratch / "overlay",
        PREWARM_RECORD=scratch / "record",
    )
    assert seen["error"] is None
    return {**seen, "overlay": scratch / "overlay", "events": read_recording(scratch / "record")}


def lines_of(seen) -> list[str]:
    """Return the plugin's lines in vLLM's log."""
    found = (line.partition("prewarm: ") for line in seen["log"].splitlines())
    return [line for _, mark, line in found if mark]


def metrics(page, name) -> dict[str, float]:
    """Return the values of the metric `name` by kernel and phase, zeros left out."""
    values = {}
    for line in page.splitlines():
        if line.startswith(f"{name}{{"):
            labels, _, value = line.partition("{")[2].rpartition("} ")
            named = dict(each.split("=", 1) for each in labels.split(","))
            values[named["kernel"].strip('"'), named["phase"].strip('"')] = float(value)
    return values


def test_a_first_start_compiles_what_is_unbound_and_inference_nothing(first, plan):
    _, page = first["pages"]
    compiled = metrics(page, "prewarm_triton_compiles_total")
    unbound = [launch for launch in plan.launches() if launch.unbound]

    assert unbound
    assert {phase for _, phase in compiled} == {UNBOUND}
    assert sum(compiled.values()) == len(unbound)
    assert not metrics(page, "prewarm_triton_benchmarks_total")
    (ready,) = [line for line in lines_of(first) if line.startswith("ready")]
    assert f"unbound (num_cache_lines={first['blocks']}): {len(unbound)} compiled, 0 found" in ready
    assert " 0 compiles, 0 benchmarks" in ready
    assert not [line for line in lines_of(first) if line.startswith("miss")]


def test_hits_are_told_apart_by_phase_in_the_server_s_own_metrics(first):
    at_start, at_end = (metrics(page, "prewarm_triton_hits_total") for page in first["pages"])

    assert not [phase for _, phase in at_start if phase == INFERENCE]
    late = {kernel: value for (kernel, phase), value in at_end.items() if phase == INFERENCE}
    launches = [each for each in first["events"] if isinstance(each, Looked)]
    assert sum(late.values()) == sum(each.phase == INFERENCE for each in launches) > 0


def test_vllm_s_jit_monitor_and_the_plugin_see_the_same_lookups_in_inference(first):
    """The monitor calls a hit a compilation; the plugin says what it was."""
    late = {
        each.launch.kernel
        for each in first["events"]
        if isinstance(each, Looked) and each.phase == INFERENCE
    }

    warned = [line for line in first["log"].splitlines() if "JIT compilation during" in line]
    assert len(warned) == len(late)
    for kernel in late:
        assert any(kernel.partition(":")[2] in line for line in warned)
        assert any(line.startswith(f"hit in inference: {kernel}") for line in lines_of(first))


def test_what_the_engine_asked_for_is_what_was_planned(first, plan):
    """Both ways: nothing else was asked for, and no kernel was planned in vain."""
    planned = {launch.digest: launch for launch in plan.launches()}
    asked = {
        each.launch.digest: each.launch
        for each in first["events"]
        if isinstance(each, Looked) and each.phase != UNBOUND
    }
    unbound = {launch.kernel for launch in planned.values() if launch.unbound}

    beyond = [launch for digest, launch in asked.items() if digest not in planned]
    assert {launch.kernel for launch in beyond} <= unbound
    values = {launch.arguments["num_cache_lines"].value for launch in beyond}
    assert values == {first["blocks"]}
    assert {launch.kernel for launch in asked.values()} == {k.name for k in plan.kernels}
    workers = [each for each in first["events"] if isinstance(each, Worker | Ready)]
    assert [type(each) for each in workers] == [Worker, Ready]
    assert workers[0].gpu_blocks == first["blocks"]


def test_another_number_of_blocks_and_a_hole_in_the_cache_where_a_miss_is_an_error(
    process, deployed, first, tmp_path
):
    """With several API servers, whose metrics come from another registry."""
    late = next(
        each for each in first["events"] if isinstance(each, Looked) and each.phase == INFERENCE
    )
    holed = shutil.copytree(deployed, tmp_path / "prewarm", symlinks=True)
    shutil.rmtree(next(holed.glob(f"versions/*/{ENTRIES}/{late.key}")))

    seen = process(
        "serve_engine.py",
        "h100",
        json.dumps(PROMPTS),
        *ARGS,
        "--num-gpu-blocks-override",
        "5000",
        PREWARM_CACHE=holed,
        PREWARM_OVERLAY=tmp_path / "overlay",
        PREWARM_ON_MISS="error",
        PROMETHEUS_MULTIPROC_DIR=tmp_path,
    )

    assert seen["error"].startswith("MissError: inference asked for a kernel that the cache in")
    assert f"{late.launch.kernel}: its entry {late.key} is not in {holed}/triton" in seen["error"]
    compiled = metrics(seen["pages"][1], "prewarm_triton_compiles_total")
    assert {phase for _, phase in compiled} == {UNBOUND, INFERENCE}
    assert compiled[late.launch.kernel, INFERENCE] == 1
    assert any("unbound (num_cache_lines=5000)" in line for line in lines_of(seen))
