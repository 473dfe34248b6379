"""Build a fleet with and without sharing of equal launches, in one run.

    python benchmarks/fleet_build.py PLAN... [-j N] [--shards N]
    python benchmarks/fleet_build.py --matrix benchmarks/fleet.yaml --plans DIR --part 1/16

PLAN are manifests of `prewarm plan`, one a deployment. Without sharing each is compiled by itself
into a directory of its own; with it each distinct launch is compiled once, in one shard and in
`--shards` of them, one after the other: the longest of these is what machines side by side would
wait for. All three then pack every image, and their digests must be equal. Plans are made before
and not timed.

With --matrix every deployment that it names is planned into --plans, where it is not there yet;
what vLLM refuses is told and left out. All are counted, and what falls to --part is compiled with
and without sharing. Printed: launches, wall and CPU time, and their ratios; `--json FILE` keeps
them.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from prewarm.core.fleet import Group, Part, Planned, extent, groups_of, parse_part
from prewarm.core.manifest_yaml import read_manifest
from prewarm.core.matrix_yaml import read_matrix
from prewarm.fleet import build_shard
from prewarm.make.compile import compile_manifest
from prewarm.make.fleet import compile_group
from prewarm.output import Output
from prewarm.ship.gather import gather
from prewarm.ship.pack import pack

T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """One build of every image."""

    name: str
    compiles: int
    processes: int
    """Processes that import vLLM and compile."""
    wall: float
    """Seconds until all images are packed."""
    cpu: float
    """Seconds of all processes together."""
    longest: float
    """Seconds of the longest part that cannot be shared out further."""

    def row(self) -> str:
        """Return the run as a line of the table."""
        return (
            f"{self.name:18s} {self.compiles:5d} compiles  {self.processes:3d} processes"
            f"  wall {self.wall:7.1f} s  cpu {self.cpu:7.1f} s  longest part {self.longest:6.1f} s"
        )


Digests = dict[str, str]


# --- the whole of a small fleet -----------------------------------------------------------


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
    name: str, compiles: int, processes: int, build: Callable[[Path], tuple[T, list[float]]]
) -> tuple[Run, T]:
    """Return what `build` took in an empty directory, and what it made."""
    with tempfile.TemporaryDirectory(prefix="prewarm-bench-") as directory:
        before, began = _cpu(), time.monotonic()
        made, parts = build(Path(directory))
        wall = time.monotonic() - began
        return Run(name, compiles, processes, wall, _cpu() - before, max(parts)), made


def _cpu() -> float:
    every = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in every)


def whole(fleet: tuple[Planned, ...], jobs: int, shards: int) -> list[Run]:
    """Print and return what building all images takes in three ways."""
    found = extent(fleet)
    several = [groups_of(fleet, Part(number=n, of=shards)) for n in range(1, shards + 1)]
    one = groups_of(fleet, Part(number=1, of=1))
    builds = (
        ("one by one", found.launches, len(fleet), lambda place: one_by_one(fleet, place, jobs)),
        ("one shard", found.distinct, len(one), lambda place: shared(fleet, place, jobs, 1)),
        (
            f"{shards} shards",
            found.distinct,
            sum(map(len, several)),
            lambda place: shared(fleet, place, jobs, shards),
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
    alone, single, last = runs
    _ratio(alone, single)
    _ratio(alone, last)
    print(f"one by one over the longest shard: wall {alone.wall / last.longest:.2f}")
    return runs


# --- a part of a large one ----------------------------------------------------------------


def plan_all(matrix: Path, plans: Path) -> tuple[tuple[Planned, ...], dict[str, str]]:
    """Return the deployments of `matrix`, planned into `plans`, and why the others are refused."""
    fleet, refused = [], {}
    for wanted in read_matrix(matrix):
        path = plans / f"{wanted.name}.yaml"
        if not path.exists():
            began = time.monotonic()
            command = [sys.executable, "-m", "prewarm", "plan", "--target", wanted.target]
            done = subprocess.run(
                [*command, "-o", str(path), "--", *wanted.serve_args],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode != 0:
                said = re.search(r"error: (.*)", done.stderr)
                refused[wanted.name] = said[1] if said else done.stderr
                print(f"refused: {wanted.name}: {refused[wanted.name]}", flush=True)
                continue
            print(f"planned {wanted.name}: {time.monotonic() - began:.0f} s", flush=True)
        fleet.append(Planned(name=wanted.name, manifest=read_manifest(path)))
    return tuple(fleet), refused


def compile_part(groups: Sequence[Group], place: Path, jobs: int) -> tuple[int, list[float]]:
    """Compile `groups` into `place`; return how many launches, and the seconds of each group."""
    launches, seconds = 0, []
    for number, group in enumerate(groups):
        began = time.monotonic()
        launches += sum(now for _, now in compile_group(group, place / str(number), jobs))
        seconds.append(time.monotonic() - began)
    return launches, seconds


def sampled(fleet: tuple[Planned, ...], part: Part, jobs: int) -> list[Run]:
    """Print and return what compiling `part` takes with and without sharing."""
    shared_ = groups_of(fleet, part)
    alone_ = [group for each in fleet for group in groups_of((each,), part)]
    runs = []
    for name, groups in (("shared", shared_), ("one by one", alone_)):
        asked = sum(len(group.launches) for group in groups)
        run, compiled = measure(
            f"{name}, {part}",
            asked,
            len(groups),
            lambda place, groups=groups: compile_part(groups, place, jobs),
        )
        if compiled != asked:
            raise SystemExit(f"{name}: {compiled} of {asked} launches compiled")
        print(run.row(), flush=True)
        runs.append(run)
    _ratio(runs[1], runs[0])
    return runs


def _ratio(one: Run, other: Run) -> None:
    print(
        f"{one.name} over {other.name}: compiles {one.compiles / other.compiles:.2f},"
        f" wall {one.wall / other.wall:.2f}, cpu {one.cpu / other.cpu:.2f}"
    )


def main() -> None:
    """Run what is asked for and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="*", metavar="PLAN")
    parser.add_argument("--matrix", type=Path)
    parser.add_argument("--plans", type=Path)
    parser.add_argument("--part", type=parse_part, default=Part(number=1, of=16))
    parser.add_argument("-j", "--jobs", type=int, default=2)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    if bool(asked.matrix) == bool(asked.files) or bool(asked.matrix) != bool(asked.plans):
        parser.error("PLAN..., or --matrix and --plans")
    refused: dict[str, str] = {}
    if asked.matrix:
        fleet, refused = plan_all(asked.matrix, asked.plans)
    else:
        fleet = tuple(
            Planned(name=path.stem.lower(), manifest=read_manifest(path)) for path in asked.files
        )
    found = extent(fleet)
    print(
        f"{found.deployments} deployments, {found.launches} launches, {found.distinct} distinct"
        f" ({found.launches / found.distinct:.2f}), -j {asked.jobs}",
        flush=True,
    )
    runs = (
        sampled(fleet, asked.part, asked.jobs)
        if asked.matrix
        else whole(fleet, asked.jobs, asked.shards)
    )
    if asked.json:
        told = {
            "extent": msgspec.to_builtins(found),
            "refused": refused,
            "jobs": asked.jobs,
            "runs": [asdict(run) for run in runs],
        }
        asked.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
