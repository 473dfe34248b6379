"""Record GDN prefill with its autotuners: `record_tuned.py TARGET OUT`.

The recorder is that of `prewarm plan`; only the engine around the layer is left out.
"""

import sys
from pathlib import Path

from prefill import play, prefill

from prewarm.core.digest import digest_of
from prewarm.core.manifest import Deployment, Manifest, Model, Trace
from prewarm.core.manifest_yaml import write_manifest
from prewarm.core.target import target_named

target, out = sys.argv[1:]
play(target)

from prewarm.device.toolchain import read_toolchain  # noqa: E402
from prewarm.trace.assemble import kernels_of  # noqa: E402
from prewarm.trace.recorder import Recorder  # noqa: E402

recorder = Recorder()
recorder.via = "prefill"
with recorder.recording():
    prefill()
manifest = Manifest(
    deployment=Deployment(
        model=Model(name="sample", config=digest_of(b"sample")),
        serve_args=("sample",),
        target=target,
    ),
    toolchain=read_toolchain(target_named(target)),
    geometry={},
    trace=Trace(workloads=1, random_workloads=0, closure=0, seed=0, steps=1, gpu_blocks=(1,)),
    kernels=kernels_of(recorder.found.values()),
)
write_manifest(Path(out), manifest)
