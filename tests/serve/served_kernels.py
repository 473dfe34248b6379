# ruff: noqa: N803  (constexprs are written as Triton's users write them)
"""Kernels of a deployment that is not there, importable by name in every process of a test."""

import triton
import triton.language as tl


@triton.jit
def convolve(x, tokens, num_cache_lines: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(x + at, num_cache_lines * 1.0, mask=at < tokens)


@triton.jit
def settle(x, BLOCK: tl.constexpr):
    tl.store(x + tl.arange(0, BLOCK), 1.0)


@triton.jit
def outside(x):
    tl.store(x, 1.0)


def measure(call, quantiles):
    """Return a time without a clock."""
    call()
    return [1.0, 1.0, 1.0]


@triton.autotune(
    [triton.Config({"BLOCK": 16 << n}, num_warps=1 << n) for n in range(3)],
    key=["H"],
    do_bench=measure,
)
@triton.jit
def gate(g, T, H: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(g + at, H * 1.0, mask=at < T)
