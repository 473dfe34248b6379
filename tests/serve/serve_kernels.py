"""Play one process of vLLM: `serve_kernels.py SCENARIO DIRECTORY`, what it saw as JSON on stdout.

The plugin is registered as vLLM does it, but vLLM is not there, so that the process starts fast:
a worker's stages are told by hand. Triton is real, its driver that of a virtual GPU. The scenario
`build` lays an installed cache down in DIRECTORY; every other one is given it.
"""

import json
import logging
import os
import shutil
import sys
from pathlib import Path

sys.modules["vllm"] = None

import msgspec  # noqa: E402
import served_kernels as kernels  # noqa: E402
import torch  # noqa: E402

from prewarm.core.cache import (  # noqa: E402
    CACHE_MANIFEST,
    ENTRIES,
    PLAN,
    CacheManifest,
    CompiledLaunch,
    cache_document,
)
from prewarm.core.digest import digest_of  # noqa: E402
from prewarm.core.manifest import (  # noqa: E402
    Argument,
    Deployment,
    Kernel,
    Manifest,
    Model,
    Specialization,
    Trace,
    Unbound,
)
from prewarm.core.manifest_yaml import write_manifest  # noqa: E402
from prewarm.core.target import target_named  # noqa: E402
from prewarm.core.toolchain import Toolchain  # noqa: E402

SCENARIO, DIRECTORY = sys.argv[1], Path(sys.argv[2])
TARGET = target_named(os.environ.get("TARGET", "h100"))

from prewarm.device import triton_seam  # noqa: E402

triton_seam.activate_virtual_driver(TARGET)

from triton import knobs  # noqa: E402

LINES = []
ENTRIES_AT = DIRECTORY / "versions" / ("0" * 16) / ENTRIES


class Keep(logging.Handler):
    def emit(self, record):
        LINES.append(record.getMessage())


def x(dtype=torch.float32):
    return torch.zeros(64, dtype=dtype)


def convolve(lines=150, dtype=torch.float32, tokens=17, **options):
    kernels.convolve[(1,)](x(dtype), tokens, lines, BLOCK=64, **options)


def gate(dtype=torch.float32, heads=4):
    kernels.gate[(1,)](x(dtype), 17, H=heads)


def forget():
    """Let every kernel be looked up again, as in a new process."""
    for each in (kernels.convolve, kernels.settle, kernels.outside, kernels.gate.fn):
        each.device_caches.clear()
    kernels.gate.cache.clear()


# --- the installed cache ------------------------------------------------------------------


def build():
    """Lay down a cache of one `convolve`, of one that is unbound, of `settle` and of `gate`."""
    os.environ["TRITON_CACHE_DIR"] = str(ENTRIES_AT)
    ENTRIES_AT.mkdir(parents=True)
    bound = triton_seam.launch_of(kernels.convolve, (x(), 17, 150), {"BLOCK": 64})
    free = dict(bound.arguments, num_cache_lines=Argument(type="constexpr", unbound=True))
    settle = triton_seam.launch_of(kernels.settle, (x(),), {"BLOCK": 64})
    key = {"H": 4, "dtype of g": "torch.float32"}
    gate = triton_seam.launch_of(kernels.gate, (x(), 17, 4), {"BLOCK": 16})
    by_candidate = dict(gate.arguments, BLOCK=Argument(type="constexpr", by_candidate=True))
    wide = dict(free, x=Argument(type="*fp64", divisible_by_16=True))
    manifest = manifest_of(
        kernel_of(bound, arguments=(bound.arguments, free, wide)),
        kernel_of(settle, arguments=(settle.arguments,)),
        kernel_of(
            gate,
            arguments=(by_candidate,),
            tuned_by=("H",),
            candidates=triton_seam.candidates_of(kernels.gate),
            tuning_key=key,
        ),
    )
    entries = [
        (launch, triton_seam.compile_launch(launch))
        for launch in manifest.launches()
        if not launch.unbound
    ]
    write_manifest(ENTRIES_AT.parent / PLAN, manifest)
    index = CacheManifest(
        manifest=manifest.digest,
        deployment=manifest.deployment,
        target_arch=TARGET.arch,
        toolchain=manifest.toolchain,
        launches=tuple(
            CompiledLaunch(launch=launch.digest, kernel=launch.kernel, key=entry.key)
            for launch, entry in entries
        ),
        host_modules=(),
        unbound=tuple(each.digest for each in manifest.launches() if each.unbound),
        sources={kernel.name: kernel.source for kernel in manifest.kernels},
        files=(),
    )
    (ENTRIES_AT.parent / CACHE_MANIFEST).write_bytes(cache_document(index))
    (DIRECTORY / "triton").symlink_to(ENTRIES_AT.relative_to(DIRECTORY))
    return {}


