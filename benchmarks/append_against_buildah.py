"""Time `prewarm append` against `buildah bud` of docker/copy.Dockerfile, in one run.

Both begin with a base and a cache in a registry and end with the image in it. buildah is timed
with an empty storage, as a build machine has it, and once more with the base pulled before;
prewarm once more into another registry, which has nothing of the base.
Needs docker-registry, skopeo and buildah, and root. Prints the median, the ratio and the peak
memory of each.

    python benchmarks/append_against_buildah.py [MEGABYTES] [--rounds N]
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from install_against_tar import make_up_a_cache

from prewarm.core.digest import canonical_json, digest_of
from prewarm.ship.image import CONFIG_TYPE, INDEX_TYPE, MANIFEST_TYPE
from prewarm.ship.layer import GZIP
from prewarm.ship.pack import pack

DOCKERFILE = Path(__file__).parent.parent / "docker" / "copy.Dockerfile"
LAYERS, FILE_SIZE = 4, 4 << 20


def make_base(layout: Path, megabytes: int) -> None:
    """Write an image of `megabytes` that gzip cannot shrink into `layout`.

    In pieces: what this process ever held would count as memory of those that it starts.
    """
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(kind: str, data: bytes) -> dict[str, object]:
        (blobs / digest_of(data).partition(":")[2]).write_bytes(data)
        return {"mediaType": kind, "digest": digest_of(data), "size": len(data)}

    layers, diff_ids = [], []
    for number in range(LAYERS):
        tar = layout / "layer.tar"
        with tarfile.open(tar, "w") as stream:
            for each in range(max(1, (megabytes << 20) // LAYERS // FILE_SIZE)):
                info = tarfile.TarInfo(f"usr/lib/{number}/{each}")
                info.size = FILE_SIZE
                stream.addfile(info, io.BytesIO(os.urandom(FILE_SIZE)))
        packed = blobs / "layer"
        with tar.open("rb") as plain, gzip.open(packed, "wb", compresslevel=1) as squeezed:
            shutil.copyfileobj(plain, squeezed, 1 << 20)
        diff_ids.append(digest_of_file(tar))
        digest = digest_of_file(packed)
        layers.append({"mediaType": GZIP, "digest": digest, "size": packed.stat().st_size})
        packed.rename(blobs / digest.partition(":")[2])
        tar.unlink()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["PATH=/usr/bin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": put(CONFIG_TYPE, canonical_json(config)),
        "layers": layers,
    }
    named = put(MANIFEST_TYPE, canonical_json(manifest))
    index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [named]}
    (layout / "index.json").write_bytes(canonical_json(index))
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')


def digest_of_file(path: Path) -> str:
    """Return the digest of the file at `path`."""
    with path.open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"


def timed(commands: Sequence[Sequence[str]], environment: dict[str, str]) -> tuple[float, int]:
    """Return the seconds that `commands` take one after another, and their peak memory in KiB."""
    begun, peak = time.perf_counter(), 0
    for command in commands:
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        assert process.stderr is not None
        said = process.stderr.read()
        process.stderr.close()
        # Of the process and of those that it waited for.
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)}: {said.decode(errors='replace')}")
        peak = max(peak, used.ru_maxrss)
    return time.perf_counter() - begun, peak


def engine(root: Path) -> dict[str, str]:
    """Return the environment of a buildah with an empty storage of its own below `root`."""
    root.mkdir()
    (root / "registries.conf").write_text("unqualified-search-registries = []\n")
    (root / "storage.conf").write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{root}/root"\nrunroot = "{root}/run"\n'
    )
    return {
        **os.environ,
        "HOME": str(root),
        "TMPDIR": str(root),
        "CONTAINERS_REGISTRIES_CONF": str(root / "registries.conf"),
        "CONTAINERS_STORAGE_CONF": str(root / "storage.conf"),
    }


def build_commands(host: str, to: str) -> list[list[str]]:
    """Return the commands that build and push the image with buildah."""
    plain = "--tls-verify=false"
    arguments = [f"--build-arg=VLLM_IMAGE={host}/base:1", f"--build-arg=CACHE={host}/caches:1"]
    build = ["buildah", "bud", "-q", "--isolation", "chroot", plain, *arguments, "-t", to]
    return [
        [*build, "-f", str(DOCKERFILE), str(DOCKERFILE.parent)],
        ["buildah", "push", "-q", plain, to, f"docker://{to}"],
    ]


def compare(root: Path, host: str, megabytes: int, rounds: int) -> None:
    """Print how long each takes."""
    make_base(root / "base", megabytes)
    cache = root / "compiled"
    cache.mkdir()
    pack(make_up_a_cache(cache), cache, root / "cache", "/opt/prewarm")
    prewarm = [sys.executable, "-m", "prewarm"]
    copy = ["skopeo", "copy", "--insecure-policy", "-q", "--dest-tls-verify=false"]
    setup = [
        [*copy, f"oci:{root}/base", f"docker://{host}/base:1"],
        [*prewarm, "push", f"{root}/cache", f"{host}/caches:1", "-q"],
    ]
    timed(setup, dict(os.environ))
    shutil.rmtree(root / "base")
    found: dict[str, list[tuple[float, int]]] = {}
    for number in range(rounds):
        append = [*prewarm, "append", f"{host}/base:1", f"{host}/caches:1", "--to"]
        own = engine(root / "engine")
        runs = {
            "prewarm append": ([[*append, f"{host}/prewarm-{number}:1"]], dict(os.environ)),
            "buildah, empty storage": (build_commands(host, f"{host}/cold-{number}:1"), own),
            "buildah, base pulled before": (
                build_commands(host, f"{host}/warm-{number}:1"),
                own,
            ),
        }
        for name, (commands, environment) in runs.items():
            if name.endswith("before"):
                timed([["buildah", "rmi", f"{host}/cold-{number}:1"]], environment)
            found.setdefault(name, []).append(timed(commands, environment))
        with registry(root / "other") as other:
            passed_on = ([*append, f"{other}/made:1"],)
            taken = timed(passed_on, dict(os.environ))
        found.setdefault("prewarm append, into another registry", []).append(taken)
        subprocess.run(["buildah", "rmi", "-a", "-f"], env=own, check=False, capture_output=True)
        shutil.rmtree(root / "engine", ignore_errors=True)
    ours = statistics.median(seconds for seconds, _ in found["prewarm append"])
    print(f"base of {megabytes} MB in {LAYERS} layers, median of {rounds}")
    for name, taken in found.items():
        seconds = statistics.median(each for each, _ in taken)
        memory = max(peak for _, peak in taken) >> 10
        print(f"{name}: {seconds:.2f} s, {memory} MiB; append takes {ours / seconds:.3f} of it")


@contextlib.contextmanager
def registry(root: Path) -> Iterator[str]:
    """Yield the address of a registry that keeps its blobs below `root`."""
    root.mkdir()
    settings = {
        "version": "0.1",
        "log": {"accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": f"{root}/storage"}},
        "http": {"addr": "127.0.0.1:0"},
    }
    (root / "registry.yml").write_text(json.dumps(settings))
    with (root / "log").open("w") as log:
        command = ["docker-registry", "serve", f"{root}/registry.yml"]
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        while not (found := re.search(r"listening on ([0-9.:]+)", (root / "log").read_text())):
            time.sleep(0.05)
        yield found[1]
    finally:
        server.kill()
        server.wait()
        shutil.rmtree(root)


def main(megabytes: int, rounds: int) -> None:
    """Run all of it against a registry of its own."""
    with tempfile.TemporaryDirectory() as name, registry(Path(name, "registry")) as host:
        compare(Path(name), host, megabytes, rounds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("megabytes", nargs="?", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    main(asked.megabytes, asked.rounds)
