"""One deployment -> its manifest: trace at the edges, close at random, find what is unbound."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from prewarm.core.manifest import Deployment, Kernel, Manifest, Model, Trace, Unbound
from prewarm.device.toolchain import read_toolchain
from prewarm.trace import vllm_seam
from prewarm.trace.assemble import kernels_of
from prewarm.trace.elsewhere import elsewhere_of
from prewarm.trace.engine import Engine
from prewarm.trace.environment import Watch
from prewarm.trace.model_source import ModelSource, resolve_model
from prewarm.trace.plan import Planned, Request
from prewarm.trace.recorder import Recorder
from prewarm.trace.unbound import unbind
from prewarm.trace.workloads import Workload, boundary_workloads, random_workloads


def trace(request: Request, watch: Watch, progress: Callable[[str], object]) -> Planned:
    """Return the manifest of `request`, traced in this process, which is the target already.

    The cache directory comes last: asking for it changes the environment.

    Raises what `prewarm.trace.plan.plan` raises.
    """
    args = vllm_seam.parse_serve_args(request.serve_args)
    source = resolve_model(args.model, args.revision)
    progress("starting vLLM's engine")
    recorder = Recorder()
    engine = Engine(args, source.directory, recorder)
    toolchain = read_toolchain(request.target)
    boundary = list(boundary_workloads(engine.limits))
    needed = _drive(engine, recorder, boundary, progress)
    tried = _close(engine, recorder, request, needed, progress)
    _further_stages(engine, args, source, recorder, needed)
    blocks = [engine.gpu_blocks]
    kernels = kernels_of(recorder.found.values())
    unbound: tuple[Unbound, ...] = ()
    if args.num_gpu_blocks_override is None:
        blocks.append(_another(engine.gpu_blocks))
        progress(f"tracing again with {blocks[1]} GPU blocks")
        again = _again(args, source, blocks[1], needed)
        kernels, unbound = unbind(kernels, again, (blocks[0], blocks[1]))
    manifest = Manifest(
        deployment=Deployment(
            model=Model(name=source.name, revision=source.revision, config=source.config),
            serve_args=_portable(request.serve_args, args.model, source),
            target=request.target.name,
        ),
        toolchain=msgspec.structs.replace(toolchain, environment=watch.found),
        geometry=vllm_seam.geometry(engine.core),
        trace=Trace(
            workloads=len(boundary),
            random_workloads=tried,
            closure=request.closure,
            seed=request.seed,
            steps=engine.steps,
            gpu_blocks=tuple(blocks),
        ),
        unbound=unbound,
        elsewhere=elsewhere_of(engine, request.target),
        kernels=kernels,
    )
    directory = vllm_seam.cache_directory(engine.config) if request.cache_directory else None
    return Planned(manifest=manifest, cache_directory=directory)


def _drive(
    engine: Engine,
    recorder: Recorder,
    workloads: Iterable[Workload],
    progress: Callable[[str], object],
) -> list[Workload]:
    """Drive `workloads`, and return those that reached something first."""
    needed = []
    for workload in workloads:
        before = len(recorder.found)
        engine.drive(workload)
        progress(f"{workload.kind}: {len(recorder.found)} launches")
        if len(recorder.found) > before:
            needed.append(workload)
    return needed


def _close(
    engine: Engine,
    recorder: Recorder,
    request: Request,
    needed: list[Workload],
    progress: Callable[[str], object],
) -> int:
    """Drive random workloads until `closure` in a row find nothing; return how many it took."""
    quiet = tried = 0
    for workload in random_workloads(engine.limits, request.seed):
        if quiet >= request.closure:
            break
        new = _drive(engine, recorder, [workload], progress)
        needed += new
        quiet = 0 if new else quiet + 1
        tried += 1
    return tried


def _another(gpu_blocks: int) -> int:
    """Return a number of blocks that differs, also in being divisible by 16."""
    return gpu_blocks + 1 if gpu_blocks % 16 == 0 else gpu_blocks + 16 - gpu_blocks % 16


def _again(
    args: Namespace, source: ModelSource, gpu_blocks: int, needed: Iterable[Workload]
) -> tuple[Kernel, ...]:
    recorder = Recorder()
    engine = Engine(args, source.directory, recorder, gpu_blocks)
    for workload in needed:
        engine.drive(workload)
    _further_stages(engine, args, source, recorder, needed)
    return kernels_of(recorder.found.values())


def _further_stages(
    first: Engine,
    args: Namespace,
    source: ModelSource,
    recorder: Recorder,
    needed: Iterable[Workload],
) -> None:
    """Drive `needed` in the pipeline's stages that have other layers than the `first`."""
    for stage in vllm_seam.further_stages(first.config):
        engine = Engine(args, source.directory, recorder, first.gpu_blocks, stage)
        for workload in needed:
            engine.drive(workload)


def _portable(serve_args: tuple[str, ...], model: str, source: ModelSource) -> tuple[str, ...]:
    """Return `serve_args` without the path of a machine."""
    if not Path(model).is_absolute():
        return serve_args
    return tuple(source.name if argument == model else argument for argument in serve_args)
