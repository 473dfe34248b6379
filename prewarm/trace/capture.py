"""Manifest -> Capture: prefill steps of the deployment, as data that a GPU can replay.

The child process is the one that `plan` asks: vLLM's own scheduler and model runner drive the
steps on a virtual GPU, so that the launches are those of serving.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence

from prewarm.core.capture import Capture
from prewarm.core.errors import InputError
from prewarm.core.manifest import Manifest
from prewarm.core.record import Record
from prewarm.core.search_space import MOST
from prewarm.core.target import check_host, target_named
from prewarm.core.tunings import Size
from prewarm.trace.parent import ask


class CaptureRequest(Record, kw_only=True, tag="capture"):
    """What the child is asked for."""

    manifest: Manifest
    sizes: tuple[Size, ...]
    search: int
    model: str | None


class Captured(Record, kw_only=True, tag=True):
    """The answer."""

    capture: Capture


def capture(
    manifest: Manifest,
    sizes: Sequence[Size],
    *,
    search: int = MOST,
    model: str | None = None,
    progress: Callable[[str], object] = lambda text: None,
) -> Capture:
    """Return one prefill step of the manifest's deployment for each of `sizes`, in their order.

    `search` is the number of configs beyond each kernel's own list to measure at most; `model`
    stands for the model of the serve arguments where that lies elsewhere on this machine.
    Raises InputError for a size that one step of the deployment cannot hold or that reaches
    nothing autotuned, for another model, toolchain or kernel than the planned one; and what
    `prewarm.trace.plan.plan` raises.
    """
    check_host(target_named(manifest.deployment.target), platform.machine())
    if not any(kernel.tuned_by for kernel in manifest.kernels):
        raise InputError(
            f"{manifest.deployment.model.name} launches no autotuned kernel as it was planned",
            "plan with --gdn-prefill-backend triton",
        )
    request = CaptureRequest(manifest=manifest, sizes=tuple(sizes), search=search, model=model)
    return ask(request, Captured, progress).capture
