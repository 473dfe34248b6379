"""Ask for every launch as a vLLM worker does: `serve_sample.py MANIFEST`, counts on stdout.

Apart from the GPU nothing is replaced: Triton's own cache manager, its own `JITFunction.run`,
its own launcher class; it may compile and build whatever it does not find.
"""

import importlib
import json
import os
import sys
from pathlib import Path

from prewarm.core.manifest_yaml import read_manifest
from prewarm.core.target import target_named
from prewarm.device.libcuda import load_stub

manifest = read_manifest(Path(sys.argv[1]))
target = target_named(manifest.deployment.target)
stub = load_stub()
importlib.import_module("prewarm.device.virtual_torch").install(target)

from prewarm.device import triton_seam  # noqa: E402

triton_seam.activate_virtual_driver(target, launchers=True)
importlib.import_module("vllm.v1.worker.gpu_model_runner")
importlib.import_module("flashinfer")  # a CUDA worker does: it may name another ptxas

from triton import knobs  # noqa: E402
from triton.backends.nvidia.driver import CudaLauncher, CudaUtils  # noqa: E402

counts = {"hits": 0, "compiles": 0, "builds": 0, "launchers": 0}
build = importlib.import_module("triton.runtime.build")
triton_build = build._build


def counting_build(*args):
    counts["builds"] += 1
    return triton_build(*args)


def listener(*, cache_hit, **_):
    counts["hits" if cache_hit else "compiles"] += 1


build._build = counting_build
knobs.compilation.listener = listener
knobs.nvidia.libcuda_path = str(stub)
CudaUtils()
for launch in manifest.launches():
    if launch.unbound:
        continue
    bound = triton_seam.bind(launch)
    bound.function.device_caches.clear()
    kernel = bound.function.run(**bound.arguments, **bound.keywords, grid=(1,), warmup=True)
    counts["launchers"] += isinstance(kernel.run, CudaLauncher)

try:
    Path(os.environ["TRITON_CACHE_DIR"], "written").touch()
    counts["writable"] = True
except OSError:
    counts["writable"] = False
sys.stdout.write(json.dumps(counts) + "\n")
