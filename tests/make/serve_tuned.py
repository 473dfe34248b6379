"""Prefill as a vLLM worker does: `serve_tuned.py TARGET`, what Triton did on stdout.

Apart from the GPU nothing is replaced: Triton's own autotuners, cache and launchers. Launchers
launch nothing, and a benchmark ends this process.
"""

import importlib
import json
import sys

from prefill import play, prefill

stub = play(sys.argv[1])
importlib.import_module("vllm.v1.worker.gpu_model_runner")
importlib.import_module("flashinfer")  # a CUDA worker does: it may name another ptxas

from triton import knobs  # noqa: E402
from triton.backends.nvidia.driver import CudaLauncher, CudaUtils  # noqa: E402
from triton.runtime.autotuner import Autotuner  # noqa: E402
from triton.runtime.driver import driver  # noqa: E402

counts = {"hits": 0, "compiles": 0, "launches": 0}
winners = {}
run = Autotuner.run


class Launcher(CudaLauncher):
    def __call__(self, *args):
        counts["launches"] += 1


def listener(*, cache_hit, **_):
    counts["hits" if cache_hit else "compiles"] += 1


def benchmark(self, *args, config, **keywords):
    raise SystemExit(f"{self.base_fn.__name__} is benchmarked with {config}")


def remembering_run(self, *args, **keywords):
    run(self, *args, **keywords)
    winners[self.base_fn.__name__] = self.best_config.all_kwargs()


Autotuner._bench = benchmark
Autotuner.run = remembering_run
driver.active.launcher_cls = Launcher
knobs.compilation.listener = listener
knobs.nvidia.libcuda_path = str(stub)
CudaUtils()
prefill()
sys.stdout.write(json.dumps({"counts": counts, "winners": winners}) + "\n")
