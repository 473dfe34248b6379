"""Record the launches of vLLM's GDN prefill on a virtual GPU: `record_sample.py TARGET OUT [all]`.

A small stand-in for `prewarm plan`, so that the compiler is tested apart from the trace.
"""

import importlib
import os
import sys
import tempfile
from pathlib import Path

from prewarm.core.digest import digest_of
from prewarm.core.manifest import (
    Deployment,
    Kernel,
    Launch,
    Manifest,
    Model,
    Specialization,
    Trace,
)
from prewarm.core.manifest_yaml import write_manifest
from prewarm.core.target import target_named
from prewarm.device.libcuda import load_stub

FEW = {"chunk_local_cumsum_scalar_kernel": 2, "l2norm_fwd_kernel2": 1, "chunk_fwd_kernel_o": 2}
"""Kernel to the number of its launches that the small sample keeps."""


def record(target_name: str) -> tuple[list[Launch], object]:
    target = target_named(target_name)
    load_stub()
    importlib.import_module("prewarm.device.virtual_torch").install(target)
    from prewarm.device import triton_seam

    triton_seam.activate_virtual_driver(target)
    import torch
    from triton.runtime.autotuner import Autotuner
    from triton.runtime.jit import JITFunction

    from prewarm.device.toolchain import read_toolchain

    launches: dict[str, Launch] = {}

    def run(self, *args, **keywords):
        launch = triton_seam.launch_of(self, args, keywords)
        launches.setdefault(launch.digest, launch)

    JITFunction.run = run
    Autotuner.do_bench = property(lambda _: lambda call, quantiles: call() or [1.0, 1.0, 1.0])

    from vllm.model_executor.layers.fla.ops.chunk import chunk_gated_delta_rule
    from vllm.model_executor.layers.fla.ops.index import (
        prepare_chunk_indices,
        prepare_chunk_offsets,
    )
    from vllm.model_executor.layers.fla.ops.l2norm import l2norm_fwd

    tokens, heads, value_heads, dim = 128, 16, 64, 128
    q, k = (torch.zeros(1, tokens, heads, dim, dtype=torch.bfloat16) for _ in range(2))
    v = torch.zeros(1, tokens, value_heads, dim, dtype=torch.bfloat16)
    g = torch.zeros(1, tokens, value_heads)
    beta = torch.zeros(1, tokens, value_heads, dtype=torch.bfloat16)
    cu_seqlens = torch.tensor([0, tokens], dtype=torch.int32)
    l2norm_fwd(q)
    chunk_gated_delta_rule(
        q,
        k,
        v,
        g,
        beta,
        initial_state=torch.zeros(1, value_heads, dim, dim, dtype=torch.bfloat16),
        output_final_state=True,
        cu_seqlens=cu_seqlens,
        chunk_indices=prepare_chunk_indices(cu_seqlens, 64),
        chunk_offsets=prepare_chunk_offsets(cu_seqlens, 64),
    )
    return list(launches.values()), read_toolchain(target)


def manifest_of(target: str, launches: list[Launch], toolchain) -> Manifest:
    kernels: dict[str, list[Launch]] = {}
    for launch in launches:
        kernels.setdefault(launch.kernel, []).append(launch)
    return Manifest(
        deployment=Deployment(
            model=Model(name="sample", config=digest_of(b"sample")),
            serve_args=("sample",),
            target=target,
        ),
        toolchain=toolchain,
        geometry={},
        trace=Trace(workloads=1, random_workloads=0, closure=0, seed=0, steps=1, gpu_blocks=(1,)),
        kernels=tuple(
            Kernel(
                name=name,
                source=group[0].source,
                specializations=tuple(
                    Specialization(arguments=one.arguments, options=one.options, via=("prefill",))
                    for one in group
                ),
            )
            for name, group in sorted(kernels.items())
        ),
    )


def few(launches: list[Launch]) -> list[Launch]:
    left = dict(FEW)
    kept = []
    for launch in launches:
        name = launch.kernel.partition(":")[2]
        if left.get(name, 0):
            left[name] -= 1
            kept.append(launch)
    return kept


if __name__ == "__main__":
    target, out, *rest = sys.argv[1:]
    with tempfile.TemporaryDirectory() as autotune_records:
        os.environ["TRITON_CACHE_DIR"] = autotune_records
        launches, toolchain = record(target)
    chosen = launches if rest == ["all"] else few(launches)
    write_manifest(Path(out), manifest_of(target, chosen, toolchain))
