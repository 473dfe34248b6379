"""Compile, or look up, four entries with Triton and no GPU; print a JSON line for each.

Run as `python kernels.py CACHE_DIR`, alone in its process.
"""

import json
import os
import sys

os.environ["TRITON_CACHE_DIR"] = sys.argv[1]

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def add(x, y, o, n, block: tl.constexpr):
    i = tl.program_id(0) * block + tl.arange(0, block)
    tl.store(o + i, tl.load(x + i, i < n) + tl.load(y + i, i < n), i < n)


@triton.jit
def scale(x, y, o, n, block: tl.constexpr):
    i = tl.program_id(0) * block + tl.arange(0, block)
    # exp and log make libdevice part of the options that are written down
    tl.store(o + i, tl.exp(tl.load(x + i, i < n)) * tl.log(tl.load(y + i, i < n)), i < n)


seen = []
triton.knobs.compilation.listener = lambda **found: seen.append(found["cache_hit"])
for function, size in [(add, 64), (add, 128), (add, 256), (scale, 64)]:
    signature = {"x": "*fp32", "y": "*fp32", "o": "*fp32", "n": "i32", "block": "constexpr"}
    source = ASTSource(function, signature, {(4,): size}, {(0,): [["tt.divisibility", 16]]})
    made = triton.compile(source, target=GPUTarget("cuda", 100, 32))
    line = {"kernel": function.__name__, "block": size, "hash": made.hash, "hit": seen[-1]}
    sys.stdout.write(json.dumps(line) + "\n")
