"""Time Triton's Autotuner.run against the choice by size, side by side; nothing is launched.

    python benchmarks/size_lookup.py [--rounds N] [--calls N]

The launches are those of one GDN prefill of vLLM on a virtual GPU; what the autotuner wraps is
replaced by nothing. Prints nanoseconds of one launch, the least of all rounds: `more` is what
the choice adds to Triton's own, `new size` a launch of a size that was never seen.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prewarm.core.manifest import Candidate
from prewarm.core.selection import Choice
from prewarm.core.target import target_named
from prewarm.core.tunings import SizedBy, SizeWinner
from prewarm.device.libcuda import load_stub
from prewarm.serve import sizes

HEADS, DIM, CHUNK = (16, 64), 128, 64
TOKENS, SEQUENCES = (64, 1024, 2048, 4096, 8192, 16384), (1, 8)
STEP = 3000, 3
"""Tokens and sequences of the step: between the measured ones."""


@dataclasses.dataclass(frozen=True)
class Call:
    """One launch of an autotuned kernel, as it reaches the autotuner."""

    kernel: str
    tuner: Any
    key: Mapping[str, Any]
    candidates: Sequence[Candidate]
    args: tuple[Any, ...]
    keywords: dict[str, Any]


def record() -> list[Call]:
    """Return the autotuned launches of one prefill of vLLM on a virtual H100."""
    target = target_named("h100")
    load_stub()
    virtual_torch: Any = importlib.import_module("prewarm.device.virtual_torch")
    virtual_torch.install(target)
    seam: Any = importlib.import_module("prewarm.device.triton_seam")
    seam.activate_virtual_driver(target)
    calls: list[Call] = []

    def autotune(tuner: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        key = dict(seam.tuning_key_of(tuner, args, keywords))
        found = Call(seam.kernel_name(tuner), tuner, key, seam.candidates_of(tuner), args, keywords)
        calls.append(found)

    with seam.intercepted(lambda *_: None, autotune):
        _prefill()
    # Serving has no mode through which every `.dtype` goes.
    virtual_torch.OnCpu().__exit__(None, None, None)
    return calls


def _prefill() -> None:
    torch: Any = importlib.import_module("torch")
    operators: Any = importlib.import_module("vllm.model_executor.layers.fla.ops")
    index: Any = importlib.import_module("vllm.model_executor.layers.fla.ops.index")
    (key_heads, value_heads), (tokens, sequences) = HEADS, STEP
    ends = torch.arange(0, tokens + 1, tokens // sequences, dtype=torch.int32)

    def zeros(heads: int, *shape: int, dtype: Any = torch.bfloat16) -> Any:
        return torch.zeros((1, tokens, heads, *shape), dtype=dtype)

    operators.chunk_gated_delta_rule(
        q=zeros(key_heads, DIM),
        k=zeros(key_heads, DIM),
        v=zeros(value_heads, DIM),
        g=zeros(value_heads, dtype=torch.float32),
        beta=zeros(value_heads, dtype=torch.float32),
        initial_state=torch.zeros(sequences, value_heads, DIM, DIM),
        output_final_state=True,
        cu_seqlens=ends,
        chunk_indices=index.prepare_chunk_indices(ends, CHUNK),
        chunk_offsets=index.prepare_chunk_offsets(ends, CHUNK),
    )


def choice_of(call: Call) -> Choice:
    """Return a choice whose winners go through the candidates, size after size."""
    measured = [(tokens, n) for tokens in TOKENS for n in SEQUENCES]
    winners = tuple(
        SizeWinner(tokens=tokens, sequences=n, config=call.candidates[at % len(call.candidates)])
        for at, (tokens, n) in enumerate(measured)
    )
    by = SizedBy(tokens="T", sequences="cu_seqlens")
    return Choice(kernel=call.kernel, key=dict(call.key), sized_by=by, sizes=winners)


def timed(run: Callable[[], object], calls: int) -> float:
    """Return the nanoseconds of one call."""
    began = time.perf_counter_ns()
    for _ in range(calls):
        run()
    return (time.perf_counter_ns() - began) / calls


def main() -> None:
    """Time every kernel's autotuner both ways in turns, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=101)
    parser.add_argument("--calls", type=int, default=300)
    asked = parser.parse_args()
    os.environ["TRITON_CACHE_DIR"] = tempfile.mkdtemp(prefix="prewarm-lookup-")
    found = record()
    choices = [choice_of(call) for call in found]
    began = time.perf_counter_ns()
    installed = sizes.install(choices)
    took = (time.perf_counter_ns() - began) / 1e6
    print(f"Python {sys.version.split()[0]}; install: {took:.2f} ms; left: {installed.left}")
    print(f"{'ns of a launch':>48} {'Triton':>8} {'by size':>8} {'more':>8} {'new size':>9}")
    for call in found:
        print(f"{call.kernel.partition(':')[2]:>48} {_row(call, asked.rounds, asked.calls)}")


def _row(call: Call, rounds: int, calls: int) -> str:
    tuner = call.tuner
    tuner.fn.run = lambda *args, **keywords: None
    type(tuner)._bench = lambda *args, **keywords: [1.0]  # noqa: SLF001
    own = type(tuner).run

    def triton() -> None:
        own(tuner, *call.args, **call.keywords)

    def by_size() -> None:
        tuner.run(*call.args, **call.keywords)

    triton()
    tokens = iter(range(1, 1 << 30))

    def new_size() -> None:
        tuner.run(*call.args, **{**call.keywords, "T": next(tokens)})

    ways = (triton, by_size, new_size)
    times = [[timed(way, calls) for way in ways] for _ in range(rounds)]
    before, after, new = (min(column) for column in zip(*times, strict=True))
    return f"{before:8.0f} {after:8.0f} {after - before:+8.0f} {new:9.0f}"


if __name__ == "__main__":
    main()
