"""One process of `prefill_against_vllm.py`: its first prefill, or its times at many sizes.

python benchmarks/prefill_process.py first|times KEY_HEADS/VALUE_HEADS INSTALLED SIZE... [--by-size]

SIZE is TOKENSxSEQUENCES. The environment is final when this starts: it names the cache. Prints
one line of JSON.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import triton
import vllm.model_executor.layers.fla.ops as operators
from torch.nn.functional import logsigmoid, normalize
from triton import knobs
from triton.backends.nvidia.compiler import get_ptxas_version
from triton.runtime import build
from triton.runtime.autotuner import Autotuner
from triton.runtime.cache import triton_key
from triton.runtime.jit import KernelInterface
from vllm.model_executor.layers.fla.ops.index import (
    prepare_chunk_indices,
    prepare_chunk_offsets,
)

from prewarm.core.cache import CACHE_MANIFEST, CACHE_SCHEMA, CacheManifest
from prewarm.core.document import parse_json
from prewarm.device.ptxas import choose_ptxas

Heads = tuple[int, int]
"""Key heads and value heads of one GPU."""
Size = tuple[int, int]
"""Tokens of a step and its sequences."""
Result = dict[str, Any]

RESULT = "RESULT "
HEAD_DIM, CHUNK = 128, 64
WARM_UP, CHECKED = (64, 1), (256, 1)
"""The sizes of vLLM's own warm-up and of the comparison with float64."""
TOKENS_OF_A_GRAPH, MOST_CALLS = 16384, 16
ROUNDS, SETTLING = 30, 0.5


class Counts:
    """What Triton does in this process, by kernel."""

    def __init__(self) -> None:
        self._now: collections.Counter[tuple[str, str]] = collections.Counter()
        bench, build_module = Autotuner._bench, build._build  # noqa: SLF001

        def listen(*, src: Any, cache_hit: bool, **_: object) -> None:
            self._now["hits" if cache_hit else "compiles", src.fn.__qualname__] += 1

        def counting_bench(tuner: Any, *args: Any, **keywords: Any) -> Any:
            self._now["benchmarks", tuner.base_fn.__qualname__] += 1
            return bench(tuner, *args, **keywords)

        def counting_build(name: str, *args: Any, **keywords: Any) -> Any:
            self._now["host modules", name] += 1
            return build_module(name, *args, **keywords)

        knobs.compilation.listener = listen
        Autotuner._bench = counting_bench  # noqa: SLF001
        build._build = counting_build  # noqa: SLF001

    def take(self) -> dict[str, dict[str, int]]:
        """Return what to how often by kernel, since the last call."""
        taken: dict[str, dict[str, int]] = {
            what: {} for what in ("hits", "compiles", "benchmarks", "host modules")
        }
        for (what, kernel), number in sorted(self._now.items()):
            taken[what][kernel] = number
        self._now.clear()
        return taken


def main() -> None:
    """Measure what the arguments say and print it."""
    began = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("first", "times"))
    parser.add_argument("heads", type=lambda text: tuple(map(int, text.split("/"))))
    parser.add_argument("installed", type=Path)
    parser.add_argument("sizes", type=lambda text: tuple(map(int, text.split("x"))), nargs="+")
    parser.add_argument("--by-size", action="store_true")
    asked = parser.parse_args()

    counts = Counts()
    _resolve_ptxas(asked.installed)
    if asked.by_size:
        _install_sizes(asked.installed)
    torch.zeros(1, device="cuda")
    torch.cuda.synchronize()
    result: Result = {"device": torch.cuda.get_device_name(0), "counts of the start": counts.take()}
    result["seconds to start"] = time.perf_counter() - began
    with torch.inference_mode():
        if asked.what == "first":
            result |= _first(asked.heads, asked.sizes[0], counts)
        else:
            result |= _measure(asked.heads, asked.sizes, counts)
    result["tuned"] = {
        name: {str(key): str(config) for key, config in tuner.cache.items()}
        for name, tuner in _tuners().items()
    }
    result["seconds"] = time.perf_counter() - began
    sys.stdout.write(f"\n{RESULT}{json.dumps(result)}\n")


def _resolve_ptxas(installed: Path) -> None:
    """Let Triton resolve the assembler whose version is in the keys of the `installed` cache."""
    path = installed.resolve().parent / CACHE_MANIFEST
    made = parse_json(path.read_bytes(), CacheManifest, CACHE_SCHEMA, str(path))
    choose_ptxas(made.toolchain.ptxas, made.target_arch)


def _install_sizes(installed: Path) -> None:
    from prewarm.serve import sizes  # noqa: PLC0415 (only one of the variants has it)

    sizes.install(sizes.choices_of(installed))


def _first(heads: Heads, size: Size, counts: Counts) -> Result:
    call = _prefill(heads, size)
    began = time.perf_counter()
    # Once a process, whichever kernel comes first, Triton hashes itself and runs ptxas --version.
    triton_key()
    get_ptxas_version(triton.runtime.driver.active.get_current_target().arch)
    key = (time.perf_counter() - began) * 1000
    with _loads() as loads:
        first = _wall_ms(call)
    return {
        "key ms": key,
        "first ms": first,
        "load ms": sum(loads),
        "counts": counts.take(),
        "second ms": _wall_ms(call),
        "counts of the second": counts.take(),
    }


@contextlib.contextmanager
def _loads() -> Iterator[list[float]]:
    """Yield the milliseconds of each cubin that the driver loads in the block."""
    utilities = triton.runtime.driver.active.utils
    load, taken = utilities.load_binary, []

    def loading(*args: Any) -> Any:
        began = time.perf_counter()
        loaded = load(*args)
        taken.append((time.perf_counter() - began) * 1000)
        return loaded

    utilities.load_binary = loading
    try:
        yield taken
    finally:
        utilities.load_binary = load


