"""Plan deployments with releases of vLLM, check them with streams, and print the docs' tables.

    PYTHON_OF_A_RELEASE benchmarks/releases.py run --results DIR [--only NAME …]
    python benchmarks/releases.py table --results DIR
    python benchmarks/releases.py kernels --results DIR --name NAME

`run` leaves DIR/RELEASE/NAME.yaml and .json and goes on when one fails: what was said then stands
in the JSON. What is there is not done again. It ends with 1 if one failed or a check found escapes.
`kernels` says what an upgrade from each release to the next rebuilds of one deployment.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from prewarm.core.manifest_yaml import read_manifest
from prewarm.core.selection import tuning_id

MTP = ("--speculative-config", '{"method":"mtp","num_speculative_tokens":2}')
TRITON = ("--gdn-prefill-backend", "triton")
BFLOAT16 = ("--hf-overrides", '{"dtype":"bfloat16"}')
"""What `model-configs` leaves out of this config, and vLLM up to 0.20 reads there."""
FLEET = ("-dp", "8", "--enable-expert-parallel")
DEPLOYMENTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "0.8b": ("Qwen3.5-0.8B", TRITON),
    "9b": ("Qwen3.5-9B", TRITON),
    "397b-dp8": ("Qwen3.5-397B-A17B-FP8", (*FLEET, *TRITON)),
    "next": ("Qwen3-Next-80B-A3B-Instruct", ("-tp", "4", *TRITON)),
    "9b-mtp": ("Qwen3.5-9B", (*MTP, *TRITON)),
    "kimi": ("Kimi-Linear-48B-A3B-Instruct", ("-tp", "4", *BFLOAT16)),
    "olmo": ("Olmo-Hybrid-7B", TRITON),
    "9b-lora": ("Qwen3.5-9B", ("--enable-lora", *TRITON)),
    "9b-pp2": ("Qwen3.5-9B", ("-pp", "2", *TRITON)),
    "9b-fp8-kv": ("Qwen3.5-9B", ("--kv-cache-dtype", "fp8", *TRITON)),
}
EVERYWHERE = ("0.8b", "9b", "397b-dp8", "next", "9b-mtp", "kimi", "olmo", "9b-pp2")
"""What is tried with each release where nothing else is asked for."""
_UNKNOWN_OPTION = "unrecognized arguments: --gdn-prefill-backend"


def _prewarm(*arguments: str) -> tuple[subprocess.CompletedProcess[str], float]:
    command = [sys.executable, "-m", "prewarm", *arguments]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done, round(time.perf_counter() - start, 1)


def _failure(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    said = [line for line in done.stderr.splitlines() if line.startswith("prewarm: ")]
    return {"exit": done.returncode, "said": (said or done.stderr.splitlines() or [""])[-1]}


def _planned(
    out: Path, directory: Path, arguments: tuple[str, ...], given: argparse.Namespace
) -> dict[str, Any]:
    """Return how planning went: with the release's own prefill backend where it has no choice."""
    how = ("--target", given.target, "--closure", str(given.closure), "-o", str(out))
    options = ("plan", *how, "--", str(directory))
    done, seconds = _prewarm(*options, *arguments)
    if done.returncode and _UNKNOWN_OPTION in done.stderr:
        arguments = tuple(each for each in arguments if each not in TRITON)
        done, seconds = _prewarm(*options, *arguments)
    plan = {"arguments": arguments, "plan_seconds": seconds}
    return plan | (_failure(done) if done.returncode else {"exit": 0})


def _run(name: str, given: argparse.Namespace) -> bool:
    """Leave the plan and the result of deployment `name`; return whether nothing failed."""
    model, arguments = DEPLOYMENTS[name]
    release = metadata.version("vllm")
    at = given.results / release
    at.mkdir(parents=True, exist_ok=True)
    plan, result, directory = at / f"{name}.yaml", at / f"{name}.json", given.models / model
    if not result.exists():
        found = {"release": release, "model": model, "target": given.target}
        found |= {each: metadata.version(each) for each in ("torch", "triton")}
        found |= _planned(plan, directory, arguments, given)
        if found["exit"] == 0 and given.streams:
            found |= _checked(plan, directory, given)
        result.write_text(json.dumps(found, indent=1), encoding="utf-8")
    found = json.loads(result.read_text("utf-8"))
    print(f"{release} {name}: {found.get('said') or _outcome(found)}", file=sys.stderr)
    return bool(found["exit"] == 0)


def _checked(plan: Path, directory: Path, given: argparse.Namespace) -> dict[str, Any]:
    streams = ("--streams", str(given.streams), "--seed", str(given.seed))
    done, seconds = _prewarm("check", str(plan), "--model", str(directory), *streams, "--json")
    if done.returncode not in (0, 1):
        return _failure(done)
    return {"check": json.loads(done.stdout), "exit": done.returncode, "check_seconds": seconds}


