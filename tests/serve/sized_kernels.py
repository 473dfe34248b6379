# ruff: noqa: N803, PLR0917  (constexprs are written as Triton's users write them)
"""Autotuned kernels whose launches show a size; what is measured is written down, not timed."""

import triton
import triton.language as tl

MEASURED = []
"""A kernel's name for each benchmark of one of its candidates."""

CANDIDATES = [
    triton.Config({"B": 16}, num_warps=1),
    triton.Config({"B": 32}, num_warps=2),
    triton.Config({"B": 64}, num_warps=4),
]


def measures(name):
    """Return a benchmark after which the first candidate wins."""

    def benchmark(call, quantiles):
        call()
        MEASURED.append(name)
        return [float(len(MEASURED))]

    return benchmark


@triton.heuristics({"VARLEN": lambda args: args["ends"] is not None})
@triton.autotune(CANDIDATES, key=["H", "VARLEN"], do_bench=measures("scale"))
@triton.jit(do_not_specialize=["T"])
def scale(x, ends, T, H: tl.constexpr, B: tl.constexpr, VARLEN: tl.constexpr):
    at = tl.program_id(0) * B + tl.arange(0, B)
    if VARLEN:
        at += tl.load(ends)
    tl.store(x + at, tl.load(x + at, mask=at < T) * H, mask=at < T)


@triton.autotune(CANDIDATES, key=["H"], do_bench=measures("shift"))
@triton.jit
def shift(x, T, H: tl.constexpr, B: tl.constexpr):
    at = tl.arange(0, B)
    tl.store(x + at, H, mask=at < T)


@triton.autotune([triton.Config({}, pre_hook=print)], key=["T"])
@triton.jit
def hooked(x, T):
    tl.store(x, T)


@triton.jit
def untuned(x, T):
    tl.store(x, T)
