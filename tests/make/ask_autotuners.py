"""What autotuners ask the disk in a prefill: `ask_autotuners.py MANIFEST`, as JSON on stdout.

Of each kernel the question that Triton's own `Autotuner.run` asks, and the one that a record of
the manifest is written for.
"""

import json
import sys
from pathlib import Path

from prefill import play, prefill

from prewarm.core.manifest_yaml import read_manifest
from prewarm.core.tuning_keys import tuning_keys

manifest = read_manifest(Path(sys.argv[1]))
play(manifest.deployment.target)

from triton.runtime.autotuner import Autotuner  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from prewarm.device import triton_seam  # noqa: E402


def spelled(name, key, configs):
    return [name, [[type(each).__name__, repr(each)] for each in key], [str(c) for c in configs]]


asked = []


def check_disk_cache(self, key, configs, benchmark):
    asked.append(spelled(triton_seam.kernel_name(self), key, configs))
    self.cache[key] = configs[0]
    return True


Autotuner.check_disk_cache = check_disk_cache
JITFunction.run = lambda self, *args, **keywords: None
prefill()
questions = map(triton_seam._question, tuning_keys(manifest, None))
written = [spelled(triton_seam.kernel_name(t), key, configs) for t, key, configs in questions]
sys.stdout.write(json.dumps({"asked": sorted(asked), "written": sorted(written)}) + "\n")
