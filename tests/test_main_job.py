"""The main job on the real input: a B200 cache of Qwen3.5-397B-A17B-FP8, made without a GPU."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prewarm.core.files import locked
from prewarm.core.manifest import Manifest
from prewarm.core.manifest_yaml import read_manifest
from prewarm.make.compile import compile_manifest
from prewarm.make.lookup import look_up
from prewarm.ship.install import install
from prewarm.ship.pack import pack
from prewarm.ship.verify import verify_directory

MODEL = "model-configs/Qwen3.5-397B-A17B-FP8"
SERVE_ARGS = (MODEL, "-dp", "8", "--enable-expert-parallel", "--gdn-prefill-backend", "triton")
WORKER = Path(__file__).parent / "make" / "serve_sample.py"
SM_100A = 100
MOST_LAYER_BYTES = 3_500_000


@pytest.fixture(scope="session")
def job(
    planned: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory, root: Path
) -> tuple[Manifest, Path, int]:
    """Return the manifest, the installed cache directory and the layer's size, made once a run."""
    os.chdir(root)
    plan = planned("b200", *SERVE_ARGS)
    manifest = read_manifest(plan)
    shared = plan.parent / "main job"
    shared.mkdir(exist_ok=True)
    with locked(shared / "lock"):
        done = shared / "layer-size"
        if not done.exists():
            for _ in compile_manifest(manifest, shared / "compiled", jobs=2):
                pass
            packed = pack(manifest, shared / "compiled", shared / "image")
            install(shared / "image", shared / "ein Verzeichnis für Pods")
            done.write_text(str(packed.sizes.layer))
    return manifest, shared / "ein Verzeichnis für Pods", int(done.read_text())


def test_every_cubin_is_for_sm_100a(job: tuple[Manifest, Path, int]) -> None:
    """As the ELF header says it: ABI 8, the architecture in bits 8 to 15 of its flags."""
    manifest, installed, _ = job
    cubins = list((installed / "triton").glob("*/*.cubin"))
    bound = [launch for launch in manifest.launches() if not launch.unbound]

    assert len(cubins) == len(bound)
    for cubin in cubins:
        header = cubin.read_bytes()[:64]
        (flags,) = struct.unpack_from("<I", header, 48)
        assert (header[:4], header[8], flags >> 8 & 0xFF) == (b"\x7fELF", 8, SM_100A)


def test_every_bound_launch_is_a_hit_where_it_is_installed(job: tuple[Manifest, Path, int]) -> None:
    """Triton's own lookup, in a process that resolves its toolchain as serving does."""
    manifest, installed, _ = job

    found = look_up(manifest, installed / "triton")

    bound = {launch.digest for launch in manifest.launches() if not launch.unbound}
    assert found.misses == ()
    assert {answer.launch for answer in found.answers} == bound


@pytest.fixture
def read_only(job: tuple[Manifest, Path, int]) -> Iterator[Path]:
    """Yield the installed cache directory, not writable for anybody."""
    entries = job[1] / "triton"
    directories = [entries.resolve(), *entries.resolve().iterdir()]
    for directory in directories:
        directory.chmod(0o555)
    yield entries
    for directory in directories:
        directory.chmod(0o775)
    (entries / "written").unlink(missing_ok=True)  # by a worker that is root


def test_a_worker_without_a_compiler_finds_all_on_a_read_only_directory(
    job: tuple[Manifest, Path, int], planned: Callable[..., Path], read_only: Path, tmp_path: Path
) -> None:
    """Real launcher classes, real cache manager: hits only, nothing built."""
    if ptxas := shutil.which("ptxas"):
        (tmp_path / "ptxas").symlink_to(ptxas)
    bound = sum(not launch.unbound for launch in job[0].launches())

    done = subprocess.run(
        [sys.executable, WORKER, planned("b200", *SERVE_ARGS)],
        check=False,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "TRITON_CACHE_DIR": str(read_only),
            "PATH": str(tmp_path),
            "CC": "/nonexistent/cc",
        },
    )

    assert done.returncode == 0, done.stderr[-3000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    del counts["writable"]  # root may write anywhere; tests/make/ drops that capability
    assert counts == {"hits": bound, "compiles": 0, "builds": 0, "launchers": bound}


def test_what_was_installed_is_sound(job: tuple[Manifest, Path, int]) -> None:
    """And small enough to be a layer of its own."""
    _, installed, layer = job

    assert verify_directory(installed) == ()
    assert layer <= MOST_LAYER_BYTES
