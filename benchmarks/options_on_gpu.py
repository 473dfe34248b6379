"""Hold what the GDN layers of deployments ask for on this GPU against what was planned for them.

    python benchmarks/options_on_gpu.py MANIFEST… [--lanes N] [--memory GIB] [-o FILE]

Each deployment serves the workloads of `prewarm prove`, its random ones from another seed, with
vLLM's engine whose model is its GDN layers without weights; Triton's directory starts empty and is
shared by the deployments of a lane. Prints what differs both ways, specialization by
specialization: of an autotuned kernel any candidate counts, for a winner spares the others.
Exits 1 if a deployment asked for what its manifest does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from prewarm.core.manifest import Manifest, launches_of
from prewarm.core.manifest_yaml import read_manifest
from prewarm.prove.message import Request, Served
from prewarm.prove.proof import escapes_of
from prewarm.serve.recording import Event, Looked, Tuned, Worker, read_recording
from prewarm.serve.unbound import settle
from prewarm.trace.parent import ask

_SEED = 7
_GIB = 1 << 30
_TOTAL_GIB = 139


def _serve(manifest: Manifest, cache: Path, record: Path, asked: argparse.Namespace) -> Served:
    memory = str(int(asked.memory * _GIB))
    limit = ("--gpu-memory-utilization", f"{(asked.memory + 2) / _TOTAL_GIB:.2f}")
    environment = {
        name: value
        for name, value in manifest.toolchain.environment.items()
        if name.startswith(("VLLM_", "FLA_"))
    }
    request = Request(
        serve_args=(*manifest.deployment.serve_args, *limit, "--kv-cache-memory-bytes", memory),
        depth="layer",
        layers=None,
        prompt=2000,
        repeats=1,
        random_workloads=asked.random,
        seed=_SEED,
        environment={
            **environment,
            "PREWARM": "1",
            "PREWARM_RECORD": str(record),
            "TRITON_CACHE_DIR": str(cache),
            "TRITON_CACHE_AUTOTUNING": "1",
            "VLLM_CACHE_ROOT": str(cache.parent / "vllm"),
        },
    )
    return ask(request, Served, lambda _: None, module="prewarm.prove.child", doing="serving")


def _not_asked(manifest: Manifest, events: Iterable[Event]) -> list[str]:
    """Return the specializations that nothing in `events` asked for, and what planned them."""
    events = tuple(events)
    asked = {each.launch.digest for each in events if isinstance(each, Looked)}
    blocks = sorted({each.gpu_blocks for each in events if isinstance(each, Worker)})
    left = []
    for kernel in manifest.kernels:
        for one in kernel.specializations:
            launches = tuple(launches_of(kernel, one))
            settled = (settle(launches, manifest.unbound, each).launches for each in blocks)
            held = {each.digest for each in (*launches, *(a for some in settled for a in some))}
            if not held & asked:
                left.append(f"{kernel.name}: {', '.join(one.via)}")
    return left


def _result(
    name: str, manifest: Manifest, root: Path, lane: int, asked: argparse.Namespace
) -> dict[str, object]:
    record = root / f"{name}.jsonl"
    start = time.perf_counter()
    served = _serve(manifest, root / f"triton-{lane}", record, asked)
    events = tuple(read_recording(record))
    result: dict[str, object] = {
        "deployment": name,
        "serve_args": manifest.deployment.serve_args,
        "gpu": served.gpu,
        "workloads": len(served.laps),
        "gpu_blocks": sorted({each.gpu_blocks for each in events if isinstance(each, Worker)}),
        "specializations": sum(len(kernel.specializations) for kernel in manifest.kernels),
        "looked_up": len({each.launch.digest for each in events if isinstance(each, Looked)}),
        "tuning_keys": sum(isinstance(each, Tuned) for each in events),
        "escapes": [
            msgspec.to_builtins(each) for each in escapes_of(manifest, None, events, whole=False)
        ],
        "not_asked": _not_asked(manifest, events),
        "seconds": round(time.perf_counter() - start),
    }
    return result


def _lane(
    wanted: list[tuple[str, Manifest]], root: Path, lane: int, asked: argparse.Namespace
) -> list[object]:
    found: list[object] = []
    for name, manifest in wanted:
        try:
            found.append(_result(name, manifest, root, lane, asked))
        except Exception as error:  # noqa: BLE001 (one deployment's end is not that of the others)
            notes = "\n".join(getattr(error, "__notes__", ()))
            found.append({"deployment": name, "failed": f"{error}\n{notes[-3000:]}"})
        sys.stdout.write(f"{json.dumps(found[-1])}\n")
        sys.stdout.flush()
    return found


def main() -> int:
    """Serve them all, print one line for each, write all results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifests", nargs="+", type=Path)
    parser.add_argument("--lanes", type=int, default=4, help="deployments served at once")
    parser.add_argument("--memory", type=float, default=28, help="GiB of KV cache of each")
    parser.add_argument("--random", type=int, default=20, help="random workloads of each")
    parser.add_argument("-o", "--output", type=Path)
    asked = parser.parse_args()
    os.environ.setdefault("PREWARM", "0")
    wanted = [(path.stem, read_manifest(path)) for path in asked.manifests]
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(asked.lanes) as pool:
        lanes = [
            pool.submit(_lane, wanted[lane :: asked.lanes], Path(scratch), lane, asked)
            for lane in range(asked.lanes)
        ]
        found = [each for lane in lanes for each in lane.result()]
    if asked.output:
        asked.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    bad = [each for each in found if not isinstance(each, dict) or each.get("escapes", True)]
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
