"""GDN work that a deployment does outside Triton."""

from __future__ import annotations

from importlib import metadata

from prewarm.core.manifest import Elsewhere
from prewarm.core.target import Target
from prewarm.trace import vllm_seam
from prewarm.trace.engine import Engine

_HOPPER = 90


def elsewhere_of(engine: Engine, target: Target) -> tuple[Elsewhere, ...]:
    """Return what this deployment's GDN prefill needs when it is not Triton; else nothing."""
    backend = vllm_seam.prefill_backend(engine.core)
    if backend == "triton":
        return ()
    return (_flashinfer(target) if backend == "flashinfer" else _other(backend),)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _flashinfer(target: Target) -> Elsewhere:
    hopper = target.arch == _HOPPER
    jit_cache = _version("flashinfer-jit-cache")
    return Elsewhere(
        name="gdn_prefill_sm90" if hopper else "gdn_kernels.blackwell",
        backend=f"FlashInfer {_version('flashinfer-python') or '(not installed)'}",
        reason="vLLM chose it: --gdn-prefill-backend is auto or flashinfer, and this GPU has it",
        needs="a CUDA compiler and ninja at first use"
        if hopper
        else "nvidia-cutlass-dsl, in the process",
        present=f"flashinfer-jit-cache {jit_cache}" if hopper and jit_cache else "nothing prebuilt",
        cold="64 CUDA instances of about 98 s each on one core (CUDA 13.0)"
        if hopper
        else "compiled in the process; not measured",
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
