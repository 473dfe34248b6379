"""The environment in which a manifest's keys are the ones that serving asks for."""

from __future__ import annotations

import os

from prewarm.core.toolchain import Toolchain

_UNWANTED = (
    "TRITON_ALWAYS_COMPILE",
    "TRITON_CACHE_MANAGER",
    "TRITON_INTERPRET",
    "TRITON_KERNEL_DUMP",
    "TRITON_KERNEL_OVERRIDE",
    "TRITON_REMOTE_CACHE_BACKEND",
    "TRITON_STORE_BINARY_ONLY",
)
"""Variables that change what a process does with its cache, and no key."""
_PLANNED = ("FLA_", "GDN_", "VLLM_")
"""Variables that kernels' modules read, as they were when the manifest was planned."""


def use_cache(cache_dir: str) -> None:
    """Let Triton keep its entries in `cache_dir`; call it before Triton is imported."""
    os.environ["TRITON_CACHE_DIR"] = cache_dir
    for name in _UNWANTED:
        os.environ.pop(name, None)


def plan_environment(toolchain: Toolchain) -> None:
    """Set what entered the keys of a manifest, as `toolchain` has it, before Triton is imported.

    A variable of Triton that is set here already stands: the keys then differ, and a
    comparison of the toolchains says so.
    """
    planned = {k: v for k, v in toolchain.environment.items() if k.startswith(_PLANNED)}
    os.environ.update(planned)
    for name, value in toolchain.key_environment.items():
        os.environ.setdefault(name, value)