def _outcome(found: dict[str, Any]) -> str:
    return f"{_escapes(found['check'])} escapes" if "check" in found else "planned"


def _escapes(check: dict[str, Any]) -> int:
    return sum(each["launches"] for each in check["escapes"])


def _counted(plan: Path) -> tuple[int, int, int]:
    """Return how many launches, kernels and tuning keys the manifest `plan` has."""
    manifest = read_manifest(plan)
    keys = {
        tuning_id(kernel.name, one.tuning_key)
        for kernel in manifest.kernels
        for one in kernel.specializations
        if one.tuning_key
    }
    return sum(1 for _ in manifest.launches()), len(manifest.kernels), len(keys)


_HEAD = (
    "vLLM | deployment, b200 | launches | kernels | tuned keys | streams | escapes | dead weight"
    " | plan, s | check, s"
)


def _row(result: Path) -> str:
    found = json.loads(result.read_text("utf-8"))
    arguments = " ".join(found["arguments"])
    said = f"{found['model']} `{arguments}`".removesuffix(" ``")
    plan = result.with_suffix(".yaml")
    cells: list[object] = [found["release"], said]
    if not plan.exists():
        cells += [f"exit {found['exit']}: {found['said']}", *[""] * 7]
        return f"| {' | '.join(map(str, cells))} |"
    cells += _counted(plan)
    if "check" in found:
        check = found["check"]
        cells += [check["streams"], _escapes(check), f"{check['dead_weight']:.1%}"]
    else:
        cells += ["0", found.get("said", ""), ""]
    cells += [round(found["plan_seconds"]), round(found.get("check_seconds", 0)) or ""]
    return f"| {' | '.join(map(str, cells))} |"


def _releases(results: Path) -> list[Path]:
    """Return the directories of releases, oldest first."""
    return sorted(
        (each for each in results.iterdir() if each.is_dir()),
        key=lambda each: tuple(int(part) for part in re.findall(r"\d+", each.name)[:3]),
    )


def _table(given: argparse.Namespace) -> bool:
    print(f"| {_HEAD} |\n|---|---|{'---:|' * (_HEAD.count('|') - 1)}")
    for name in DEPLOYMENTS:
        for release in _releases(given.results):
            result = release / f"{name}.json"
            if result.exists():
                print(_row(result))
    return True


def _kernels(given: argparse.Namespace) -> bool:
    """Print what `prewarm diff` says of deployment `name` from each release to the next."""
    print("| from | to | compile again | tune again | kernels |\n|---|---|---|---|---|")
    planned = [each / f"{given.name}.yaml" for each in _releases(given.results)]
    for old, new in itertools.pairwise(each for each in planned if each.exists()):
        done, _ = _prewarm("diff", str(old), str(new), "--json")
        if done.returncode not in (0, 1):
            sys.exit(done.stderr)
        found = json.loads(done.stdout)["upgrade"]
        cells = (
            old.parent.name,
            new.parent.name,
            f"{found['compile_again']} of {found['entries']}{_because(found.get('everything'))}",
            f"{found['tune_again']} of {len(found['tunings'])}",
            "; ".join(_change(each) for each in found["kernels"] if _change(each)),
        )
        print(f"| {' | '.join(cells)} |")
    return True


def _because(everything: list[str] | None) -> str:
    return f": {' and '.join(everything)}" if everything else ""


def _change(kernel: dict[str, Any]) -> str:
    """Return `KERNEL: 2 change, 1 come`, empty where all of its entries stay."""
    counts = ((how, kernel.get(how, 0)) for how in ("change", "come", "go"))
    said = ", ".join(f"{count} {how}" for how, count in counts if count)
    return f"`{kernel['kernel'].rpartition(':')[2]}` {said}" if said else ""


def main() -> int:
    """Do what is asked for; return 1 where a deployment failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("run", "table", "kernels"))
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--models", type=Path, default=Path("model-configs"))
    parser.add_argument("--target", default="b200")
    parser.add_argument("--only", nargs="*", choices=DEPLOYMENTS, default=list(EVERYWHERE))
    parser.add_argument("--closure", type=int, default=50)
    parser.add_argument("--streams", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--name", choices=DEPLOYMENTS, default="0.8b")
    given = parser.parse_args()
    if given.what == "run":
        held = [_run(name, given) for name in given.only]
        return int(not all(held))
    return int(not {"table": _table, "kernels": _kernels}[given.what](given))


if __name__ == "__main__":
    sys.exit(main())
