"""What every test may use, and the one place that decides which machines can run it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from prewarm.core.digest import digest_of
from prewarm.core.files import locked
from prewarm.core.manifest import (
    Argument,
    Candidate,
    Deployment,
    Kernel,
    Manifest,
    Model,
    Specialization,
    Trace,
)
from prewarm.core.manifest_yaml import write_manifest
from prewarm.core.target import target_named
from prewarm.core.toolchain import Ptxas, Toolchain
from prewarm.core.tunings import (
    Clocks,
    KernelTunings,
    KeyTuning,
    Measured,
    Run,
    Size,
    SizedBy,
    SizeWinner,
    Tunings,
)
from prewarm.trace.plan import plan

ROOT = Path(__file__).parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests that need a GPU where the driver shows none."""
    if any(Path("/dev").glob("nvidia[0-9]*")):
        return
    skip = pytest.mark.skip(reason="no NVIDIA GPU on this machine")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def model_configs() -> Path:
    """Return the directory of public model configs."""
    return ROOT / "model-configs"


@pytest.fixture
def manifest() -> Manifest:
    """Return a manifest of one autotuned kernel."""
    return Manifest(
        deployment=Deployment(
            model=Model(name="a/model", revision="1" * 40, config=digest_of(b"config")),
            serve_args=("a/model", "-tp", "1"),
            target="b200",
        ),
        toolchain=Toolchain(
            vllm="0.25.1",
            torch="2.11.0",
            cuda="13.0",
            triton="3.6.0",
            triton_key=digest_of(b"key"),
            ptxas=Ptxas(version="12.9.86", text=digest_of(b"ptxas"), chosen_by="triton"),
            python_abi="cpython-311",
            machine="x86_64",
            libc="glibc 2.36",
        ),
        geometry={"heads": 4},
        trace=Trace(
            workloads=1, random_workloads=0, closure=0, seed=0, steps=1, gpu_blocks=(1000,)
        ),
        kernels=(
            Kernel(
                name="kernels:add",
                source=digest_of(b"add"),
                tuned_by=("n",),
                candidates=(
                    Candidate(constexprs={"B": 64}, num_warps=4, num_stages=3),
                    Candidate(constexprs={"B": 128}, num_warps=8, num_stages=2),
                ),
                specializations=(
                    Specialization(
                        arguments={
                            "x": Argument(type="*fp32", divisible_by_16=True),
                            "n": Argument(type="i32"),
                            "B": Argument(type="constexpr", by_candidate=True),
                        },
                        tuning_key={"n": 1},
                        candidates=(0, 1),
                        via=("prefill",),
                    ),
                ),
            ),
        ),
    )


@pytest.fixture
def changed_manifest(manifest: Manifest) -> Manifest:
    """Return the manifest of another tensor parallelism."""
    deployment = msgspec.structs.replace(manifest.deployment, serve_args=("a/model", "-tp", "8"))
    return msgspec.structs.replace(manifest, deployment=deployment, geometry={"heads": 8})


@pytest.fixture
def tunings(manifest: Manifest) -> Tunings:
    """Return tunings of the manifest's one kernel: the winner is beyond its list."""
    (kernel,) = manifest.kernels
    beyond = Candidate(constexprs={"B": 256}, num_warps=8, num_stages=3)
    small, large = kernel.candidates
    return Tunings(
        gpu="NVIDIA B200",
        arch=100,
        triton="3.6.0",
        runs=(
            Run(
                model="a/model",
                serve_args=("a/model", "-tp", "1"),
                manifest=manifest.digest,
                date="2026-11-23T14:02:00Z",
                driver="580.65.06",
                clocks=(
                    Clocks(sm=(1755, 1980), memory=2619, temperature=(41, 66), power_limit=700.0),
                ),
                sizes=(
                    Size(tokens=64, sequences=1, weight=0.0),
                    Size(tokens=8192, sequences=1, weight=2.0),
                    Size(tokens=8192, sequences=8),
                ),
                objective="the fastest",
                noise=0.008,
                seconds=812.5,
            ),
        ),
        kernels=(
            KernelTunings(
                name=kernel.name,
                source=kernel.source,
                candidates=kernel.candidates,
                keys=(
                    KeyTuning(
                        key={"n": 1},
                        run=0,
                        shared={"V": 128},
                        winner=beyond,
                        confirmed=True,
                        score=1.0033,
                        reference=small,
                        gain=1.2164,
                        noise=(0.02, 0.005, 0.006),
                        sized_by=SizedBy(tokens="n"),
                        sizes=(
                            SizeWinner(tokens=64, sequences=1, config=small),
                            SizeWinner(tokens=8192, sequences=1, config=beyond),
                            SizeWinner(tokens=8192, sequences=8, config=large),
                        ),
                        measured=(
                            Measured(times=(3.2, 120.0, 121.0), rounds=18, config=small),
                            Measured(times=(3.6, 110.0, 100.0), rounds=18, config=large),
                            Measured(
                                times=(3.5, 100.0, 101.0), rounds=18, config=beyond, listed=False
                            ),
                            Measured(
                                config=Candidate(constexprs={"B": 512}, num_warps=8, num_stages=3),
                                listed=False,
                                failed="out of shared memory",
                            ),
                        ),
                    ),
                ),
            ),
        ),
    )


@pytest.fixture(scope="session")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function from target and serve arguments to the manifest's file, traced once.

    A trace takes most of a minute, so the test processes of one run share it.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def plan_once(target: str, *serve_args: str, closure: int = 0) -> Path:
        key = hashlib.sha256(repr((target, serve_args, closure)).encode()).hexdigest()[:16]
        out = shared / f"plan-{key}.yaml"
        with locked(shared / f"plan-{key}.lock"):
            if not out.exists():
                found = plan(serve_args, target_named(target), closure=closure)
                write_manifest(out, found)
        return out

    return plan_once
