"""Time `install` of a layer in this process against `tar -xf` of the same layer.

    python benchmarks/install_against_tar.py [LAYOUT] [--rounds N] [--in DIR]

Without LAYOUT a layer of the size of all candidates of the largest deployment is made up:
97 entries, 13 launchers. Both work on the compressed layer, in turns, into new directories.
Peak memory is that of processes of their own: `prewarm install`, `tar`, and a bare Python.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from prewarm.core.cache import (
    COMPILED_NAME,
    Compiled,
    CompiledLaunch,
    HostModule,
    cache_document,
)
from prewarm.core.digest import digest_of
from prewarm.core.manifest import Deployment, Manifest, Model, Trace
from prewarm.core.toolchain import Ptxas, Toolchain
from prewarm.ship.install import install
from prewarm.ship.layout import read_index
from prewarm.ship.pack import pack

ENTRIES, ENTRY_SIZE, LAUNCHERS, LAUNCHER_SIZE = 97, 122_000, 13, 24_000


def bytes_like_a_cubin(seed: int, size: int) -> bytes:
    """Return `size` bytes that gzip shrinks to about a quarter."""
    draw = random.Random(seed)  # noqa: S311 (not for secrets)
    words = [draw.randbytes(8) for _ in range(4000)]
    return b"".join(draw.choices(words, k=size // 8))


def make_up_a_cache(directory: Path) -> Manifest:
    """Fill `directory` as `compile` would; return the manifest to pack it with."""
    toolchain = Toolchain(
        vllm="0",
        torch="0",
        cuda="0",
        triton="3.6.0",
        triton_key="",
        ptxas=Ptxas(version="0", text="", chosen_by="triton"),
        python_abi="cpython-311",
        machine=platform.machine(),
        libc="",
    )
    manifest = Manifest(
        deployment=Deployment(model=Model(name="none", config=""), serve_args=(), target="b200"),
        toolchain=toolchain,
        geometry={},
        trace=Trace(workloads=0, random_workloads=0, closure=0, seed=0, steps=0, gpu_blocks=()),
        kernels=(),
    )
    launches, modules = [], []
    for number in range(ENTRIES + LAUNCHERS):
        name = hashlib.sha256(str(number).encode()).digest()
        key = base64.b32encode(name).decode().rstrip("=")
        (directory / key).mkdir()
        if number >= ENTRIES:
            module = HostModule(name="__triton_launcher", key=key, file="__triton_launcher.so")
            modules.append(module)
            data = bytes_like_a_cubin(number, LAUNCHER_SIZE)
            (directory / key / module.file).write_bytes(data)
            continue
        target = {"backend": "cuda", "arch": 100, "warp_size": 32}
        metadata = {"hash": name.hex(), "target": target, "padding": "x" * 1000}
        (directory / key / "kernel.json").write_text(json.dumps(metadata))
        (directory / key / "__grp__kernel.json").write_text("{}")
        (directory / key / "kernel.cubin").write_bytes(bytes_like_a_cubin(number, ENTRY_SIZE))
        digest = digest_of(str(number).encode())
        launches.append(CompiledLaunch(launch=digest, kernel="none", key=key))
    compiled = Compiled(
        manifest=manifest.digest,
        arch=100,
        toolchain=toolchain,
        launches=tuple(launches),
        host_modules=tuple(modules),
    )
    (directory / COMPILED_NAME).write_bytes(cache_document(compiled))
    return manifest


def layer_of(layout: Path) -> Path:
    """Return the compressed layer in `layout`."""
    blobs = layout / "blobs" / "sha256"
    manifest = blobs / read_index(layout).manifests[0].digest.partition(":")[2]
    return blobs / json.loads(manifest.read_bytes())["layers"][0]["digest"].partition(":")[2]


def timed(work: Callable[[Path], object], within: Path) -> float:
    """Return the seconds that `work` needs with a new directory below `within`."""
    with tempfile.TemporaryDirectory(dir=within) as directory:
        started = time.perf_counter()
        work(Path(directory))
        return time.perf_counter() - started


MEASURE = (
    "import resource, subprocess, sys;"
    "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL);"
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
)
"""A small process between: a child counts what its parent had when it was forked."""


def peak_memory(argv: Sequence[str | Path]) -> float:
    """Return the most memory, in MiB, that the process `argv` has had at one time."""
    found = subprocess.run(
        [sys.executable, "-IS", "-c", MEASURE, *argv], capture_output=True, text=True, check=True
    )
    return int(found.stdout) / 1024


def report_memory(layout: Path, layer: Path, tar: str, within: Path) -> None:
    """Print the peak memory of both, of a Python that does nothing, and the least to be seen."""
    python = sys.executable
    with tempfile.TemporaryDirectory(dir=within) as ours, tempfile.TemporaryDirectory() as theirs:
        each = {
            "install": [python, "-m", "prewarm", "install", layout, "--into", ours],
            "tar -xzf": [tar, "-xzf", layer, "-C", theirs],
            "python, idle": [python, "-c", ""],
            "nothing": ["true"],
        }
        for name, argv in each.items():
            print(f"{name:<16}{peak_memory(argv):8.1f} MiB at most")


def report(name: str, seconds: list[float]) -> None:
    """Print the least, the middle and the most of `seconds`."""
    low, middle, high = min(seconds), statistics.median(seconds), max(seconds)
    print(f"{name:<16}{low * 1e3:8.1f} ms {middle * 1e3:8.1f} ms {high * 1e3:8.1f} ms")


def main() -> int:
    """Run the rounds and print min, median and max of both, and of their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("layout", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--in", dest="within", type=Path, help="where to install (default: TMPDIR)")
    options = parser.parse_args()
    tar = shutil.which("tar")
    if tar is None:
        print("tar is not installed", file=sys.stderr)
        return 4
    with tempfile.TemporaryDirectory(dir=options.within) as directory:
        work = Path(directory)
        layout = options.layout
        if layout is None:
            (work / "cache").mkdir()
            layout = work / "image"
            packed = pack(make_up_a_cache(work / "cache"), work / "cache", layout)
            print(f"{packed.files} files, {packed.sizes}")
        layer = layer_of(layout)

        def run_tar(into: Path) -> None:
            subprocess.run([tar, "-xzf", layer, "-C", into], check=True)

        ours, theirs = [], []
        for number in range(options.rounds + 1):
            pair = [lambda into: install(layout, into), run_tar]
            seconds = {w: timed(w, work) for w in (pair if number % 2 else pair[::-1])}
            if number:  # the first round warms the page cache
                ours.append(seconds[pair[0]])
                theirs.append(seconds[pair[1]])
        report_memory(layout, layer, tar, work)
    print(f"{'':<16}{'min':>11} {'median':>11} {'max':>11}")
    report("install", ours)
    report("tar -xzf", theirs)
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    middle = statistics.median(ratios)
    print(f"ratio by round  {ratios[0]:8.2f}    {middle:8.2f}    {ratios[-1]:8.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
