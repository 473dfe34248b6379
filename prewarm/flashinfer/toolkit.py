"""The CUDA compiler of this machine, and the host's C++ compiler."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from prewarm.core.errors import HostError
from prewarm.core.record import Record

_RELEASE = re.compile(r"release \d+\.\d+, V(\d+\.\d+\.\d+)")
_TOP = re.compile(r"^#\$ TOP=(.+)$", re.MULTILINE)


class Toolkit(Record, kw_only=True):
    """An installed CUDA toolkit."""

    home: str
    version: str
    """nvcc's: `13.0.88`."""
    text: str
    """All that `nvcc --version` says."""

    @property
    def nvcc(self) -> str:
        """The path of its compiler."""
        return str(Path(self.home, "bin", "nvcc"))


def find_toolkit(cuda: str) -> Toolkit:
    """Return the CUDA toolkit to compile with: of the major release of `cuda`, torch's.

    `CUDA_HOME` or `CUDA_PATH`, else the nvcc on PATH, else that of NVIDIA's Python packages, else
    /usr/local/cuda. Raises HostError with the packages to install where there is none.
    """
    others = []
    for home in _homes():
        toolkit = _toolkit_at(home)
        if toolkit is None:
            continue
        if toolkit.version.partition(".")[0] == cuda.partition(".")[0]:
            return toolkit
        others.append(f"nvcc {toolkit.version} in {home}")
    found = f"there is {' and '.join(others)}" if others else "there is no nvcc"
    raise HostError(
        f"{found}, and FlashInfer's CUDA kernels need one of CUDA {cuda.partition('.')[0]},"
        f" the release of torch here ({cuda}), with its headers",
        _install(cuda),
    )


def _install(cuda: str) -> str:
    release = "-".join(cuda.split(".")[:2])
    return (
        f"apt-get install cuda-nvcc-{release} cuda-cudart-dev-{release} g++"
        " (NVIDIA's repository), or build in a CUDA devel image"
    )


def _homes() -> Iterator[Path]:
    """Yield where a toolkit may be, the first one that FlashInfer would take before others."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if given := os.environ.get(variable):
            yield Path(given)
    if nvcc := shutil.which("nvcc"):
        yield _home_of(nvcc)
    yield from _packages()
    yield Path("/usr/local/cuda")


def _home_of(nvcc: str) -> Path:
    """Return the toolkit of `nvcc`, which may be a link or a script that calls the real one."""
    said = subprocess.run(
        [nvcc, "--dryrun", "-x", "cu", "-c", os.devnull],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    top = _TOP.search(said.stderr + said.stdout)
    return Path(top[1].strip()).resolve() if top else Path(nvcc).resolve().parents[1]


def _packages() -> Iterator[Path]:
    """Yield where NVIDIA's Python packages put a toolkit: `nvidia/cu13`."""
    spec = find_spec("nvidia")
    for place in (spec and spec.submodule_search_locations) or ():
        yield from sorted(Path(place).glob("cu[0-9]*"))


def _toolkit_at(home: Path) -> Toolkit | None:
    """Return the toolkit in `home`, None unless there are compiler and headers."""
    nvcc = home / "bin" / "nvcc"
    if not (os.access(nvcc, os.X_OK) and (home / "include" / "cuda_runtime.h").exists()):
        return None
    said = subprocess.run(
        [nvcc, "--version"], capture_output=True, text=True, errors="replace", check=False
    )
    release = _RELEASE.search(said.stdout)
    return Toolkit(home=str(home), version=release[1], text=said.stdout) if release else None


def runtime_library(toolkit: Toolkit, cuda: str) -> Path:
    """Return the CUDA runtime library to link with; raises HostError where there is none."""
    name = f"libcudart.so.{cuda.partition('.')[0]}"
    places = [Path(toolkit.home, "lib64"), Path(toolkit.home, "lib")]
    places += [home / "lib" for home in _packages()]
    for place in places:
        if (place / name).exists():
            return place / name
    raise HostError(
        f"{name} is neither in {toolkit.home} nor among torch's libraries", _install(cuda)
    )


def cxx_compiler() -> str:
    """Return the C++ compiler that FlashInfer would run; raises HostError when there is none."""
    found = shutil.which(os.environ.get("CXX", "c++"))
    if found is None:
        raise HostError(
            "no C++ compiler on PATH: it links what nvcc compiled", "apt-get install g++"
        )
    return found
