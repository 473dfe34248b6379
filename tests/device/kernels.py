# ruff: noqa: N803, PLR0917  (constexprs are written as Triton's users write them)
"""Kernels whose arguments show every way in which Triton specializes one."""

import triton
import triton.language as tl


@triton.jit
def double(x):
    return x * 2


@triton.jit
def halve(x):
    return x / 2


@triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=["gap"])
def everything(
    out,
    maybe,
    n,
    rows,
    gap,
    scale,
    flag,
    wide: tl.int64,
    BLOCK: tl.constexpr,
    MODE: tl.constexpr,
    RATIO: tl.constexpr,
    NEGATE: tl.constexpr,
    DTYPE: tl.constexpr,
    APPLY: tl.constexpr,
):
    offsets = tl.arange(0, BLOCK)
    value = offsets.to(tl.float32) * scale * RATIO + n + rows + gap + wide
    if NEGATE:
        value = -value
    if MODE == "D":
        value += 1
    if maybe is not None:
        value += tl.load(maybe + offsets)
    if flag:
        value += 1
    tl.store(out + offsets, APPLY(value).to(DTYPE))


@triton.constexpr_function
def _die():
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


@triton.jit
def kills_its_compiler(out):
    _die()
    tl.store(out, 1.0)


@triton.jit
def never_compiles(out, BLOCK: tl.constexpr):
    tl.static_assert(BLOCK == 3, "BLOCK must be three")
    tl.store(out, 1.0)


def not_a_kernel():
    return None


def _configs(**more):
    return [triton.Config({"BLOCK": block}, num_warps=4, **more) for block in (16, 32, 64)]


@triton.autotune(configs=_configs(), key=["n", "MODE", "SCALE", "FLAG", "n"])
@triton.heuristics({"WIDE": lambda args: args["n"] > 16})
@triton.jit
def tuned(out, n, maybe, SCALE, MODE: tl.constexpr, FLAG, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    tl.store(out + tl.arange(0, BLOCK), n * 1.0)


@triton.autotune(
    configs=_configs(),
    key=["n"],
    prune_configs_by={"early_config_prune": lambda configs, args, **_: configs[1:]},
)
@triton.jit
def pruned(out, n, BLOCK: tl.constexpr):
    tl.store(out + tl.arange(0, BLOCK), n * 1.0)


@triton.autotune(
    configs=_configs(), key=["n"], prune_configs_by={"perf_model": lambda **_: 1, "top_k": 2}
)
@triton.jit
def modelled(out, n, BLOCK: tl.constexpr):
    tl.store(out + tl.arange(0, BLOCK), n * 1.0)


@triton.autotune(configs=_configs(pre_hook=lambda args: None), key=["n"])
@triton.jit
def hooked(out, n, BLOCK: tl.constexpr):
    tl.store(out + tl.arange(0, BLOCK), n * 1.0)