def _wall_ms(call: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) * 1000


def _measure(heads: Heads, sizes: list[Size], counts: Counts) -> Result:
    result: Result = {
        "warm-up ms": _wall_ms(_prefill(heads, WARM_UP, prepared=False)),
        "counts of the warm-up": counts.take(),
        "error": _error(heads),
    }
    calls = {size: _prefill(heads, size) for size in sizes}  # a graph does not hold its inputs
    graphs, configs = {}, {}
    for size, call in calls.items():
        call()
        configs[_named(size)] = {n: str(tuner.best_config) for n, tuner in _tuners().items()}
        graphs[size] = _captured(call, _calls(size))
    times = {_named(size): each for size, each in _times(graphs).items()}
    return {**result, "times": times, "configs": configs, "counts": counts.take()}


def _named(size: Size) -> str:
    return "x".join(map(str, size))


def _calls(size: Size) -> int:
    return max(1, min(MOST_CALLS, TOKENS_OF_A_GRAPH // size[0]))


def _captured(call: Callable[[], object], calls: int) -> Any:
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    return graph


def _times(graphs: Mapping[Size, Any]) -> dict[Size, list[float]]:
    """Return the microseconds of one call in each round; a round shuffles the sizes."""
    end = time.monotonic() + SETTLING
    while time.monotonic() < end:
        for graph in graphs.values():
            graph.replay()
        torch.cuda.synchronize()
    marks: dict[Size, list[tuple[Any, Any]]] = {size: [] for size in graphs}
    source = random.Random(0)  # noqa: S311 (reproducible, not secret)
    for _ in range(ROUNDS):
        for size in source.sample(list(graphs), len(graphs)):
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graphs[size].replay()
            stop.record()
            marks[size].append((start, stop))
    torch.cuda.synchronize()
    return {
        size: [start.elapsed_time(stop) * 1000 / _calls(size) for start, stop in pairs]
        for size, pairs in marks.items()
    }


def _tuners() -> dict[str, Any]:
    """Return the autotuners of vLLM's operators that were called, by kernel."""
    modules = [m for n, m in list(sys.modules.items()) if n.startswith(operators.__name__)]
    functions = [each for module in modules for each in list(vars(module).values())]
    layers = [layer for function in functions for layer in _layers(function)]
    called = [
        each for each in layers if isinstance(each, Autotuner) and hasattr(each, "best_config")
    ]
    return {each.base_fn.__qualname__: each for each in called}


def _layers(function: Any) -> Iterator[Any]:
    while isinstance(function, KernelInterface):
        yield function
        function = function.fn


# --- one prefill ---------------------------------------------------------------------------


def _inputs(heads: Heads, size: Size) -> dict[str, Any]:
    """Return the tensors as vLLM's layer has them after `fused_post_conv_prep`."""
    (key_heads, value_heads), (tokens, sequences) = heads, size
    generator = torch.Generator("cuda").manual_seed(tokens + sequences)

    def normal(*shape: int, dtype: Any = torch.bfloat16) -> Any:
        return torch.randn(shape, generator=generator, device="cuda", dtype=dtype)

    state = normal(sequences, value_heads, HEAD_DIM, HEAD_DIM, dtype=torch.float32)
    return {
        "q": normalize(normal(1, tokens, key_heads, HEAD_DIM), dim=-1),
        "k": normalize(normal(1, tokens, key_heads, HEAD_DIM), dim=-1),
        "v": normal(1, tokens, value_heads, HEAD_DIM),
        "g": logsigmoid(normal(1, tokens, value_heads, dtype=torch.float32) + 3),
        "beta": normal(1, tokens, value_heads, dtype=torch.float32).sigmoid(),
        "initial_state": state * 0.1,
    }


def _prefill(heads: Heads, size: Size, *, prepared: bool = True) -> Callable[[], Any]:
    """Return the call that vLLM's layer makes; `prepared` has what its metadata builder adds."""
    tokens, sequences = size
    ends = torch.arange(0, tokens + 1, tokens // sequences, dtype=torch.int32)
    chunks = {
        "chunk_indices": prepare_chunk_indices(ends, CHUNK).to("cuda"),
        "chunk_offsets": prepare_chunk_offsets(ends, CHUNK).to("cuda"),
    }
    return functools.partial(
        operators.chunk_gated_delta_rule,
        **_inputs(heads, size),
        **(chunks if prepared else {}),
        cu_seqlens=ends.to("cuda"),
        output_final_state=True,
        use_qk_l2norm_in_kernel=False,
    )


def _error(heads: Heads) -> float:
    """Return the relative error of output and last state against the recurrence in float64."""
    out, last = _prefill(heads, CHECKED)()
    wanted, wanted_last = _recurrence(**_inputs(heads, CHECKED))
    return max(_relative(out, wanted), _relative(last, wanted_last))


def _recurrence(*, q: Any, k: Any, v: Any, g: Any, beta: Any, initial_state: Any) -> Any:
    groups = v.shape[2] // q.shape[2]
    q, k = (x[0].double().repeat_interleave(groups, dim=1) for x in (q, k))
    v, g, beta = (x[0].double() for x in (v, g, beta))
    state = initial_state[0].double()  # value by key
    outs = []
    for t in range(v.shape[0]):
        state = state * g[t].exp()[:, None, None]
        wrong = (v[t] - (state * k[t][:, None, :]).sum(-1)) * beta[t][:, None]
        state = state + wrong[:, :, None] * k[t][:, None, :]
        outs.append((state * q[t][:, None, :]).sum(-1) * HEAD_DIM**-0.5)
    return torch.stack(outs)[None], state[None]


def _relative(found: Any, wanted: Any) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


if __name__ == "__main__":
    main()
