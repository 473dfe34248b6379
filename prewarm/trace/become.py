"""Makes a process the target GPU: torch first, then Triton, vLLM's platform and FlashInfer."""

from __future__ import annotations

from prewarm.core.errors import HostError
from prewarm.core.target import Target


def become(target: Target) -> None:
    """Make torch, Triton, vLLM and FlashInfer answer as on `target`; there is no way back.

    Raises HostError where vLLM is not installed.
    """
    try:
        from prewarm.device import virtual_torch

        virtual_torch.install(target)
        from prewarm.device.triton_seam import activate_virtual_driver

        activate_virtual_driver(target)
        from prewarm.trace import prefill_calls, vllm_seam
    except ModuleNotFoundError as error:
        raise HostError(
            f"planning needs vLLM, torch and Triton in this Python: {error.name} is not there",
            "run prewarm in the vLLM image that will serve, or: pip install 'prewarm[vllm]'",
        ) from error
    vllm_seam.install_platform(target)
    prefill_calls.answer_for_flashinfer()
