"""Time the verbs on this machine, one after another, in a directory of its own.

python benchmarks/each_verb.py SERVE_ARGS...
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_RUN = (sys.executable, "-m", "prewarm")


def _measure(*command: str) -> tuple[float, float, str]:
    """Return seconds, peak memory in MiB and stdout of `command` and its children."""
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(process.returncode)
    return time.monotonic() - began, usage.ru_maxrss / 1024, output


def main(serve_args: list[str]) -> None:
    """Plan, compile twice, pack, install twice and verify; print a line for each."""
    with tempfile.TemporaryDirectory(prefix="prewarm-bench-") as scratch:
        at = Path(scratch)
        manifest, cache, image, into = (str(at / n) for n in ("plan.yaml", "cache", "image", "to"))
        steps = {
            "plan, boundary workloads": ("plan", "--closure", "0", "-o", str(at / "edge.yaml")),
            "plan": ("plan", "-o", manifest),
            "compile, nothing cached": ("compile", manifest, "--cache-dir", cache),
            "compile, all cached": ("compile", manifest, "--cache-dir", cache),
            "pack": ("pack", manifest, "--cache-dir", cache, "-o", image),
            "install": ("install", image, "--into", into),
            "install, there already": ("install", image, "--into", into),
            "verify": ("verify", into),
            "start of the program": ("--version",),
        }
        print(f"{'step':32} {'seconds':>8} {'peak MiB':>9}   result")
        for name, (verb, *rest) in steps.items():
            tail = ["--target", "b200", "--", *serve_args] if verb == "plan" else []
            seconds, memory, output = _measure(*_RUN, verb, *rest, *tail)
            result = output.strip().splitlines()[-1][:60] if output.strip() else ""
            print(f"{name:32} {seconds:8.2f} {memory:9.0f}   {result}", flush=True)
        packed = json.loads(
            _measure(*_RUN, "pack", manifest, "--cache-dir", cache, "-o", image, "--json")[2]
        )
        print(" ".join(f"{name}={value}" for name, value in packed["sizes"].items()))


if __name__ == "__main__":
    main(sys.argv[1:])
