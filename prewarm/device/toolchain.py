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
from prewarm.core.toolchain import Ptxas, Toolchain
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
    """Let whoever named a ptxas in the planned serving process name one here.

    On Blackwell that is flashinfer, when it is imported; elsewhere Inductor, when it first
    compiles. Call it before Triton's first key. A variable that is set already stays.
    """
    variable = triton_seam.ptxas_variable(target.arch)
    if planned.chosen_by != variable or os.environ.get(variable):
        return
    if variable == "TRITON_PTXAS_PATH":
        inductor = importlib.import_module("torch._inductor.runtime.compile_tasks")
        inductor._set_triton_ptxas_path()
    elif find_spec("flashinfer"):
        importlib.import_module("flashinfer")
