"""From a real capture to tunings: real compiles, but the GPU and its nvidia-smi are fakes."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest

from prewarm.core.capture_file import read_capture, write_capture
from prewarm.core.errors import InputError
from prewarm.core.manifest_yaml import read_manifest, write_manifest
from prewarm.core.select import select
from prewarm.core.selection import selected_launches
from prewarm.core.tunings import Size
from prewarm.core.tunings_yaml import parse_tunings, render_tunings
from prewarm.trace.capture import capture
from prewarm.tune.prepare import prepare, shares_of
from prewarm.tune.tune import gpus_here, tune
from tests.conftest import ROOT
from tests.tune.conftest import IDLE

WORKER = "tests.tune.fake_worker"
SMALL = "model-configs/Qwen3.5-0.8B"
SIZES = (Size(tokens=64, sequences=1), Size(tokens=300, sequences=2, weight=2.0))
KERNEL = "chunk_local_cumsum_scalar_kernel"

replace = msgspec.structs.replace


@pytest.fixture(scope="module")
def deployment(planned, root):
    return read_manifest(planned("h100", str(root / SMALL), "--gdn-prefill-backend", "triton"))


@pytest.fixture(scope="module")
def captured(deployment, root):
    """Return real steps, cut to one kernel and its list, which compiles in seconds."""
    whole = capture(deployment, SIZES, search=3, model=str(root / SMALL))
    steps = tuple(
        replace(step, launches=tuple(each for each in step.launches if KERNEL in each.kernel))
        for step in whole.steps
    )
    kernels = tuple(kernel for kernel in whole.kernels if KERNEL in kernel.name)
    return replace(whole, steps=steps, kernels=kernels)


@pytest.fixture(scope="module")
def work(tmp_path_factory, deployment, captured):
    """Return a directory that was prepared without a GPU."""
    directory = tmp_path_factory.mktemp("work")
    write_capture(directory / "capture.json", captured)
    prepare(deployment, captured, directory / "cache", None, lambda text: None)
    return directory


def test_a_share_is_a_tuning_key_with_the_list_first_and_what_lies_beyond(captured):
    (share,) = shares_of(captured)

    assert share.listed == len(captured.kernels[0].candidates)
    assert len(share.configs) == share.listed + 3
    assert share.sized_by is not None


def test_captured_steps_survive_their_file(captured, tmp_path):
    write_capture(tmp_path / "c.json", captured)

    assert read_capture(tmp_path / "c.json") == captured


def test_what_is_measured_becomes_tunings_that_the_manifest_can_use(
    deployment, captured, work, says
):
    says(IDLE)
    gpus = gpus_here(target(deployment), ())
    told = []

    found = tune(deployment, captured, SIZES, gpus, directory=work, tell=told.append, worker=WORKER)

    (kernel,) = found.kernels
    (key,) = kernel.keys
    (run,) = found.runs
    assert key.winner == kernel.candidates[0]
    assert (found.gpu, run.driver, run.sizes) == ("NVIDIA H100 80GB HBM3", "570.86", SIZES)
    assert (run.manifest, run.serve_args) == (deployment.digest, deployment.deployment.serve_args)
    assert [clocks.memory for clocks in run.clocks] == [2619]
    assert parse_tunings(render_tunings(found), "here") == found
    assert not any(text.startswith("compiled ") for text in told), "it was prepared before"
    selected = select(deployment, found)
    assert len(selected.untuned) == 5
    launches = selected_launches(deployment, selected.selection)
    assert 0 < sum(KERNEL in launch.kernel for launch in launches) < len(kernel.candidates)


def test_another_triton_than_the_planned_one_is_refused(deployment, captured, work, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/triton").write_text("3.9.0")

    with pytest.raises(InputError, match=r"planned with Triton 3\.6\.0, here is Triton 3\.9\.0"):
        tune(deployment, captured, SIZES, ("GPU-a",), directory=tmp_path, worker=WORKER)


def target(deployment):
    from prewarm.core.target import target_named

    return target_named(deployment.deployment.target)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("-o", "t.yaml"), 4, "there is no NVIDIA GPU here"),
        (("--prepare-only",), 2, "--prepare-only needs --work DIR"),
        ((), 2, "no file to write the tunings to"),
        (("-o", "t.yaml", "--sizes", "lots"), 2, "'lots' is not a prefill size"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(arguments, code, said, deployment, tmp_path):
    write_manifest(tmp_path / "manifest.yaml", deployment)

    done = subprocess.run(
        [sys.executable, "-m", "prewarm", "tune", "manifest.yaml", *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PATH": "/nowhere", "PYTHONPATH": str(ROOT)},
    )

    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert [each.name for each in tmp_path.iterdir()] == ["manifest.yaml"]
