"""Plan and check every way of serving one model, and write docs/options.md's table.

    python benchmarks/serving_options.py --models model-configs --results DIR [--only NAME …]

What an option changes is said against the same model served without it. Plans and results stay
in DIR, and what is there is not done again: `--only` runs a part, the table is printed of what
there is. GPU blocks are pinned, so that manifests differ by the option alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from prewarm.core.manifest import Manifest
from prewarm.core.manifest_diff import Change, compare
from prewarm.core.manifest_yaml import read_manifest
from prewarm.core.selection import tuning_id

TARGET = "h200"
PINNED = ("--num-gpu-blocks-override", "3000")
SMALL, EXPERTS = "Qwen3.5-0.8B", "Qwen3.5-35B-A3B"
BASE = "(none)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Way:
    """One way of serving a model."""

    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    model: str = SMALL

    @property
    def text(self) -> str:
        """What is given, as a user writes it."""
        given = (*(f"{name}={value}" for name, value in self.environment.items()), *self.arguments)
        return f"`{' '.join(given)}`" if given else BASE


def _mtp(tokens: int) -> tuple[str, str]:
    config = {"method": "mtp", "num_speculative_tokens": tokens}
    return "--speculative-config", json.dumps(config, separators=(",", ":"))


def _graphs(mode: str) -> tuple[str, str]:
    return "--compilation-config", json.dumps({"cudagraph_mode": mode}, separators=(",", ":"))


def _way(*arguments: str) -> Way:
    return Way(arguments=arguments)


def _with(**environment: str) -> Way:
    return Way(environment=environment)


WAYS: dict[str, Way] = {
    "base": Way(),
    "tp2": _way("-tp", "2"),
    "pp2": _way("-pp", "2"),
    "dp2": _way("-dp", "2"),
    "kv-fp8": _way("--kv-cache-dtype", "fp8"),
    "ssm-bfloat16": _way("--mamba-ssm-cache-dtype", "bfloat16"),
    "ssm-float16": _way("--mamba-ssm-cache-dtype", "float16"),
    "conv-float32": _way("--mamba-cache-dtype", "float32"),
    "align": _way("--enable-prefix-caching", "--mamba-cache-mode", "align"),
    "all": _way("--enable-prefix-caching", "--mamba-cache-mode", "all"),
    "block-size": _way("--block-size", "1056"),
    "model-length": _way("--max-model-len", "4096"),
    "sequences": _way("--max-num-seqs", "7"),
    "one-sequence": _way("--max-num-seqs", "1"),
    "budget": _way("--max-num-batched-tokens", "2048"),
    "whole-prefill": _way("--no-enable-chunked-prefill", "--max-model-len", "8192"),
    "piecewise": _way(*_graphs("PIECEWISE")),
    "full": _way(*_graphs("FULL")),
    "full-decode": _way(*_graphs("FULL_DECODE_ONLY")),
    "no-graphs": _way(*_graphs("NONE")),
    "graph-sizes": _way("--cudagraph-capture-sizes", "1", "2", "4"),
    "eager": _way("--enforce-eager"),
    "mtp1": _way(*_mtp(1)),
    "mtp2": _way(*_mtp(2)),
    "mtp3": _way(*_mtp(3)),
    "ngram": _way(
        "--speculative-config",
        '{"method":"ngram","num_speculative_tokens":3,"prompt_lookup_max":4}',
    ),
    "mtp2-align": _way(*_mtp(2), "--enable-prefix-caching"),
    "mtp2-eager": _way(*_mtp(2), "--enforce-eager"),
    "mtp2-dp2": _way(*_mtp(2), "-dp", "2"),
    "mtp1-kv-fp8": _way(*_mtp(1), "--kv-cache-dtype", "fp8"),
    "lora": _way("--enable-lora"),
    "text-only": _way("--language-model-only"),
    "flashinfer": _way("--gdn-prefill-backend", "flashinfer"),
    "float16": _way("--dtype", "float16"),
    "no-async": _way("--no-async-scheduling"),
    "unoptimised": _way("-O0"),
    "throughput": _way("--performance-mode", "throughput"),
    "answers": _way(
        *("--reasoning-parser", "qwen3"),
        *("--enable-auto-tool-choice", "--tool-call-parser", "qwen3_coder"),
    ),
    "sleep": _way("--enable-sleep-mode"),
    "unpacked": _with(VLLM_ENABLE_FLA_PACKED_RECURRENT_DECODE="0"),
    "first-config": _with(VLLM_TRITON_FORCE_FIRST_CONFIG="1"),
    "tril": _with(FLA_TRIL_PRECISION="tf32"),
    "tma": _with(FLA_USE_TMA="1"),
    "experts": Way(model=EXPERTS),
    "experts-dp2": Way(model=EXPERTS, arguments=("-dp", "2", "--enable-expert-parallel")),
    "experts-deepep": Way(
        model=EXPERTS,
        arguments=(
            *("-dp", "2", "--enable-expert-parallel"),
            *("--all2all-backend", "deepep_low_latency"),
        ),
    ),
    "experts-balanced": Way(
        model=EXPERTS, arguments=("-dp", "2", "--enable-expert-parallel", "--enable-eplb")
    ),
    "experts-tp8": Way(model=EXPERTS, arguments=("-tp", "8")),
}
_BASES = {SMALL: "base", EXPERTS: "experts"}


def _prewarm(way: Way, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "prewarm", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, **way.environment},
    )


def _serve_args(way: Way, models: Path) -> tuple[str, ...]:
    backend = (
        () if "--gdn-prefill-backend" in way.arguments else ("--gdn-prefill-backend", "triton")
    )
    return (str(models / way.model), *backend, *PINNED, *way.arguments)


def _run(name: str, given: argparse.Namespace) -> None:
    """Leave plan, result and seconds of the way `name` in the directory of results."""
    way = WAYS[name]
    plan, result = given.results / f"{name}.yaml", given.results / f"{name}.json"
    if result.exists():
        return
    start = time.perf_counter()
    asked = ("plan", "-q", "--target", TARGET, "--closure", str(given.closure), "-o", str(plan))
    if _prewarm(way, *asked, "--", *_serve_args(way, given.models)).returncode:
        return
    planned = time.perf_counter()
    asked = ("check", "-q", str(plan), "--model", str(given.models / way.model), "--json")
    done = _prewarm(way, *asked, "--streams", str(given.streams), "--seed", str(given.seed))
    if done.returncode in (0, 1):
        seconds = {"plan": planned - start, "check": time.perf_counter() - planned}
        found = json.loads(done.stdout) | {"seconds": {k: round(v) for k, v in seconds.items()}}
        result.write_text(json.dumps(found), encoding="utf-8")


def _row(name: str, results: Path) -> str:
    found = json.loads((results / f"{name}.json").read_text("utf-8"))
    way, manifest = WAYS[name], read_manifest(results / f"{name}.yaml")
    keys = {
        tuning_id(kernel.name, one.tuning_key)
        for kernel in manifest.kernels
        if kernel.tuned_by is not None
        for one in kernel.specializations
    }
    cells = (
        way.model,
        way.text,
        found["planned"],
        len(manifest.kernels),
        len(keys),
        found["streams"],
        f"{found['steps']:,}",
        f"{found['calls']:,}",
        sum(each["launches"] for each in found["escapes"]),
        f"{found['dead_weight']:.1%}",
        found["seconds"]["plan"],
        found["seconds"]["check"],
        _against(results / f"{_BASES[way.model]}.yaml", manifest),
    )
    return f"| {' | '.join(map(str, cells))} |"


def _against(base: Path, manifest: Manifest) -> str:
    """Return how the kernels of `manifest` differ from those planned at `base`, in a few words."""
    if not base.exists():
        return ""
    known = read_manifest(base)
    changes = [each for each in compare(known, manifest) if each.section.startswith("kernel ")]
    if not changes:
        return "nothing" if known.digest != manifest.digest else ""
    return "; ".join(filter(None, (_kernels(changes), _fields(changes), _more(changes))))


def _function(change: Change) -> str:
    return change.section.rpartition(":")[2]


def _kernels(changes: list[Change]) -> str:
    new = [
        f"+`{_function(each)}`"
        for each in changes
        if each.item == "kernel" and "absent" in each.old
    ]
    gone = [
        f"−`{_function(each)}`"
        for each in changes
        if each.item == "kernel" and "absent" in each.new
    ]
    return ", ".join((*new, *gone))


def _fields(changes: list[Change], most: int = 5) -> str:
    """Return the arguments that changed, of most kernels first, and the first one's values."""
    fields: dict[str, list[Change]] = {}
    for each in changes:
        if each.item not in ("kernel", "specialisation") and not each.item.startswith("tuning key"):
            fields.setdefault(each.item, []).append(each)
    ordered = sorted(fields, key=lambda name: (-len(fields[name]), name))
    texts = [f"`{name}` {fields[name][0].old} → {fields[name][0].new}" for name in ordered[:most]]
    rest = len(ordered) - most
    return ", ".join((*texts, *([f"{rest} more"] if rest > 0 else [])))


def _more(changes: list[Change]) -> str:
    """Return how many specialisations of which kernels are there now, and not before."""
    counts: Counter[str] = Counter()
    for each in changes:
        if each.item == "specialisation":
            sign = "+" if "absent" in each.old else "−"
            counts[f"{sign}%d of `{_function(each)}`"] += each.count
    return ", ".join(text % count for text, count in counts.items())


_HEAD = (
    "model | given | launches | kernels | tuned keys | streams | steps | launches made | escapes"
    " | dead weight | plan, s | check, s | differs in"
)


def main() -> None:
    """Run what is asked for and print the table of all there is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=WAYS, default=list(WAYS))
    parser.add_argument("--closure", type=int, default=50)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    given.results.mkdir(parents=True, exist_ok=True)
    for name in given.only:
        _run(name, given)
    print(f"| {_HEAD} |\n|---|---|{'---:|' * (_HEAD.count('|') - 2)}---|")
    for name in WAYS:
        if (given.results / f"{name}.json").exists():
            print(_row(name, given.results))


if __name__ == "__main__":
    main()
