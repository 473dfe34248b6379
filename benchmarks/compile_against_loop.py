"""Compile a manifest with two processes and, in the same run, in one loop: `… MANIFEST [-j N]`.

Both compile every launch and its host modules into an empty directory with the same code; the
loop is one process, one launch after the other. Printed: wall time, the share of the cores that
was busy (user + system over wall times cores), and the share of the time after the first launch in
which the workers had a launch.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from prewarm.core.manifest import Manifest
from prewarm.core.manifest_yaml import read_manifest
from prewarm.make.compile import compile_manifest
from prewarm.make.message import Compiled


@dataclass(frozen=True)
class Run:
    """One compile of everything."""

    jobs: int
    launches: int
    wall: float
    cpu: float
    first: float
    """Wall time until the first launch was done: one process imports, then all compile."""
    working: float
    """Seconds that launches took in their processes, together."""

    def row(self) -> str:
        """Return the run as a line of the table."""
        busy = self.cpu / (self.wall * self.jobs)
        after = self.working / ((self.wall - self.first) * self.jobs)
        return (
            f"-j {self.jobs}  {self.launches:4d} launches  wall {self.wall:6.1f} s"
            f"  first after {self.first:4.1f} s  cpu {self.cpu:6.1f} s  cores busy {busy:4.0%}"
            f"  workers at work after the first {min(after, 1):4.0%}"
        )


def measure(manifest: Manifest, jobs: int) -> Run:
    """Return what a compile of `manifest` into an empty directory took."""
    with tempfile.TemporaryDirectory(prefix="prewarm-bench-") as directory:
        before, began = _cpu(), time.monotonic()
        first, working, launches = 0.0, 0.0, 0
        for outcome in compile_manifest(manifest, Path(directory), jobs):
            launches += 1
            if not first:
                first = time.monotonic() - began
            elif isinstance(outcome, Compiled):
                working += outcome.seconds
        wall = time.monotonic() - began
        return Run(jobs, launches, wall, _cpu() - before, first, working)


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Run both and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("-j", "--jobs", type=int, default=2)
    arguments = parser.parse_args()
    manifest = read_manifest(arguments.manifest)
    parallel, loop = measure(manifest, arguments.jobs), measure(manifest, 1)
    print(parallel.row())
    print(loop.row())
    print(f"wall, loop over -j {parallel.jobs}: {loop.wall / parallel.wall:.2f}")


if __name__ == "__main__":
    main()
