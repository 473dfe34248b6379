"""A manifest and its captured steps -> Tunings: compile every config, measure, choose."""

from __future__ import annotations

import datetime as dt
import os
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from prewarm.core.capture import Capture
from prewarm.core.capture_file import write_capture
from prewarm.core.errors import HostError, InputError
from prewarm.core.manifest import Manifest
from prewarm.core.target import Target, target_named
from prewarm.core.toolchain import Toolchain
from prewarm.core.tunings import (
    Clocks,
    KernelTunings,
    KeyTuning,
    Prefill,
    Run,
    Size,
    Tunings,
)
from prewarm.tune import nvidia_smi
from prewarm.tune.choose import OBJECTIVE, choose
from prewarm.tune.message import Checked, Schedule, Share, Task, timings_of
from prewarm.tune.prefills import prefills, rival_of
from prewarm.tune.prepare import Tell, prepare, shares_of
from prewarm.tune.statistics import noise_floor
from prewarm.tune.timings import Timings
from prewarm.tune.workers import WORKER, Measurement, measure, probe


def tune(
    manifest: Manifest,
    capture: Capture,
    sizes: Sequence[Size],
    gpus: Sequence[str],
    *,
    directory: Path,
    schedule: Schedule | None = None,
    jobs: int | None = None,
    flashinfer: Path | None = None,
    tell: Tell = lambda text: None,
    worker: str = WORKER,
) -> Tunings:
    """Return the winners of every tuning key that `capture` reaches, measured on `gpus`.

    `sizes` are those of the captured steps, in order, with their weights; `gpus` come from
    `gpus_here`. What is compiled stays in `directory`. Raises InputError when Triton or a
    kernel is not what was planned, TuneError when a kernel cannot be measured. With what was
    built of `flashinfer`, that is measured beside Triton afterwards, on the first of `gpus`.
    `worker` is the module that measures.
    """
    began = time.monotonic()
    if flashinfer is not None:
        rival_of(flashinfer, manifest)
    target = target_named(manifest.deployment.target)
    cache_dir, file = directory / "cache", directory / "capture.json"
    if not file.exists():
        write_capture(file, capture)
    shares = shares_of(capture)

    def task(gpu: str, mine: tuple[Share, ...] = (), checked: tuple[Checked, ...] = ()) -> Task:
        return Task(
            gpu=gpu,
            target=target,
            toolchain=manifest.toolchain,
            capture=str(file),
            cache_dir=os.path.abspath(cache_dir),
            shares=mine,
            sizes=tuple(sizes),
            checked=checked,
            schedule=schedule or Schedule(),
        )

    tell("looking at the GPU")
    here = _toolchain_here(manifest, task(gpus[0]), worker)
    local = msgspec.structs.replace(manifest, toolchain=here)
    prepare(local, capture, cache_dir, jobs, tell)
    watched = directory / "clocks.csv"
    with nvidia_smi.watching(watched):
        found = measure(shares, gpus, task, tell, worker)
    readings = nvidia_smi.parse(watched.read_text())
    timings = [
        timings_of(share, sizes, timed) for share, timed in zip(shares, found.keys, strict=True)
    ]
    kernels = kernels_of(capture, shares, timings)
    compared: tuple[Prefill, ...] = ()
    if flashinfer is not None:
        keys = [_tuning_of(kernels, share) for share in shares]
        rival = rival_of(flashinfer, manifest, keys)
        asked = msgspec.structs.replace(task(gpus[0], shares), rival=rival)
        compared = prefills(asked, worker, tell)
    return Tunings(
        gpu=target.device_name,
        arch=target.arch,
        triton=here.triton,
        runs=(
            Run(
                model=manifest.deployment.model.name,
                serve_args=manifest.deployment.serve_args,
                manifest=manifest.digest,
                date=dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                driver=next((reading.driver for reading in readings), ""),
                clocks=_clocks(found, readings),
                sizes=tuple(sizes),
                objective=OBJECTIVE,
                noise=noise_floor(timings),
                seconds=round(time.monotonic() - began, 1),
                prefills=compared,
            ),
        ),
        kernels=kernels,
    )


def _tuning_of(kernels: Sequence[KernelTunings], share: Share) -> KeyTuning:
    keys = (key for kernel in kernels if kernel.name == share.kernel for key in kernel.keys)
    return next(key for key in keys if key.key == share.key)


def gpus_here(target: Target, asked: Sequence[str]) -> tuple[str, ...]:
    """Return the UUIDs of the GPUs to measure on: those `asked` for, by index or UUID, or all.

    Raises HostError where there is none, InputError for one that is not there or of another
    kind than `target`, TryAgainError for one that is busy.
    """
    readings = nvidia_smi.read_gpus()
    wanted = [*asked] or _visible() or [each.uuid for each in readings]
    chosen = []
    for name in wanted:
        found = [each for each in readings if name in {str(each.index), each.uuid}]
        if not found:
            known = ", ".join(f"{each.index} ({each.name})" for each in readings)
            raise InputError(f"there is no GPU {name} here; there are {known}", "nvidia-smi -L")
        chosen += found
    if not chosen:
        raise HostError("there is no GPU here", "run prewarm tune where the GPU is")
    for each in chosen:
        if each.name != target.device_name:
            raise InputError(
                f"GPU {each.index} is a {each.name}, the manifest is for {target.device_name}",
                "tune on the GPU that will serve, or plan for this one: prewarm show targets",
            )
    nvidia_smi.refuse_busy(chosen)
    return tuple(dict.fromkeys(each.uuid for each in chosen))


def _visible() -> list[str]:
    return [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]


def _toolchain_here(manifest: Manifest, task: Task, worker: str) -> Toolchain:
    """Return the toolchain of a worker.

    Another build of the same Triton will do, for times do not depend on the Python that
    Triton was built for; another Triton will not.
    """
    planned = manifest.toolchain
    here = probe(task, worker).toolchain
    if here.triton != planned.triton:
        raise InputError(
            f"the manifest was planned with Triton {planned.triton}, here is Triton {here.triton}",
            "tune in the vLLM image that will serve",
        )
    return here


def kernels_of(
    capture: Capture, shares: Sequence[Share], timings: Sequence[Timings]
) -> tuple[KernelTunings, ...]:
    """Return the tunings of every kernel of `capture`, its keys in the order of `shares`."""
    chosen = [(s.kernel, key) for s, key in zip(shares, choose(timings), strict=True)]
    return tuple(
        KernelTunings(
            name=kernel.name,
            source=kernel.source,
            candidates=kernel.candidates,
            keys=tuple(key for name, key in chosen if name == kernel.name),
        )
        for kernel in capture.kernels
    )


def _clocks(found: Measurement, readings: Sequence[nvidia_smi.Reading]) -> tuple[Clocks, ...]:
    uuids = dict.fromkeys(started.uuid for started in found.started)
    clocks = (nvidia_smi.clocks_of(readings, uuid) for uuid in uuids)
    return tuple(each for each in clocks if each is not None)
