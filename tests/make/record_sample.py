"""Record the launches of vLLM's GDN prefill on a virtual GPU: `record_sample.py TARGET OUT [all]`.

A small stand-in for `prewarm plan`, so that the compiler is tested apart from the trace.
"""

import os
import sys
import tempfile
from pathlib import Path

from prefill import play, prefill

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

FEW = {"chunk_local_cumsum_scalar_kernel": 2, "l2norm_fwd_kernel2": 1, "chunk_fwd_kernel_o": 2}
"""Kernel to the number of its launches that the small sample keeps."""


def record(target: str) -> tuple[list[Launch], object]:
    play(target)
    from triton.runtime.autotuner import Autotuner
    from triton.runtime.jit import JITFunction

    from prewarm.device import triton_seam
    from prewarm.device.toolchain import read_toolchain

    launches: dict[str, Launch] = {}

    def run(self, *args, **keywords):
        launch = triton_seam.launch_of(self, args, keywords)
        launches.setdefault(launch.digest, launch)

    JITFunction.run = run
    Autotuner.do_bench = property(lambda _: lambda call, quantiles: call() or [1.0, 1.0, 1.0])
    prefill()
    return list(launches.values()), read_toolchain(target_named(target))


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
