"""Which CUDA compiler is taken, and what is said where there is none."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from prewarm.core.errors import HostError
from prewarm.flashinfer import toolkit
from prewarm.flashinfer.toolkit import cxx_compiler, find_toolkit, runtime_library

CUDA = torch.version.cuda or ""


def test_the_toolkit_of_torchs_cuda_is_found_with_its_runtime() -> None:
    found = find_toolkit(CUDA)

    assert found.version.partition(".")[0] == CUDA.partition(".")[0]
    assert Path(found.nvcc).exists()
    assert runtime_library(found, CUDA).name == f"libcudart.so.{CUDA.partition('.')[0]}"


def test_a_script_on_path_that_calls_nvcc_stands_for_the_toolkit_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FlashInfer would take the directory above the script for the toolkit."""
    real = find_toolkit(CUDA)
    script = tmp_path / "bin" / "nvcc"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec {real.nvcc} "$@"\n', "utf-8")
    script.chmod(0o755)
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", f"{script.parent}:/usr/bin:/bin")

    assert Path(find_toolkit(CUDA).home).resolve() == Path(real.home).resolve()


def test_a_toolkit_of_another_cuda_is_told_with_the_packages_to_install() -> None:
    with pytest.raises(HostError, match=r"nvcc 1\d\.\S+ in .* need one of CUDA 99") as raised:
        find_toolkit("99.1")

    assert "apt-get install cuda-nvcc-99-1 cuda-cudart-dev-99-1 g++" in (raised.value.hint or "")


def test_a_directory_without_headers_is_no_toolkit(tmp_path: Path) -> None:
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    shutil.copy(find_toolkit(CUDA).nvcc, nvcc)

    assert toolkit._toolkit_at(tmp_path) is None


def test_without_a_linker_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/c++")

    with pytest.raises(HostError, match=r"no C\+\+ compiler") as raised:
        cxx_compiler()

    assert raised.value.hint == "apt-get install g++"
