"""FlashInfer beside Triton: what a worker's times become; the GPU is a fake, the library real."""

from __future__ import annotations

import msgspec
import pytest

from prewarm.core.errors import InputError, TuneError
from prewarm.core.flashinfer import HOPPER, RECORD_NAME, BuiltModule, PrefillCall
from prewarm.core.target import target_named
from prewarm.core.tunings import Prefill, Run, Size, faster_backends
from prewarm.tune.message import Rival, Task
from prewarm.tune.prefills import prefills, rival_of, state_shape

WORKER = "tests.tune.fake_worker"
SIZES = (Size(tokens=64, sequences=1), Size(tokens=2048, sequences=1))
CALL = PrefillCall(
    dtype="bf16",
    state_dtype="fp32",
    query_heads=2,
    value_heads=8,
    head_dim=128,
    gate=True,
    beta=True,
    initial_state=True,
    final_state=True,
    checkpoints=False,
)
BUILT = BuiltModule(
    module=HOPPER,
    arch="sm_90a",
    flashinfer="0.6.13",
    tvm_ffi="0.1.9",
    compiler="nvcc 13.0.88",
    cuda="13.0",
    machine="x86_64",
    libc="glibc 2.36",
    calls=(CALL,),
    libraries=(),
)

replace = msgspec.structs.replace


@pytest.fixture
def deployment(manifest):
    geometry = {**manifest.geometry, "ssm_state": "float32 8x128x128"}
    return replace(
        manifest, geometry=geometry, deployment=replace(manifest.deployment, target="h100")
    )


@pytest.fixture
def write(tmp_path):
    def write_built(built):
        plain = {"schema": built.schema, **msgspec.to_builtins(built)}
        (tmp_path / RECORD_NAME).write_bytes(msgspec.json.encode(plain))
        return tmp_path

    return write_built


def test_a_rival_calls_flashinfer_as_the_deployment_does(deployment, write):
    kept = replace(CALL, checkpoints=True)

    found = rival_of(write(replace(BUILT, calls=(kept, CALL))), deployment)

    assert found.call == CALL
    assert state_shape(deployment) == (8, 128)


@pytest.mark.parametrize(
    ("built", "said"),
    [
        (replace(BUILT, arch="sm_100a"), "was built for sm_100a, the manifest for sm_90a"),
        (replace(BUILT, calls=()), "does not say how FlashInfer is called"),
        (
            replace(BUILT, calls=(replace(CALL, value_heads=64),)),
            "was built for 64 value heads, the manifest has 8",
        ),
    ],
)
def test_what_was_built_for_something_else_is_refused(built, said, deployment, write):
    with pytest.raises(InputError, match=said):
        rival_of(write(built), deployment)


def task(directory, deployment, gpu="GPU-a"):
    return Task(
        gpu=gpu,
        target=target_named("h100"),
        toolchain=deployment.toolchain,
        capture="",
        cache_dir=str(directory),
        shares=(),
        sizes=SIZES,
        rival=Rival(directory=str(directory), call=CALL, winners=(), references=()),
    )


def test_times_become_prefills_with_what_each_costs_cold(deployment, write):
    found = prefills(task(write(BUILT), deployment), WORKER)

    assert [(each.backend, each.times) for each in found] == [
        ("flashinfer", (10.0, 20.0)),
        ("triton", (20.0, 20.2)),
        ("triton", (40.0, 40.0)),
    ]
    assert found[0].how == "FlashInfer 0.6.13, bf16_g1b1a1i1c0"
    assert found[0].cold == (
        "without a library, 64 instances: about 97 core-minutes, 6.6 GiB of memory a job; with it,"
        " 0.07 s in its first call here"
    )
    assert all(each.host == (100.0, 100.0) for each in found)


def test_a_worker_that_dies_is_an_error_with_its_last_words(deployment, write):
    directory = write(BUILT)
    (directory / "silent").write_text("GPU-a\n")

    with pytest.raises(TuneError, match="no such device"):
        prefills(task(directory, deployment), WORKER)


def test_the_faster_backend_is_told_size_by_size_and_equal_within_what_they_vary():
    def prefill(backend, *times):
        spread = (0.02,) * len(times)
        return Prefill(backend=backend, how="", times=times, spread=spread, host=times, cold="")

    run = Run(
        model="",
        serve_args=(),
        manifest="",
        date="",
        driver="",
        clocks=(),
        sizes=(*SIZES, Size(tokens=4096, sequences=1)),
        objective="",
        noise=0.0,
        seconds=1.0,
        prefills=(
            prefill("flashinfer", 10.0, 20.0, 30.0),
            prefill("triton", 20.0, 20.7, 25.0),
            prefill("triton", 40.0, 19.9, 40.0),
        ),
    )

    assert faster_backends(run) == ("flashinfer", None, "triton")
