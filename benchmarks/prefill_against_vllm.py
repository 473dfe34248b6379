"""Time GDN prefill as vLLM tunes it, with prewarm's winners, and with its winner of each size.

    python benchmarks/prefill_against_vllm.py --cubins DIR --prewarm DIR --out FILE [--heads 16/64]

CUBINS is a cache directory that holds every candidate and no autotune record, PREWARM what
`prewarm install` printed, for the same deployment. Needs the GPU they were made for, and vLLM.
Every figure comes from fresh processes that take turns; the order turns too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prewarm.core.cache import CACHE_MANIFEST, CACHE_SCHEMA, CacheManifest
from prewarm.core.document import parse_json
from prewarm.device.planned import plan_environment, use_cache

Result = dict[str, Any]
"""What one process found; `prefill_process.py` says which fields."""
Medians = Mapping[str, float]
"""Size to microseconds."""

VLLM, WINNERS, BY_SIZE = "vllm", "prewarm", "prewarm by size"
LARGE = tuple(f"{tokens}x{n}" for n in (1, 8) for tokens in (2048, 4096, 8192, 16384))
"""What counts in the geometric mean."""
SIZES = ("64x1", "1024x1", "1024x8", *LARGE)
FIRST_SIZE = "2000x1"
_SPARED_FIRST: Mapping[str, tuple[str, ...]] = {
    "empty": (),
    "cubins": ("compiles",),
    "prewarm": ("compiles", "benchmarks"),
}
WORK = ("compiles", "hits", "benchmarks", "host modules")
_TIMES = ("key ms", "first ms", "load ms", "second ms")
PROCESS = Path(__file__).with_name("prefill_process.py")


# --- processes -----------------------------------------------------------------------------


def _prepare_environment(installed: Path) -> None:
    path = installed.resolve().parent / CACHE_MANIFEST
    made = parse_json(path.read_bytes(), CacheManifest, CACHE_SCHEMA, str(path))
    plan_environment(made.toolchain)
    root = str(Path(__file__).resolve().parents[1])
    paths = (root, os.environ.get("PYTHONPATH"))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"


@contextlib.contextmanager
def _copy_of(cache: Path | None) -> Iterator[Path]:
    """Make a copy of a cache directory whose group files point into the copy; None is empty."""
    with tempfile.TemporaryDirectory(prefix="prewarm-prefill-") as scratch:
        copy = Path(scratch, "cache")
        if cache is None:
            copy.mkdir()
        else:
            shutil.copytree(cache.resolve(), copy)
        for path in copy.glob("*/__grp__*.json"):
            group = json.loads(path.read_text())
            group["child_paths"] = {name: str(path.parent / name) for name in group["child_paths"]}
            path.write_text(json.dumps(group))
        yield copy


def _run(asked: argparse.Namespace, cache: Path, *args: str, records: bool) -> Result:
    """Return what a process finds with `cache`; `records` lets Triton read and write them."""
    use_cache(str(cache))
    os.environ["TRITON_CACHE_AUTOTUNING"] = str(int(records))
    what, *rest = args
    done = subprocess.run(
        [sys.executable, PROCESS, what, asked.heads, asked.prewarm, *rest],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        said = f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
        sys.exit(f"{what} failed ({done.returncode}) with the cache {cache}\n{said}")
    result: Result = json.loads(lines[-1].removeprefix("RESULT "))
    return result


def _measure(variant: str, asked: argparse.Namespace) -> Result:
    if variant == VLLM:
        with _copy_of(asked.cubins) as cache:
            return _run(asked, cache, "times", *SIZES, records=False)
    by_size = ("--by-size",) if variant == BY_SIZE else ()
    return _run(asked, asked.prewarm, "times", *SIZES, *by_size, records=True)


def _first(state: str, asked: argparse.Namespace) -> Result:
    if state == "prewarm":
        return _run(asked, asked.prewarm, "first", FIRST_SIZE, records=True)
    with _copy_of(asked.cubins if state == "cubins" else None) as cache:
        return _run(asked, cache, "first", FIRST_SIZE, records=True)


# --- tables --------------------------------------------------------------------------------


def _print_times(measured: Mapping[str, Sequence[Result]]) -> None:
    medians = {name: [_medians(each) for each in found] for name, found in measured.items()}
    others = [name for name in medians if name != VLLM and medians[name]]
    columns = "".join(f"{name + ', µs':>20} {'ratio':>7} {'(worst)':>8}" for name in others)
    print(f"{'tokens x sequences':>18} {'vllm, µs':>10}{columns}")
    for label, sizes in ({size: [size] for size in SIZES} | {"geometric, ≥ 2048": LARGE}).items():
        line = f"{label:>18} {_middle(medians[VLLM], sizes):10.1f}"
        for name in others:
            ours = _middle(medians[name], sizes)
            ratios = [_mean(theirs, sizes) / ours for theirs in medians[VLLM]]
            line += f"{ours:20.1f} {statistics.median(ratios):7.3f}"
            line += f" {min(ratios):8.3f}"
        print(line)


def _medians(result: Result) -> Medians:
    return {size: statistics.median(times) for size, times in result["times"].items()}


def _mean(times: Medians, sizes: Sequence[str]) -> float:
    return statistics.geometric_mean([times[size] for size in sizes])


def _middle(processes: Sequence[Medians], sizes: Sequence[str]) -> float:
    return statistics.median(_mean(times, sizes) for times in processes)


def _print_errors(measured: Mapping[str, Sequence[Result]]) -> None:
    errors = {
        name: statistics.median(p["error"] for p in each) for name, each in measured.items() if each
    }
    for name, error in errors.items():
        print(f"relative error, {name}: {error:.3e}, {error / errors[VLLM]:.3f} of that of vllm")


def _print_first(first: Mapping[str, Result]) -> None:
    columns = "".join(f"{what:>14}" for what in WORK)
    times = "".join(f" {name:>10}" for name in _TIMES)
    print(f"{'first prefill':>14}{times}{columns}")
    for name, each in first.items():
        numbers = "".join(f"{sum(each['counts'][what].values()):14}" for what in WORK)
        times = "".join(f" {each[what]:10.1f}" for what in _TIMES)
        print(f"{name:>14}{times}{numbers}")


def _complaints(
    measured: Mapping[str, Sequence[Result]], first: Mapping[str, Result]
) -> Iterator[str]:
    """Yield what makes the figures void: work that the caches should have spared."""
    for name, processes in measured.items():
        for each in processes:
            yield from _wasted(name, each["counts"], "compiles", "benchmarks")
            spared = ("compiles",) if name == VLLM else ("compiles", "benchmarks")
            yield from _wasted(f"{name}, warm-up", each["counts of the warm-up"], *spared)
    for name, each in first.items():
        yield from _wasted(f"first prefill, {name}", each["counts"], *_SPARED_FIRST[name])


def _wasted(where: str, counts: Mapping[str, Mapping[str, int]], *whats: str) -> Iterator[str]:
    for what in whats:
        if counts[what]:
            yield f"{where}: {sum(counts[what].values())} {what}: {counts[what]}"


# --- the whole -----------------------------------------------------------------------------


def _machine() -> str:
    query = "--query-gpu=name,driver_version,clocks.sm,clocks.mem,power.limit,temperature.gpu"
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.check_output(["nvidia-smi", query, "--format=csv"], text=True).strip()
    return "no nvidia-smi"


def drive(asked: argparse.Namespace) -> int:
    """Run every process, write the file after each, print the tables; return the exit code."""
    _prepare_environment(asked.prewarm)
    machine = _machine()
    measured: dict[str, list[Result]] = {name: [] for name in (VLLM, WINNERS, BY_SIZE)}
    if not asked.sizes:
        del measured[BY_SIZE]
    first: dict[str, Result] = {}

    def note(label: str, result: Result) -> None:
        found = {"machine": machine, "heads": asked.heads, "measured": measured, "first": first}
        asked.out.write_text(json.dumps(found, indent=1), "utf-8")
        print(f"{label}: {result['seconds']:.1f} s", file=sys.stderr, flush=True)

    for repeat in range(asked.repeats):
        names = list(measured)
        turn = repeat % len(names)
        for name in (*names[turn:], *names[:turn]):
            if name != VLLM and repeat >= asked.ours:
                continue
            measured[name].append(_measure(name, asked))
            note(f"{name} {repeat + 1}", measured[name][-1])
    for name in asked.first:
        first[name] = _first(name, asked)
        note(f"first prefill, {name}", first[name])
    print(f"{machine}\nheads {asked.heads}, {asked.repeats} processes, {asked.ours} with our cache")
    if asked.repeats:
        _print_times(measured)
        _print_errors(measured)
    if first:
        _print_first(first)
    complaints = list(_complaints(measured, first))
    for complaint in complaints:
        print(f"!!! VOID: {complaint}")
    return 1 if complaints else 0


def main() -> int:
    """Parse the arguments and drive."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--cubins", type=Path, required=True, help="a cache of all candidates without records")
    add("--prewarm", type=Path, required=True, help="what `prewarm install` printed")
    add("--out", type=Path, required=True, help="the JSON file to write")
    add("--heads", default="16/64", help="key and value heads of one GPU (default: 16/64)")
    add("--repeats", type=int, default=5, help="processes as vLLM tunes (default: 5)")
    add("--ours", type=int, default=2, help="of these, with our cache: it varies less (default: 2)")
    add("--no-sizes", dest="sizes", action="store_false", help="leave out the winner of each size")
    add(
        "--first", nargs="*", choices=("empty", "cubins", "prewarm"), default=["cubins", "prewarm"],
        help="caches to time the first prefill with (default: cubins prewarm)",
    )  # fmt: skip
    return drive(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
