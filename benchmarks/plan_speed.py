"""Time `prewarm plan` of one deployment, and of several in one call: what a further one costs.

    python benchmarks/plan_speed.py --models model-configs [--rounds 2] [--closure 0] [-o FILE]

In each round `plan --matrix` plans the first deployment, then all of them, in fresh processes. A
further deployment costs the difference, divided by how many there were more. Prints seconds that
passed, seconds of all cores, and the memory of the largest process; of rounds the least.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from prewarm.core.record import Record

TRITON = ("--gdn-prefill-backend", "triton")
DEPLOYMENTS = (
    ("Qwen3.5-397B-A17B-FP8", ("-dp", "8", "--enable-expert-parallel")),
    ("Qwen3.5-397B-A17B-FP8", ("-tp", "8")),
    ("Qwen3.5-122B-A10B", ("-tp", "4")),
    ("Qwen3-Next-80B-A3B-Instruct", ("-tp", "4")),
    ("Qwen3.5-27B", ("-tp", "2")),
)


class Cost(Record, kw_only=True):
    """What a process and its children took."""

    seconds: float
    cpu_seconds: float
    memory_mib: float
    """Of the largest process."""


def planned(models: Path, count: int, closure: int) -> Cost:
    """Plan the first `count` deployments for B200 in one call."""
    deployments = [
        {
            "name": f"d{number}",
            "target": "b200",
            "serve": shlex.join((str(models / model), *given, *TRITON)),
        }
        for number, (model, given) in enumerate(DEPLOYMENTS[:count])
    ]
    with tempfile.TemporaryDirectory() as scratch:
        matrix = Path(scratch, "matrix.yaml")
        document = {"schema": "prewarm/matrix/v1", "deployments": deployments}
        matrix.write_text(json.dumps(document), encoding="utf-8")
        asked = ("--matrix", str(matrix), "--closure", str(closure), "-o", scratch)
        began = time.perf_counter()
        command = [sys.executable, "-m", "prewarm", "plan", "-q", *asked]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, code, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
    if code:
        raise SystemExit(f"plan ended with {os.waitstatus_to_exitcode(code)}")
    return Cost(
        seconds=seconds,
        cpu_seconds=used.ru_utime + used.ru_stime,
        memory_mib=used.ru_maxrss / 1024,
    )


def least(costs: Sequence[Cost]) -> Cost:
    """Return the least of each."""
    return Cost(
        seconds=min(each.seconds for each in costs),
        cpu_seconds=min(each.cpu_seconds for each in costs),
        memory_mib=min(each.memory_mib for each in costs),
    )


def _row(name: str, seconds: float, cpu_seconds: float, memory_mib: float) -> str:
    return f"{name:8} {seconds:6.1f} s  {cpu_seconds:6.1f} CPU s  {memory_mib:6.0f} MiB"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--closure", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path)
    asked = parser.parse_args()
    ones: list[Cost] = []
    alls: list[Cost] = []
    models = asked.models.resolve()
    for _ in range(asked.rounds):
        ones.append(planned(models, 1, asked.closure))
        alls.append(planned(models, len(DEPLOYMENTS), asked.closure))
    first, every = least(ones), least(alls)
    more = len(DEPLOYMENTS) - 1
    further = (every.seconds - first.seconds) / more
    further_cpu = (every.cpu_seconds - first.cpu_seconds) / more
    lines = (
        f"closure {asked.closure}, {asked.rounds} rounds, the least of each",
        _row("first", first.seconds, first.cpu_seconds, first.memory_mib),
        _row("further", further, further_cpu, every.memory_mib),
        f"a further one takes {further / first.seconds:.2f} of the first",
    )
    sys.stdout.write("\n".join(lines) + "\n")
    if asked.output is not None:
        found = {
            "closure": asked.closure,
            "first": [each.seconds for each in ones],
            "first_cpu": [each.cpu_seconds for each in ones],
            "all": [each.seconds for each in alls],
            "all_cpu": [each.cpu_seconds for each in alls],
            "first_mib": first.memory_mib,
            "all_mib": every.memory_mib,
            "deployments": more + 1,
        }
        asked.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
