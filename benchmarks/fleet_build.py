"""Build a fleet with and without sharing of equal launches, in one run: `… PLAN… [-j N]`.

PLAN are manifests of `prewarm plan`, one a deployment. Without sharing each is compiled by itself
into a directory of its own; with it each distinct launch is compiled once, in one shard and in
`--shards` of them, one after the other: the longest of these is what machines side by side would
wait for. All three then pack every image, and their digests must be equal. Plans are made before
and not timed. Printed: launches, wall and CPU time, and their ratios; `--json FILE` keeps them.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from prewarm.core.fleet import Part, Planned, extent
from prewarm.core.manifest_yaml import read_manifest
from prewarm.fleet import build_shard
from prewarm.make.compile import compile_manifest
from prewarm.output import Output
from prewarm.ship.gather import gather
from prewarm.ship.pack import pack


@dataclass(frozen=True)
class Run:
    """One build of every image."""

    name: str
    compiles: int
    wall: float
    """Seconds until all images are packed."""
    cpu: float
    """Seconds of all processes together."""
    longest: float
    """Seconds of the longest part that cannot be shared out further."""

    def row(self) -> str:
        """Return the run as a line of the table."""
        return (
            f"{self.name:18s} {self.compiles:5d} compiles  wall {self.wall:7.1f} s"
            f"  cpu {self.cpu:7.1f} s  longest part {self.longest:6.1f} s"
        )


Digests = dict[str, str]


def one_by_one(fleet: tuple[Planned, ...], place: Path, jobs: int) -> tuple[Digests, list[float]]:
    """Compile and pack each by itself; return the digests of the images, and seconds of each."""
    digests, parts = {}, []
    for each in fleet:
        began = time.monotonic()
        list(compile_manifest(each.manifest, place / "cache" / each.name, jobs))
        packed = pack(each.manifest, place / "cache" / each.name, place / "images" / each.name)
        digests[each.name] = packed.manifest_digest
        parts.append(time.monotonic() - began)
    return digests, parts


def shared(
    fleet: tuple[Planned, ...], place: Path, jobs: int, shards: int
) -> tuple[Digests, list[float]]:
    """Build `shards` and gather them; return each image's digest, and seconds of each shard."""
    out, parts, built = Output(), [], []
    out.verbosity = -1
    for number in range(1, shards + 1):
        began = time.monotonic()
        built.append(build_shard(out, fleet, Part(number=number, of=shards), place, jobs))
        parts.append(time.monotonic() - began)
    images = gather(built, place / "images")
    return {each.name: each.packed.manifest_digest for each in images}, parts


def measure(
    name: str, compiles: int, build: Callable[[Path], tuple[Digests, list[float]]]
) -> tuple[Run, Digests]:
    """Return what `build` took in an empty directory, and its images."""
    with tempfile.TemporaryDirectory(prefix="prewarm-bench-") as directory:
        before, began = _cpu(), time.monotonic()
        digests, parts = build(Path(directory))
        wall = time.monotonic() - began
        return Run(name, compiles, wall, _cpu() - before, max(parts)), digests


def _cpu() -> float:
    every = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in every)


def main() -> None:
    """Run all three and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plans", type=Path, nargs="+")
    parser.add_argument("-j", "--jobs", type=int, default=2)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    fleet = tuple(
        Planned(name=path.stem.lower(), manifest=read_manifest(path)) for path in asked.plans
    )
    whole = extent(fleet)
    print(
        f"{whole.deployments} deployments, {whole.launches} launches, {whole.distinct} distinct"
        f" ({whole.launches / whole.distinct:.2f}), -j {asked.jobs}"
    )
    builds = (
        ("one by one", whole.launches, lambda place: one_by_one(fleet, place, asked.jobs)),
        ("one shard", whole.distinct, lambda place: shared(fleet, place, asked.jobs, 1)),
        (
            f"{asked.shards} shards",
            whole.distinct,
            lambda place: shared(fleet, place, asked.jobs, asked.shards),
        ),
    )
    runs, images = [], []
    for build in builds:
        run, digests = measure(*build)
        print(run.row(), flush=True)
        runs.append(run)
        images.append(digests)
    if any(digests != images[0] for digests in images):
        raise SystemExit("the images differ")
    alone, one, several = runs
    print(
        f"one by one over one shard: wall {alone.wall / one.wall:.2f},"
        f" cpu {alone.cpu / one.cpu:.2f}"
    )
    print(
        f"one by one over {several.name}: wall {alone.wall / several.wall:.2f},"
        f" cpu {alone.cpu / several.cpu:.2f}; over the longest shard"
        f" {alone.wall / several.longest:.2f}"
    )
    if asked.json:
        found = {"extent": msgspec.to_builtins(whole), "runs": [asdict(run) for run in runs]}
        asked.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
