"""Check manifests of deployments with random request streams, and write docs/closure.md's table.

    python benchmarks/closure.py --models model-configs --results DIR [--only NAME …]

Plans and results stay in DIR, and what is there is not done again: `--only` runs a part, without
a run the table is printed of what there is.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

MTP = ("--speculative-config", '{"method":"mtp","num_speculative_tokens":2}')
TRITON = ("--gdn-prefill-backend", "triton")
CACHING = ("--enable-prefix-caching", "--mamba-cache-mode")
FLEET = ("-dp", "8", "--enable-expert-parallel")
DEPLOYMENTS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "397b-dp8": ("b200", "Qwen3.5-397B-A17B-FP8", (*FLEET, *TRITON)),
    "397b-tp8": ("h200", "Qwen3.5-397B-A17B", ("-tp", "8", *TRITON)),
    "9b-mtp": ("h200", "Qwen3.5-9B", ("--enforce-eager", *MTP, *TRITON)),
    "next": ("h200", "Qwen3-Next-80B-A3B-Instruct", ("-tp", "4", *TRITON)),
    "kimi": ("h200", "Kimi-Linear-48B-A3B-Instruct", ("-tp", "4")),
    "olmo": ("h200", "Olmo-Hybrid-7B", TRITON),
    "align": ("h200", "Qwen3.5-9B", (*CACHING, "align", *TRITON)),
    "all": ("h200", "Qwen3.5-9B", (*CACHING, "all", *TRITON)),
    "small": ("h200", "Qwen3.5-0.8B", TRITON),
}


def _prewarm(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "prewarm", *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)


def _run(name: str, models: Path, results: Path, streams: int, seed: int) -> None:
    """Leave the plan and the result of deployment `name` in `results`."""
    target, model, arguments = DEPLOYMENTS[name]
    plan, result, directory = results / f"{name}.yaml", results / f"{name}.json", models / model
    if not plan.exists():
        asked = ("plan", "--target", target, "-o", str(plan), "--", str(directory), *arguments)
        if _prewarm(*asked).returncode:
            return
    if result.exists():
        return
    start = time.perf_counter()
    asked = ("check", str(plan), "--model", str(directory), "--streams", str(streams))
    done = _prewarm(*asked, "--seed", str(seed), "--json")
    if done.returncode in (0, 1):
        found = json.loads(done.stdout) | {"seconds": round(time.perf_counter() - start)}
        result.write_text(json.dumps(found), encoding="utf-8")


def _row(name: str, found: dict[str, object]) -> str:
    target, model, arguments = DEPLOYMENTS[name]
    escapes, before = (
        sum(each["launches"] for each in found[which])  # type: ignore[attr-defined]
        for which in ("escapes", "before_serving")
    )
    numbers = ("streams", "steps", "requests", "preemptions", "prefix_hits", "aborts", "calls")
    cells = (
        f"{model} `{' '.join(arguments)}` {target}",
        *(f"{found[each]:,}" for each in numbers),
        found["planned"],
        escapes,
        f"{found['dead_weight']:.1%}",
        before,
        found["seconds"],
    )
    return f"| {' | '.join(map(str, cells))} |"


_HEAD = (
    "deployment | streams | steps | requests | preemptions | prefix hits | aborts | launches made"
    " | planned | escapes | dead weight | start-up only | seconds"
)


def main() -> None:
    """Run what is asked for and print the table of all there is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=DEPLOYMENTS, default=list(DEPLOYMENTS))
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    given.results.mkdir(parents=True, exist_ok=True)
    for name in given.only:
        _run(name, given.models, given.results, given.streams, given.seed)
    print(f"| {_HEAD} |\n|---|{'---:|' * _HEAD.count('|')}")
    for name in DEPLOYMENTS:
        result = given.results / f"{name}.json"
        if result.exists():
            print(_row(name, json.loads(result.read_text("utf-8"))))


if __name__ == "__main__":
    main()
