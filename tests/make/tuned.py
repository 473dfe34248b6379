"""Winners by hand for the manifest of a prefill: no test of these needs a GPU."""

from collections.abc import Mapping

import msgspec

from prewarm.core.digest import digest_of
from prewarm.core.manifest import Candidate, Kernel, Manifest
from prewarm.core.selection import Choice, Selection
from prewarm.core.tunings import Clocks, KernelTunings, KeyTuning, Measured, Run, Size, Tunings

B200, H100 = "NVIDIA B200", "NVIDIA H100 80GB HBM3"
CUMSUM, OUTPUT = "chunk_local_cumsum_scalar_kernel", "chunk_fwd_kernel_o"
TIME = 12.5
"""Microseconds of every winner."""


def kernel_of(manifest: Manifest, function: str) -> Kernel:
    return next(each for each in manifest.kernels if each.name.endswith(f":{function}"))


def only(manifest: Manifest, *functions: str) -> Manifest:
    """Return the manifest of these kernels alone."""
    kernels = tuple(kernel_of(manifest, function) for function in functions)
    return msgspec.structs.replace(manifest, kernels=kernels)


def beyond(kernel: Kernel) -> Candidate:
    """Return a config that is not in the kernel's list."""
    config = msgspec.structs.replace(kernel.candidates[0], num_stages=1)
    assert config not in kernel.candidates
    return config


def selection_of(manifest: Manifest, winners: Mapping[str, Candidate], **changed) -> Selection:
    """Return a selection of `winners`, by function."""
    choices = tuple(
        Choice(kernel=kernel.name, key=each.tuning_key, winner=winner, time=TIME)
        for kernel, winner in ((kernel_of(manifest, f), winner) for f, winner in winners.items())
        for each in kernel.specializations
    )
    plain = {"gpu": B200, "tunings": digest_of(b"tunings"), "choices": choices}
    return Selection(**{**plain, **changed})


def tunings_of(manifest: Manifest, winners: Mapping[str, Candidate], gpu: str = B200) -> Tunings:
    """Return tunings with these `winners`, by function, as `prewarm tune` would find them."""
    run = Run(
        model="sample",
        serve_args=("sample",),
        manifest=manifest.digest,
        date="2026-11-23T14:02:00Z",
        driver="580.65.06",
        clocks=(Clocks(sm=(1965, 1965), memory=3996, temperature=(40, 50), power_limit=1000.0),),
        sizes=(Size(tokens=8192, sequences=1),),
        objective="the least time",
        noise=0.01,
        seconds=60.0,
    )
    return Tunings(
        gpu=gpu,
        arch=100,
        triton=manifest.toolchain.triton,
        runs=(run,),
        kernels=tuple(
            _kernel_tunings(kernel_of(manifest, function), winner)
            for function, winner in winners.items()
        ),
    )


def _kernel_tunings(kernel: Kernel, winner: Candidate) -> KernelTunings:
    measured = Measured(config=winner, listed=winner in kernel.candidates, times=(TIME,), rounds=20)
    return KernelTunings(
        name=kernel.name,
        source=kernel.source,
        candidates=kernel.candidates,
        keys=tuple(
            KeyTuning(
                key=each.tuning_key,
                run=0,
                winner=winner,
                confirmed=True,
                score=1.0,
                reference=winner,
                gain=1.0,
                measured=(measured,),
            )
            for each in kernel.specializations
        ),
    )
