"""Time lookups through the overlay against Triton's FileCacheManager, side by side, without a GPU.

    python benchmarks/overlay_lookup.py INSTALLED [--rounds N]

INSTALLED is what `prewarm install --into` was given. Each round looks everything up once each way,
in turns. Prints microseconds of one lookup, the least of all rounds: `digests off` is the overlay
without the digests of the install, `reading` what Triton reads of an entry once it is found.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from triton.runtime.cache import FileCacheManager

_BEGAN = time.perf_counter()
from prewarm.serve import triton_seam  # noqa: E402
from prewarm.serve.overlay import Overlay  # noqa: E402

_IMPORTED = time.perf_counter() - _BEGAN

Lookup = tuple[str, str]
"""A key, and the metadata or the file that is asked for."""
Way = Callable[[Sequence[Lookup]], object]


def lookups_of(entries: Path) -> tuple[list[Lookup], list[Lookup]]:
    """Return the groups and the other files of a cache."""
    groups: list[Lookup] = []
    files: list[Lookup] = []
    for path in sorted(entries.glob("*/*")):
        if path.name.startswith("__grp__"):
            groups.append((path.parent.name, path.name.removeprefix("__grp__")))
        elif path.name.endswith((".so", ".autotune.json")):
            files.append((path.parent.name, path.name))
    return groups, files


def groups_by(manager: type[Any], directory: Path) -> Way:
    """Return a way to look groups up with `manager` where Triton's own is `directory`."""

    def look(lookups: Sequence[Lookup]) -> object:
        os.environ["TRITON_CACHE_DIR"] = str(directory)
        return [manager(key).get_group(name) for key, name in lookups]

    return look


def files_by(manager: type[Any], directory: Path) -> Way:
    """Return a way to look files up with `manager` where Triton's own is `directory`."""

    def look(lookups: Sequence[Lookup]) -> object:
        os.environ["TRITON_CACHE_DIR"] = str(directory)
        return [manager(key).get_file(name) for key, name in lookups]

    return look


def reading(entries: Path) -> Way:
    """Return what Triton's CompiledKernel reads of each group."""
    groups = groups_by(FileCacheManager, entries)

    def read(lookups: Sequence[Lookup]) -> object:
        found: Any = groups(lookups)
        return [
            path.read_bytes() if path.suffix == ".cubin" else path.read_text("utf-8")
            for group in found
            for path in map(Path, group.values())
        ]

    return read


def overlay_of(installed: Path, writable: Path) -> type[Any]:
    """Return the cache manager of an overlay."""
    return triton_seam.cache_manager_of(Overlay(installed, writable))


def microseconds(ways: Sequence[Way], lookups: Sequence[Lookup], rounds: int) -> list[float]:
    """Return the time of one lookup each way, the least of all rounds."""
    least = [float("inf")] * len(ways)
    for _ in range(rounds):
        for place, way in enumerate(ways):
            began = time.perf_counter()
            way(lookups)
            least[place] = min(least[place], time.perf_counter() - began)
    return [1e6 * each / len(lookups) for each in least]


def main() -> None:
    """Time hits in the installed cache and in the overlay, and misses."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("installed", type=Path)
    parser.add_argument("--rounds", type=int, default=51)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="prewarm-lookup-") as scratch:
        measure(asked.installed.absolute(), Path(scratch), asked.rounds)


def measure(installed: Path, scratch: Path, rounds: int) -> None:
    """Print a line for each kind of lookup."""
    entries, writable, nothing = installed / "triton", scratch / "writable", scratch / "nothing"
    groups, files = lookups_of(entries)
    size = sum(path.stat().st_size for path in entries.glob("*/*"))
    unlisted = scratch / "unlisted"
    shutil.copytree(entries, unlisted / "io.triton.cache")
    (nothing / "io.triton.cache").mkdir(parents=True)
    began = time.perf_counter()
    overlay = overlay_of(installed, writable)
    overlay(groups[0][0]).get_group(groups[0][1])
    ready = time.perf_counter() - began
    print(f"Python {sys.version.split()[0]}; {len(groups)} launches, {size / 1e6:.2f} MB;", end=" ")
    print(f"import {1e3 * _IMPORTED:.1f} ms, start and first lookup {1e3 * ready:.1f} ms")
    off, written = overlay_of(unlisted, writable), overlay_of(nothing, unlisted / "io.triton.cache")
    own, copied = FileCacheManager, unlisted / "io.triton.cache"
    absent = [(f"{number:052}", name) for number, (_, name) in enumerate(groups)]
    rows: dict[str, tuple[Sequence[Lookup], list[Way]]] = {
        "launch, installed": (
            groups,
            [
                groups_by(own, entries),
                groups_by(overlay, writable),
                groups_by(off, writable),
                reading(entries),
            ],
        ),
        "launch, in the overlay": (groups, [groups_by(own, copied), groups_by(written, copied)]),
        "launch, nowhere": (absent, [groups_by(own, writable), groups_by(overlay, writable)]),
        "module or record, installed": (
            files,
            [files_by(own, entries), files_by(overlay, writable), files_by(off, writable)],
        ),
    }
    heads = ("Triton", "overlay", "digests off", "reading")
    print(f"{'µs of a lookup':28} " + " ".join(f"{head:>11}" for head in heads) + "       all")
    for name, (lookups, ways) in rows.items():
        times = microseconds(ways, lookups, rounds)
        columns = " ".join(f"{each:11.1f}" for each in times)
        print(f"{name:28} {columns:47} {times[1] * len(lookups) / 1e3:6.2f} ms")


if __name__ == "__main__":
    main()
