"""A manifest held against random request streams, which know nothing of how it was traced."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from prewarm.core.errors import InputError
from prewarm.core.manifest import BEFORE_SERVING, Kernel, Manifest
from prewarm.core.manifest_yaml import read_manifest, write_manifest
from prewarm.prove.closure import closure_of
from prewarm.trace.check import Streamed, serve_streams

SMALL = "model-configs/Qwen3.5-0.8B"
LARGE = "model-configs/Qwen3.5-397B-A17B-FP8"
TRITON = ("--gdn-prefill-backend", "triton")
MTP = ("--speculative-config", '{"method":"mtp","num_speculative_tokens":2}')
CACHING = ("--enable-prefix-caching", "--mamba-cache-mode")

Planned = Callable[..., Path]


@pytest.fixture(autouse=True)
def _in_the_checkout(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)


@pytest.fixture(scope="module")
def manifest(planned: Planned, root: Path) -> Manifest:
    """A small deployment, planned."""
    os.chdir(root)
    return read_manifest(planned("b200", SMALL, *TRITON))


@pytest.fixture(scope="module")
def served(manifest: Manifest) -> Streamed:
    """What a few streams ask of it."""
    return serve_streams(manifest, streams=6, seed=0, steps=40)


def _without(manifest: Manifest, kernel: str, index: int) -> Manifest:
    """Return `manifest` without one specialization of a kernel."""

    def cut(one: Kernel) -> Kernel:
        if one.name != kernel:
            return one
        left = one.specializations[:index] + one.specializations[index + 1 :]
        return msgspec.structs.replace(one, specializations=left)

    return msgspec.structs.replace(manifest, kernels=tuple(map(cut, manifest.kernels)))


def _reached_in_serving(streamed: Streamed) -> set[str]:
    return {
        kernel.name
        for engine in streamed.engines
        for kernel in engine.kernels
        for one in kernel.specializations
        if not set(one.via) <= BEFORE_SERVING
    }


def test_nothing_that_streams_ask_for_is_missing(manifest: Manifest, served: Streamed) -> None:
    """Also with another number of GPU blocks, whose launches are settled."""
    found = closure_of(manifest, served.engines, 0)

    assert found.escapes == ()
    assert found.holds
    assert len(set(found.gpu_blocks)) == 2
    assert found.streams == 6
    assert found.steps > 0
    assert found.calls > found.asked > 0


def test_a_removed_specialization_is_caught(manifest: Manifest, served: Streamed) -> None:
    """Whichever is removed of a kernel that streams reach, its launches are escapes."""
    for kernel in manifest.kernels:
        if kernel.name not in _reached_in_serving(served):
            continue
        for index in range(len(kernel.specializations)):
            shorter = _without(manifest, kernel.name, index)
            lost = {one.digest for one in manifest.launches()}
            lost -= {one.digest for one in shorter.launches()}
            whole = closure_of(manifest, served.engines, 0)
            found = closure_of(shorter, served.engines, 0)
            if any(each.kernel == kernel.name for each in whole.dead):
                continue
            assert lost
            assert not found.holds
            assert {each.kernel for each in found.escapes} == {kernel.name}
            assert all(each.words and each.first for each in found.escapes)


def test_a_kernel_that_no_stream_reaches_is_dead_weight(
    manifest: Manifest, served: Streamed
) -> None:
    """It is named with the workloads that it was planned for."""
    kernel = manifest.kernels[0]
    never = msgspec.structs.replace(
        kernel,
        name="vllm.nowhere:kernel",
        specializations=tuple(
            msgspec.structs.replace(one, via=("prefill",)) for one in kernel.specializations
        ),
    )
    padded = msgspec.structs.replace(manifest, kernels=(*manifest.kernels, never))
    found = closure_of(padded, served.engines, 0)
    dead = {each.kernel: each for each in found.dead}

    assert found.holds
    assert dead["vllm.nowhere:kernel"].via == ("prefill",)
    assert found.dead_weight > closure_of(manifest, served.engines, 0).dead_weight


def test_what_only_start_up_asks_for_stands_apart(manifest: Manifest, served: Streamed) -> None:
    """It is no dead weight: every start asks for it."""
    found = closure_of(manifest, served.engines, 0)
    dead = {each.kernel for each in found.dead}
    unasked = closure_of(
        manifest,
        [
            msgspec.structs.replace(engine, kernels=_before(engine.kernels))
            for engine in served.engines
        ],
        0,
    )

    assert found.before_serving
    assert unasked.dead_weight > 0
    assert sum(each.launches for each in unasked.before_serving) > sum(
        each.launches for each in found.before_serving
    )
    assert dead <= {each.kernel for each in unasked.dead}


def _before(kernels: tuple[Kernel, ...]) -> tuple[Kernel, ...]:
    """Return what was asked for before serving, as if nothing was served."""

    def cut(kernel: Kernel) -> Kernel:
        early = tuple(
            msgspec.structs.replace(one, via=tuple(BEFORE_SERVING.intersection(one.via)))
            for one in kernel.specializations
            if BEFORE_SERVING.intersection(one.via)
        )
        return msgspec.structs.replace(kernel, specializations=early)

    return tuple(map(cut, kernels))


def test_another_model_is_refused(manifest: Manifest) -> None:
    """A check of other dimensions would say nothing."""
    with pytest.raises(InputError, match=r"another config\.json"):
        serve_streams(manifest, streams=1, seed=0, steps=1, model="model-configs/Qwen3.5-2B")


def test_the_verb_exits_1_for_a_manifest_that_lacks_something(
    manifest: Manifest, served: Streamed, tmp_path: Path, root: Path
) -> None:
    """And says in JSON what was asked for and is not there."""
    gone = next(kernel for kernel in manifest.kernels if kernel.name in _reached_in_serving(served))
    left = tuple(kernel for kernel in manifest.kernels if kernel is not gone)
    shorter = msgspec.structs.replace(manifest, kernels=left)
    write_manifest(tmp_path / "short.yaml", shorter)
    few = ("--streams", "2", "--steps", "20")
    done = subprocess.run(
        [sys.executable, "-m", "prewarm", "check", tmp_path / "short.yaml", *few, "--json"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    found = json.loads(done.stdout)

    assert done.returncode == 1, done.stderr
    assert found["holds"] is False
    assert gone.name in {each["kernel"] for each in found["escapes"]}


@pytest.mark.soak
@pytest.mark.parametrize(
    ("target", "serve_args"),
    [
        ("b200", (LARGE, "-dp", "8", "--enable-expert-parallel", *TRITON)),
        ("h200", ("model-configs/Qwen3.5-397B-A17B", "-tp", "8", *TRITON)),
        ("h200", ("model-configs/Qwen3.5-9B", "--enforce-eager", *MTP, *TRITON)),
        ("h200", ("model-configs/Qwen3-Next-80B-A3B-Instruct", "-tp", "4", *TRITON)),
        ("h200", ("model-configs/Kimi-Linear-48B-A3B-Instruct", "-tp", "4")),
        ("h200", ("model-configs/Olmo-Hybrid-7B", *TRITON)),
        ("h200", ("model-configs/Qwen3.5-9B", *CACHING, "align", *TRITON)),
        ("h200", ("model-configs/Qwen3.5-9B", *CACHING, "all", *TRITON)),
    ],
)
def test_hundreds_of_streams_ask_for_nothing_else(
    target: str, serve_args: tuple[str, ...], planned: Planned
) -> None:
    """And next to nothing of the manifest is dead weight."""
    manifest = read_manifest(planned(target, *serve_args, closure=50))
    streamed = serve_streams(manifest, streams=200, seed=1, steps=60)
    found = closure_of(manifest, streamed.engines, 1)

    assert found.escapes == ()
    assert found.dead_weight <= 0.05
    assert found.preemptions > 0
    assert found.aborts > 0