def kernel_of(launch, arguments, tuned_by=None, candidates=(), tuning_key=None):
    return Kernel(
        name=launch.kernel,
        source=launch.source,
        tuned_by=tuned_by,
        candidates=candidates,
        specializations=tuple(
            Specialization(
                arguments=each,
                tuning_key=tuning_key or {},
                candidates=tuple(range(len(candidates))) if candidates else None,
                via=("prefill",),
            )
            for each in arguments
        ),
    )


def manifest_of(*kernels):
    return Manifest(
        deployment=Deployment(
            model=Model(name="a/model", config=digest_of(b"config")),
            serve_args=("a/model",),
            target=TARGET.name,
        ),
        toolchain=toolchain(),
        geometry={},
        trace=Trace(
            workloads=1, random_workloads=0, closure=0, seed=0, steps=1, gpu_blocks=(100, 200)
        ),
        unbound=(
            Unbound(
                argument="num_cache_lines",
                kernels=("served_kernels:convolve",),
                follows="number of GPU blocks",
                seen={"100": 101, "200": 201},
                pin="--num-gpu-blocks-override",
            ),
        ),
        kernels=kernels,
    )


def toolchain():
    """Return that of this process; vLLM, which it names, is not there."""
    return Toolchain(
        vllm="0.25.1",
        torch=str(torch.__version__),
        cuda="13.0",
        triton="3.6.0",
        triton_key=triton_seam.triton_key_digest(),
        ptxas=triton_seam.resolved_ptxas(TARGET.arch),
        python_abi=sys.implementation.cache_tag,
        machine="x86_64",
        libc="glibc",
        key_environment=triton_seam.key_environment(),
    )


def change_index(**changes):
    """Write the installed cache's index anew."""
    path = ENTRIES_AT.parent / CACHE_MANIFEST
    index = msgspec.json.decode(path.read_bytes(), type=dict)
    path.write_bytes(msgspec.json.encode({**index, **changes}))


# --- scenarios ----------------------------------------------------------------------------


def everything(process):
    """Start up with misses and hits, and serve."""
    convolve()
    convolve()
    kernels.outside[(1,)](x())
    gate()
    process.sized(1000)
    process.warming_up()
    convolve(lines=1001)
    process.ready()
    convolve(lines=1001)
    kernels.settle[(1,)](x(), BLOCK=64)
    convolve(lines=7)
    gate(torch.bfloat16)
    gate(torch.bfloat16)
    return {}


def sized(process):
    """Launch a kernel of which winners by size are installed, and one that has none."""
    gate()
    gate()
    gate(heads=8)
    process.ready()
    return {"config": str(kernels.gate.best_config)}


def misses(process):
    """Ask for what differs in one thing, then in the same thing over and over."""
    convolve(dtype=torch.bfloat16)
    convolve(tokens=16)
    convolve(num_warps=8)
    for lines in range(2, 9):
        convolve(lines=lines)
    process.ready()
    convolve(lines=9)
    return {}


