"""Time what the vLLM plugin adds to a start and to a launch, side by side with Triton alone.

    python benchmarks/plugin_cost.py DIR [--rounds N] [--calls N]

DIR is what `prewarm install --into` was given. Each round is two fresh processes on a virtual GPU,
one with the plugin loaded by vLLM's own loader, one with PREWARM=0; both look up every launch of
the cache, which must hit, and launch one from memory many times. Nothing runs on a GPU. Prints the
least of all rounds.
"""

from __future__ import annotations

import argparse
import compileall
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import prewarm
from prewarm.core.cache import PLAN
from prewarm.core.manifest_yaml import read_manifest
from prewarm.core.selection import selected_launches
from prewarm.core.target import target_named
from prewarm.device.libcuda import load_stub
from prewarm.serve.installed import InstalledCache

ROWS = {
    "load": "vLLM's loader of plugins, the import of ours with it, ms",
    "stages": "the model is loaded, the cache sized, the worker ready, ms",
    "lookups": "looking up all launches of the cache, ms",
    "launch": "one launch from memory, ns",
}
LOADED = ("vllm.engine.arg_utils", "vllm.v1.worker.worker_base", "vllm.v1.metrics.prometheus")
"""What vLLM has imported by the time it loads plugins."""
CALLS = 1000
"""Launches between two looks at the clock."""


def child(directory: Path, calls: int) -> dict[str, float]:
    """Return the times of this process."""
    cache = InstalledCache(directory / "triton")
    plan = read_manifest(Path(os.path.realpath(cache.entries)).parent / PLAN)
    target = target_named(plan.deployment.target)
    load_stub()
    importlib.import_module("prewarm.device.virtual_torch").install(target)
    seam: Any = importlib.import_module("prewarm.device.triton_seam")
    seam.activate_virtual_driver(target)
    for name in LOADED:
        importlib.import_module(name)
    plugins: Any = importlib.import_module("vllm.plugins")
    bound = [
        seam.bind(launch)
        for launch in selected_launches(plan, cache.index.selection)
        if not launch.unbound
    ]
    began = time.perf_counter()
    plugins.load_general_plugins()
    loaded = time.perf_counter()
    stages = _tell("made", 0) + _tell("loaded") + _tell("sized", 1)
    lookups = _lookups(bound)
    stages += _tell("ready")
    return {
        "load": (loaded - began) * 1e3,
        "stages": stages * 1e3,
        "lookups": lookups * 1e3,
        "launch": _launch(bound[0], calls),
    }


def _tell(stage: str, *arguments: int) -> float:
    """Return the seconds that the plugin takes to hear of a worker's `stage`."""
    processes = importlib.import_module("prewarm.serve.plugin")._PROCESSES  # noqa: SLF001
    began = time.perf_counter()
    for process in processes:
        getattr(process, stage)(*arguments)
    return time.perf_counter() - began


def _lookups(bound: list[Any]) -> float:
    began = time.perf_counter()
    for each in bound:
        each.function.device_caches.clear()
        each.function.run(**each.arguments, **each.keywords, grid=(1,), warmup=True)
    return time.perf_counter() - began


def _launch(each: Any, calls: int) -> float:
    run, arguments = each.function.run, {**each.arguments, **each.keywords}
    run(**arguments, grid=(1,), warmup=False)
    times = []
    for _ in range(calls // CALLS):
        began = time.perf_counter_ns()
        for _ in range(CALLS):
            run(**arguments, grid=(1,), warmup=False)
        times.append((time.perf_counter_ns() - began) / CALLS)
    return min(times)


def _run(directory: Path, calls: int, site: Path, **environment: str) -> dict[str, float]:
    paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, __file__, str(directory), "--calls", str(calls), "--child"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _installed(site: Path) -> None:
    """Install prewarm into `site`, its modules compiled as an installer compiles them."""
    package = Path(prewarm.__file__).parent
    shutil.copytree(package, site / "prewarm", ignore=shutil.ignore_patterns("__pycache__"))
    compileall.compile_dir(site / "prewarm", quiet=1)
    info = site / "prewarm-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: prewarm\nVersion: 0\n")
    entry = "[vllm.general_plugins]\nprewarm = prewarm.serve.plugin:register\n"
    (info / "entry_points.txt").write_text(entry)


def main() -> None:
    """Run both kinds of process in turns and print a line for each time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--child", action="store_true")
    asked = parser.parse_args()
    if asked.child:
        print(json.dumps(child(asked.directory, asked.calls)))
        return
    with tempfile.TemporaryDirectory(prefix="prewarm-cost-") as scratch:
        site = Path(scratch)
        _installed(site)
        cached = {"TRITON_CACHE_DIR": str(asked.directory / "triton")}
        kinds = (
            {**cached, "PREWARM": "0"},
            {**cached, "PREWARM": "1", "PREWARM_OVERLAY": f"{scratch}/overlay"},
        )
        rounds = [
            [_run(asked.directory, asked.calls, site, **kind) for kind in kinds]
            for _ in range(asked.rounds)
        ]
    print(f"{'':60} {'alone':>8} {'plugin':>8} {'more':>8}")
    for name, title in ROWS.items():
        alone, ours = (min(each[at][name] for each in rounds) for at in (0, 1))
        print(f"{title:60} {alone:8.1f} {ours:8.1f} {ours - alone:+8.1f}")


if __name__ == "__main__":
    main()
