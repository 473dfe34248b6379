"""The GPU of this machine."""

from __future__ import annotations

from prewarm.core.target import targets


def target_here() -> str:
    """Return the name of the target that this machine's GPU is."""
    import torch

    name = torch.cuda.get_device_name(0)
    return next(target.name for target in targets().values() if target.device_name == name)