def removed(process):
    """Ask for an entry that somebody has removed."""
    for entry in ENTRIES_AT.iterdir():
        shutil.rmtree(entry)
    convolve()
    kernels.settle[(1,)](x(), BLOCK=64)
    return {}


def another(process):
    """Ask for what the cache would hold, if it were for this toolchain."""
    convolve()
    kernels.settle[(1,)](x(), BLOCK=64)
    gate()
    return {}


def an_error(process):
    """Miss before and after warm-up."""
    convolve(lines=7)
    process.ready()
    kernels.outside[(1,)](x())
    convolve()
    raised = []
    for miss in (lambda: convolve(lines=8), lambda: gate(heads=8), lambda: gate(heads=8)):
        try:
            miss()
        except Exception as error:  # noqa: BLE001
            raised.append(f"{type(error).__name__}: {error}")
    return {"raised": raised}


def listeners(process):
    """Let others listen: before the plugin, after it, in its place, and for a while."""
    heard = dict.fromkeys(("before", "chained", "replacing", "for a while"), 0)

    def hear(name, others=None):
        def listener(**event):
            heard[name] += 1
            if others is not None:
                others(**event)

        return listener

    totals = []
    kernels.outside[(1,)](x())
    totals.append(total(process))
    knobs.compilation.listener = hear("chained", knobs.compilation.listener)
    convolve(lines=2)
    totals.append(total(process))
    with triton_seam._listener(hear("for a while")):
        convolve(lines=3)
    totals.append(total(process))
    with knobs.compilation.scope():
        knobs.compilation.listener = None
        convolve(lines=4)
    totals.append(total(process))
    convolve(lines=5)
    totals.append(total(process))
    knobs.compilation.listener = hear("replacing")
    convolve(lines=6)
    totals.append(total(process))
    return {"heard": {**heard, "before": len(BEFORE)}, "totals": totals}


def total(process):
    counts = process._observer.counter.counts()
    return int(counts.total("hits") + counts.total("compiles"))


def strange(process):
    """Tell of a lookup as no Triton of today does, then of one as all do."""
    knobs.compilation.listener(source="?")
    convolve()
    return {}


def builds(process):
    """Load a launcher that is not in the cache."""
    from prewarm.device.libcuda import load_stub

    knobs.nvidia.libcuda_path = str(load_stub())
    triton_seam.activate_virtual_driver(TARGET, launchers=True)
    _ = kernels.settle.warmup(x(), BLOCK=64, grid=(1,)).run
    process.ready()
    return {}


def fork(process):
    """Compile before and after a fork, in both processes."""
    convolve(lines=2)
    read, write = os.pipe()
    if not os.fork():
        convolve(lines=3)
        os.write(write, json.dumps(counted(process)).encode())
        os._exit(0)
    os.wait()
    return {"child": json.loads(os.read(read, 1 << 16))}


def counted(process):
    counts = process._observer.counter.counts()
    return {
        f"{each.what} of {each.subject} in {each.phase}": each.value
        for each in counts.counts
        if not each.what.endswith("seconds")
    }


BEFORE = []


def serve(scenario):
    """Register the plugin, run `scenario` and return what came of it."""
    log = logging.getLogger("vllm.prewarm")
    log.addHandler(Keep())
    log.setLevel(logging.INFO)
    if SCENARIO == "listeners":
        knobs.compilation.listener = lambda **event: BEFORE.append(event)
    if changes := os.environ.get("INDEX"):
        change_index(**json.loads(changes))
    from prewarm.serve import plugin

    plugin.register()
    plugin.register()
    if not plugin._PROCESSES:
        return {"lines": LINES, "registered": 0}
    (process,) = plugin._PROCESSES
    process.made(0)
    process.loaded()
    result = scenario(process)
    return {"lines": LINES, "counts": counted(process), "registered": 1, **result}


found = build() if SCENARIO == "build" else serve(globals()[SCENARIO])
sys.stdout.write(json.dumps(found) + "\n")
