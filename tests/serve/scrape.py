"""A server process and its worker: the page of /metrics on stdout.

The plugin is loaded by vLLM's own loader, the page answered by vLLM's own routes. The worker is
forked and compiles one kernel for a virtual GPU after it became ready.
"""

import json
import os
import sys

from prewarm.core.target import target_named
from prewarm.device.libcuda import load_stub

load_stub()

import vllm.plugins  # noqa: E402
import vllm.v1.metrics.prometheus  # noqa: E402

vllm.plugins.load_general_plugins()

import served_kernels  # noqa: E402
import torch  # noqa: E402
from answer import answer  # noqa: E402
from prometheus_client import Counter  # noqa: E402

from prewarm.device import triton_seam  # noqa: E402
from prewarm.serve import plugin  # noqa: E402

Counter("vllm_test", "A metric of the server's own.").inc()
(process,) = plugin._PROCESSES
if os.fork() == 0:
    process.made(1)
    process.loaded()
    process.ready()
    triton_seam.activate_virtual_driver(target_named("h100"))
    served_kernels.settle[(1,)](torch.zeros(64), BLOCK=64)
    os._exit(0)
_, status = os.wait()
assert status == 0
sys.stdout.write(json.dumps({"page": answer("/metrics")}) + "\n")
sys.stdout.flush()
os._exit(0)
