"""A real cache of four Triton entries with the manifest and the index around it."""

from __future__ import annotations

import base64
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import msgspec
import msgspec._core
import pytest

from prewarm.core.cache import (
    COMPILED_NAME,
    AutotuneRecord,
    Compiled,
    CompiledLaunch,
    HostModule,
    cache_document,
)
from prewarm.core.digest import digest_of
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
from prewarm.core.selection import Choice, Selection
from prewarm.core.toolchain import Ptxas, Toolchain
from prewarm.ship.pack import Packed, pack

KERNELS = Path(__file__).with_name("kernels.py")
LAUNCHER_KEY = base64.b32encode(b"launcher".ljust(32)).decode().rstrip("=")
RECORD_KEY = base64.b32encode(b"record".ljust(32)).decode().rstrip("=")


class Cache(NamedTuple):
    """What `prewarm compile` leaves behind."""

    manifest: Manifest
    directory: Path
    compiled: Compiled

    def with_index(self, **changes: object) -> Cache:
        """Write another index into the directory."""
        compiled = msgspec.structs.replace(self.compiled, **changes)
        (self.directory / COMPILED_NAME).write_bytes(cache_document(compiled))
        return self._replace(compiled=compiled)


def _triton_lookup(directory: Path | str) -> list[dict]:
    """Return what Triton found of the four entries, looking in `directory` by itself."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_")}
    found = subprocess.run(
        [sys.executable, str(KERNELS), str(directory)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    return [json.loads(line) for line in found.stdout.splitlines()]


def toolchain(**changes: object) -> Toolchain:
    plain = Toolchain(
        vllm="0.25.1+cu129",
        torch="2.11.0",
        cuda="12.9",
        triton="3.6.0",
        triton_key=digest_of(b"key"),
        ptxas=Ptxas(version="12.9.86", text=digest_of(b"ptxas"), chosen_by="triton"),
        python_abi="cpython-311",
        machine=platform.machine(),
        libc="glibc 2.36",
    )
    return msgspec.structs.replace(plain, **changes)


def manifest_of(tools: Toolchain) -> Manifest:
    arguments = {
        "x": Argument(type="*fp32", divisible_by_16=True),
        "y": Argument(type="*fp32"),
        "o": Argument(type="*fp32"),
        "n": Argument(type="i32"),
    }
    fixed = {**arguments, "block": Argument(type="constexpr", value=64)}
    return Manifest(
        deployment=Deployment(
            model=Model(name="a/model", revision="0" * 40, config=digest_of(b"config")),
            serve_args=("a/model", "-tp", "1"),
            target="b200",
        ),
        toolchain=tools,
        geometry={"heads": 4},
        trace=Trace(
            workloads=1, random_workloads=0, closure=0, seed=0, steps=1, gpu_blocks=(1000,)
        ),
        kernels=(
            Kernel(
                name="kernels:add",
                source=digest_of(b"add"),
                tuned_by=("n",),
                candidates=tuple(
                    Candidate(constexprs={"block": block}, num_warps=4, num_stages=3)
                    for block in (64, 128, 256)
                ),
                specializations=(
                    Specialization(
                        arguments={
                            **arguments,
                            "block": Argument(type="constexpr", by_candidate=True),
                        },
                        tuning_key={"n": 1},
                        candidates=(0, 1, 2),
                        via=("prefill",),
                    ),
                ),
            ),
            Kernel(
                name="kernels:scale",
                source=digest_of(b"scale"),
                specializations=(
                    Specialization(
                        arguments=fixed, options={"num_warps": 4}, via=("prefill", "decode")
                    ),
                ),
            ),
        ),
    )


def compiled_of(manifest: Manifest, entries: list[dict]) -> Compiled:
    keys = {
        (entry["kernel"], entry["block"]): base64.b32encode(bytes.fromhex(entry["hash"]))
        .decode()
        .rstrip("=")
        for entry in entries
    }
    return Compiled(
        manifest=manifest.digest,
        arch=100,
        toolchain=manifest.toolchain,
        launches=tuple(
            CompiledLaunch(
                launch=launch.digest,
                kernel=launch.kernel,
                key=keys[launch.kernel.partition(":")[2], launch.arguments["block"].value],
            )
            for launch in manifest.launches()
        ),
        host_modules=(
            HostModule(
                name="__triton_launcher",
                key=LAUNCHER_KEY,
                file="__triton_launcher.cpython-311-x86_64-linux-gnu.so",
            ),
        ),
    )


@pytest.fixture(scope="session")
def compiled_once(tmp_path_factory) -> Cache:
    directory = tmp_path_factory.mktemp("compiled") / "cache"
    entries = _triton_lookup(directory)
    assert [entry["hit"] for entry in entries] == [False] * 4
    manifest = manifest_of(toolchain())
    launcher = directory / LAUNCHER_KEY / "__triton_launcher.cpython-311-x86_64-linux-gnu.so"
    launcher.parent.mkdir()
    shutil.copyfile(msgspec._core.__file__, launcher)
    return Cache(manifest, directory, compiled_of(manifest, entries)).with_index()


@pytest.fixture
def cache(compiled_once, tmp_path) -> Cache:
    """A cache directory of the test's own."""
    directory = tmp_path / "cache"
    shutil.copytree(compiled_once.directory, directory)
    return compiled_once._replace(directory=directory)


@pytest.fixture
def tuned(cache) -> Cache:
    """The same with the autotune record that its one tuning key needs."""
    winner = cache.manifest.kernels[0].candidates[1]
    config = {"kwargs": winner.constexprs, "num_warps": 4, "num_ctas": 1, "num_stages": 3}
    record = cache.directory / RECORD_KEY / "add.autotune.json"
    record.parent.mkdir()
    record.write_text(json.dumps({"key": [1], "configs_timings": [[config, 0.01]]}))
    found = AutotuneRecord(kernel="kernels:add", key=RECORD_KEY, file=record.name)
    choice = Choice(kernel="kernels:add", key={"n": 1}, winner=winner, time=10.0)
    selection = Selection(gpu="NVIDIA B200", tunings=digest_of(b"tunings"), choices=(choice,))
    return cache.with_index(autotune_records=(found,), selection=selection)


@pytest.fixture
def packed(cache, tmp_path) -> tuple[Path, Packed]:
    """An image of the cache, in a layout."""
    out = tmp_path / "image"
    return out, pack(cache.manifest, cache.directory, out)


@pytest.fixture(autouse=True)
def _prewarm_in_subprocesses(root, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(root))


@pytest.fixture
def triton_lookup():
    """The function that asks Triton for the four entries."""
    return _triton_lookup


@pytest.fixture
def snapshot():
    """The function that reads a whole directory."""
    return _snapshot


def _snapshot(root: Path) -> dict[str, bytes | str]:
    """Return every file and link below `root` with what it holds."""
    return {
        str(path.relative_to(root)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture
def public_directory():
    """A directory that every user may enter and write, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o777)
        yield Path(directory)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB, and its device options to remount it with."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "prewarm-test", str(place)]
    made = subprocess.run(mount, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)
