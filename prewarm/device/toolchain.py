"""The toolchain of this process, as its compile keys and host modules depend on it."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from importlib.util import find_spec

import torch
import triton

from prewarm.core.target import Target
from prewarm.core.toolchain import Ptxas, Toolchain, ptxas_variable
from prewarm.device import triton_seam


def read_toolchain(target: Target, environment: Mapping[str, str] | None = None) -> Toolchain:
    """Return the toolchain that this process would compile for `target` with.

    Call it where serving would first compile: after vLLM's model runner is imported, because
    that import may choose another ptxas. `environment` holds the variables read so far.
    """
    return Toolchain(
        vllm=metadata.version("vllm"),
        torch=str(torch.__version__),
        cuda=torch.version.cuda or "none",
        triton=triton.__version__,
        triton_key=triton_seam.triton_key_digest(),
        ptxas=triton_seam.resolved_ptxas(target.arch),
        python_abi=sys.implementation.cache_tag,
        machine=platform.machine(),
        libc=" ".join(platform.libc_ver()),
        key_environment=triton_seam.key_environment(),
        environment=dict(sorted((environment or {}).items())),
    )


def let_serving_choose_ptxas(planned: Ptxas, target: Target) -> None:
    """Let whoever names a ptxas in a serving process name one here.

    On Blackwell that is flashinfer, which vLLM's model runner imports wherever it is installed;
    elsewhere Inductor, when it first compiles, if it did so in the `planned` process. Call it
    before Triton's first key. A variable that is set already stays.
    """
    variable = ptxas_variable(target.arch)
    if os.environ.get(variable):
        return
    if variable == "TRITON_PTXAS_BLACKWELL_PATH":
        if find_spec("flashinfer"):
            importlib.import_module("flashinfer")
    elif planned.chosen_by == variable:
        inductor = importlib.import_module("torch._inductor.runtime.compile_tasks")
        inductor._set_triton_ptxas_path()
