"""Push and pull of one large blob, prewarm's client and skopeo in turn, in one run.

Needs docker-registry and skopeo. Prints the best time of four each, the largest peak memory, and
the ratios of both; with a FILE they are kept there.

    python benchmarks/registry.py [MEGABYTES [FILE]]
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from prewarm.core.digest import canonical_json, digest_of
from prewarm.ship.image import CONFIG_TYPE, INDEX_TYPE, MANIFEST_TYPE
from prewarm.ship.layer import GZIP

ROUNDS = 4

PREWARM_PUSH = """
import sys
from pathlib import Path
from prewarm.ship.blobs import upload
from prewarm.ship.image import Descriptor
from prewarm.ship.manifests import put_manifest
from prewarm.ship.reference import parse_reference
from prewarm.ship.registry import open_repository
name, manifest, *blobs = sys.argv[1:]
with open_repository(parse_reference(name), push=True) as repository:
    for blob in map(Path, blobs):
        found = Descriptor(
            media_type="", digest=f"sha256:{blob.name}", size=blob.stat().st_size
        )
        upload(repository, found, lambda path=blob: path.open("rb"))
    put_manifest(repository, Path(manifest).read_bytes(), %r, "v1")
"""
PREWARM_PULL = """
import sys
from pathlib import Path
from prewarm.ship.blobs import download
from prewarm.ship.manifests import get_manifest
from prewarm.ship.reference import parse_reference
from prewarm.ship.registry import open_repository
name, out = sys.argv[1:]
with open_repository(parse_reference(name)) as repository:
    manifest = get_manifest(repository, "v1").manifest()
    for blob in (manifest.config, *manifest.layers):
        download(repository, blob, Path(out, blob.digest))
"""


def layout(directory: Path, megabytes: int) -> tuple[Path, list[Path]]:
    """Write an image of one random layer; return its manifest and its blobs.

    In pieces: what this process ever held would count as memory of those that it starts.
    """
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes) -> dict[str, object]:
        (blobs / digest_of(data).partition(":")[2]).write_bytes(data)
        return {"digest": digest_of(data), "size": len(data)}

    diff_id = hashlib.sha256()
    with gzip.open(blobs / "layer", "wb", compresslevel=0) as stream:
        for _ in range(megabytes):
            piece = os.urandom(1 << 20)
            diff_id.update(piece)
            stream.write(piece)
    with (blobs / "layer").open("rb") as stream:
        name = hashlib.file_digest(stream, "sha256").hexdigest()
    (blobs / "layer").rename(blobs / name)
    layer = {"digest": f"sha256:{name}", "size": (blobs / name).stat().st_size}
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{diff_id.hexdigest()}"]}
    config = put(canonical_json({"architecture": "amd64", "os": "linux", "rootfs": rootfs}))
    plain = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": CONFIG_TYPE, **config},
        "layers": [{"mediaType": GZIP, **layer}],
    }
    manifest = {"mediaType": MANIFEST_TYPE, **put(canonical_json(plain))}
    index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [manifest]}
    (directory / "index.json").write_bytes(canonical_json(index))
    (directory / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    name = str(manifest["digest"]).partition(":")[2]
    return blobs / name, [path for path in blobs.iterdir() if path.name != name]


def timed(command: Sequence[str]) -> tuple[float, int]:
    """Return the seconds that `command` takes, and its peak memory in KiB."""
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[0]} failed with {process.returncode}")
    return time.perf_counter() - begun, used.ru_maxrss


def main(megabytes: int, kept: Path | None = None) -> None:
    """Run both against a registry of their own."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
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
            rows = compare(root, found[1], megabytes)
        finally:
            server.kill()
            server.wait()
    if kept is not None:
        kept.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def compare(root: Path, host: str, megabytes: int) -> list[dict[str, object]]:
    """Print and return the time and the peak memory of each, prewarm's before skopeo's.

    Each round has images of its own: skopeo remembers where it has seen a layer.
    """
    skopeo = ["skopeo", "copy", "--insecure-policy", "--quiet"]
    plain = ["--src-tls-verify=false", "--dest-tls-verify=false"]
    best: dict[tuple[str, str], tuple[float, int]] = {}
    for number in range(ROUNDS):
        manifest, blobs = layout(root / "ours", megabytes)
        layout(root / "theirs", megabytes)
        ours, theirs = f"{host}/p/{number}", f"docker://{host}/s/{number}:v1"
        push = [PREWARM_PUSH % MANIFEST_TYPE, ours, str(manifest), *map(str, blobs)]
        commands = {
            ("push", "prewarm"): [sys.executable, "-c", *push],
            ("push", "skopeo"): [*skopeo, *plain, f"oci:{root}/theirs", theirs],
            ("pull", "prewarm"): [sys.executable, "-c", PREWARM_PULL, ours, f"{root}/p"],
            ("pull", "skopeo"): [*skopeo, *plain, theirs, f"oci:{root}/s:v1"],
        }
        for name, command in commands.items():
            seconds, memory = timed(command)
            least, most = best.get(name, (seconds, memory))
            best[name] = min(seconds, least), max(memory, most)
        for directory in ("ours", "theirs", "p", "s"):
            shutil.rmtree(root / directory)
    rows = []
    # Linux counts what its parent held before exec to a process.
    floor = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"peak memory below {floor} MiB cannot be told")
    print(f"{megabytes} MB      prewarm   skopeo    ratio     prewarm    skopeo     ratio")
    for verb in ("push", "pull"):
        (ours, our_peak), (theirs, their_peak) = (best[verb, n] for n in ("prewarm", "skopeo"))
        print(
            f"{verb:10s} {ours:6.2f} s {theirs:6.2f} s {ours / theirs:8.2f}"
            f" {our_peak >> 10:7d} MiB {their_peak >> 10:5d} MiB {our_peak / their_peak:8.2f}"
        )
        seconds, peaks = (ours, theirs), (our_peak, their_peak)
        rows.append({"verb": verb, "megabytes": megabytes, "seconds": seconds, "peak_kib": peaks})
    return rows


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300, *map(Path, sys.argv[2:]))
