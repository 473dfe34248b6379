"""Kernels here must be those that were planned: keys, and times, are of one source."""

from __future__ import annotations

from collections.abc import Mapping

from prewarm.core.errors import InputError
from prewarm.device import triton_seam


def check_sources(planned: Mapping[str, str]) -> None:
    """Raise InputError with every kernel whose source here has another digest than `planned`."""
    changed = [
        name
        for name, source in planned.items()
        if triton_seam.source_digest(triton_seam.kernel_named(name)) != source
    ]
    if changed:
        raise InputError(
            "the manifest was planned with other sources of\n  " + "\n  ".join(changed),
            "plan again with this vLLM",
        )
