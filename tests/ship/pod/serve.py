"""Be the serving process of a pod: the plugin as vLLM loads it, then Triton on real kernels.

Run as `python serve.py KERNELS.py`, with the environment of the Deployment.
"""

import os
import runpy
import sys

from prewarm.serve.plugin import register

register()
sys.argv = [sys.argv[1], os.environ["TRITON_CACHE_DIR"]]
runpy.run_path(sys.argv[0], run_name="__main__")
