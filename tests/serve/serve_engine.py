"""Serve with vLLM's own engine on a virtual GPU: `serve_engine.py TARGET REQUEST SERVE_ARGS…`.

The plugin comes in as in any process of vLLM: by its entry point, through vLLM's own loader.
Nothing of Triton is replaced but its driver: kernels are looked up and compiled, and what is
launched does nothing. REQUEST is JSON: prompt lengths of one workload after another. On stdout
stands the metrics page of vLLM's own server, after start-up and at the end.
"""

import contextlib
import json
import os
import sys

from prewarm.core.target import target_named
from prewarm.device.libcuda import load_stub

target = target_named(sys.argv[1])
load_stub()

from prewarm.trace.become import become  # noqa: E402

become(target)

from answer import answer  # noqa: E402

from prewarm.trace import vllm_seam  # noqa: E402
from prewarm.trace.engine import Engine  # noqa: E402
from prewarm.trace.model_source import resolve_model  # noqa: E402
from prewarm.trace.workloads import Arrival, Workload  # noqa: E402


class Launching:
    via = ""

    def recording(self):
        return contextlib.nullcontext()


def warm_up(worker):
    """Do what the worker of a real GPU does at the end of its start, as far as it can here."""
    from vllm.utils.jit_monitor import activate

    vllm_seam.warm_up(worker)
    vllm_seam.capture(worker)
    activate()
    return no_times(worker)


no_times = vllm_seam.VirtualWorker.compile_or_warm_up_model
vllm_seam.VirtualWorker.compile_or_warm_up_model = warm_up
if os.environ.get("SEVERAL_SERVERS"):
    from vllm.v1.metrics.prometheus import setup_multiprocess_prometheus

    setup_multiprocess_prometheus()
args = vllm_seam.parse_serve_args(sys.argv[3:])
engine = Engine(args, resolve_model(args.model, args.revision).directory, Launching())
pages = [answer("/metrics")]
error = None
try:
    for prompts in json.loads(sys.argv[2]):
        arrivals = tuple(Arrival(step=at, prompt=n) for at, n in enumerate(prompts))
        engine.drive(Workload(kind="prefill", arrivals=arrivals))
except Exception as raised:  # noqa: BLE001
    error = f"{type(raised).__name__}: {raised}"
pages.append(answer("/metrics"))
sys.stdout.write(json.dumps({"pages": pages, "error": error, "blocks": engine.gpu_blocks}) + "\n")
sys.stdout.flush()
os._exit(0)
