"""GDN work that a deployment does outside Triton."""

from __future__ import annotations

from importlib import metadata

from prewarm.core.flashinfer import BLACKWELL, HOPPER, PrefillCall, instances_of
from prewarm.core.manifest import Elsewhere
from prewarm.core.target import Target
from prewarm.flashinfer import flashinfer_seam
from prewarm.flashinfer.forecast import forecast
from prewarm.trace import prefill_calls, vllm_seam
from prewarm.trace.engine import Engine

_HOPPER = 90
_REASON = "vLLM chose it: --gdn-prefill-backend is auto or flashinfer, and this GPU has it"
_EVERY = 64
"""Instances that FlashInfer compiles on Hopper, whatever is asked for."""


def elsewhere_of(engine: Engine, target: Target) -> tuple[Elsewhere, ...]:
    """Return what this deployment's GDN prefill needs when it is not Triton; else nothing."""
    backend = vllm_seam.prefill_backend(engine.core)
    if backend == "triton":
        return ()
    if backend != "flashinfer":
        return (_other(backend),)
    calls = tuple(sorted(prefill_calls.FOUND, key=repr))
    return (_hopper(calls) if target.arch == _HOPPER else _blackwell(calls),)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _backend() -> str:
    return f"FlashInfer {_version('flashinfer-python') or '(not installed)'}"


def _hopper(calls: tuple[PrefillCall, ...]) -> Elsewhere:
    instances = instances_of(HOPPER, calls)
    found = flashinfer_seam.prebuilt(HOPPER)
    all_of_them, these = forecast(HOPPER, _EVERY), forecast(HOPPER, len(instances))
    return Elsewhere(
        name=HOPPER,
        backend=_backend(),
        reason=_REASON,
        needs="a CUDA compiler and ninja at first use",
        present=found.what if found else "nothing prebuilt",
        cold=(
            f"{_EVERY} CUDA instances before the first prefill ends: {all_of_them}"
            f" (nvcc 13.0); {len(instances)} asked for here: {these}"
        ),
        instances=instances,
        calls=calls,
        spared=found is not None and found.spares,
    )


def _blackwell(calls: tuple[PrefillCall, ...]) -> Elsewhere:
    compiler = _version("nvidia-cutlass-dsl") or "(not installed)"
    instances = instances_of(BLACKWELL, calls)
    return Elsewhere(
        name=BLACKWELL,
        backend=_backend(),
        reason=_REASON,
        needs=f"nvidia-cutlass-dsl {compiler}, in the process",
        present="nothing prebuilt: FlashInfer keeps no cache of it",
        cold=(
            "compiled in every process of every start:"
            f" {forecast(BLACKWELL, len(instances))} (nvidia-cutlass-dsl 4.5)"
        ),
        instances=instances,
        calls=calls,
    )


def _other(backend: str) -> Elsewhere:
    return Elsewhere(
        name=f"gdn prefill by {backend}",
        backend=backend,
        reason=f"--gdn-prefill-backend {backend}",
        needs="compiles in the serving process",
        present="nothing prebuilt",
        cold="not measured",
    )
