"""The assembler: its version text is part of every key, so it must be the one that was planned."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping

import torch

from prewarm.core.errors import InputError
from prewarm.core.toolchain import Ptxas, ptxas_variable
from prewarm.device import triton_seam


def choose_ptxas(wanted: Ptxas, arch: int) -> Ptxas:
    """Point this process at an assembler for `arch` that says exactly what `wanted` said.

    Returns what Triton then resolves. Raises InputError that lists every assembler found
    here when none is the wanted one.
    """
    found = _found(arch)
    if path := _path_of(wanted, found):
        os.environ[ptxas_variable(arch)] = path
        return triton_seam.resolved_ptxas(arch)
    rows = "\n".join(f"  {ptxas.version}  {path}" for path, ptxas in found.items())
    variable = ptxas_variable(arch)
    raise InputError(
        f"the manifest was planned with ptxas {wanted.version} (chosen by {wanted.chosen_by});"
        f" here are only\n{rows}",
        f"put that ptxas on PATH, name it in {variable}, or plan again here",
    )


def path_of(wanted: Ptxas, arch: int) -> str | None:
    """Return the path of an assembler here that says what `wanted` said, None where none does."""
    return _path_of(wanted, _found(arch))


def _path_of(wanted: Ptxas, found: Mapping[str, Ptxas]) -> str | None:
    return next((path for path, ptxas in found.items() if ptxas.text == wanted.text), None)


def _found(arch: int) -> dict[str, Ptxas]:
    candidates = (
        triton_seam.own_ptxas(arch),
        os.environ.get(ptxas_variable(arch)),
        shutil.which("ptxas"),
        os.path.join(os.path.dirname(torch.__file__), "bin", "ptxas"),
        "/usr/local/cuda/bin/ptxas",
    )
    found: dict[str, Ptxas] = {}
    for path in candidates:
        if path and path not in found:
            try:
                text = triton_seam.ptxas_text(path)
            except (OSError, subprocess.CalledProcessError):
                continue
            found[path] = triton_seam.ptxas_of_text(text, path)
    return found
