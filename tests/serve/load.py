"""A process into which vLLM's own loader brings the plugin: `load.py whole|bare`.

`bare` takes away beforehand what the plugin looks for in Triton and vLLM, as another release may.
"""

import json
import os
import sys

from prewarm.core.target import target_named
from prewarm.device.libcuda import load_stub

load_stub()

import served_kernels  # noqa: E402
import torch  # noqa: E402
import triton.runtime.build  # noqa: E402
import vllm.plugins  # noqa: E402
from triton.runtime.autotuner import Autotuner  # noqa: E402
from vllm.model_executor.models import registry  # noqa: E402
from vllm.v1.worker import worker_base  # noqa: E402

from prewarm.device import triton_seam  # noqa: E402

if sys.argv[1] == "bare":
    del Autotuner._bench, Autotuner.prune_configs, triton.runtime.build._build
    del worker_base.WorkerBase
vllm.plugins.load_general_plugins()

from prewarm.serve import plugin  # noqa: E402

triton_seam.activate_virtual_driver(target_named("h100"))
served_kernels.settle[(1,)](torch.zeros(64), BLOCK=64)
counted = [process._observer.counter.counts().total("compiles") for process in plugin._PROCESSES]
found = {"compiles": counted, "inspection": registry._SUBPROCESS_COMMAND[-1]}
sys.stdout.write(json.dumps(found) + "\n")
sys.stdout.flush()
os._exit(0)
