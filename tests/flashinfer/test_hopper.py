"""FlashInfer's Hopper library, compiled by nvcc and loaded by FlashInfer, without a GPU."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from prewarm.core.errors import InputError
from prewarm.core.flashinfer import AOT, HOPPER, PYTHON, PrefillCall
from prewarm.core.flashinfer_file import read_built
from prewarm.core.manifest import Elsewhere
from prewarm.flashinfer.build import build_module
from prewarm.flashinfer.hopper import OBJECTS
from prewarm.flashinfer.message import Kept, Made, Ready

Asked = Callable[..., Elsewhere]

LOAD = """
from flashinfer.jit.gdn import gen_gdn_prefill_sm90_module
module = gen_gdn_prefill_sm90_module().build_and_load()
assert module["gdn_prefill"]
maps = open("/proc/self/maps").read().split()
print(sorted({path for path in maps if path.endswith("gdn_prefill_sm90.so")}))
"""
ASK_WITHOUT_BETA = """
import ctypes, subprocess, sys, torch, tvm_ffi
library = sys.argv[1]
said = subprocess.run(["nm", "-D", library], capture_output=True, text=True, check=True).stdout
names = [line.split()[-1] for line in said.splitlines()]
dispatch, = (n for n in names if "launch_delta_rule_prefill_kernelI" in n and "__half" in n)
getattr(ctypes.CDLL(library), dispatch)(*[None] * 32)
"""


def run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {n: v for n, v in os.environ.items() if n not in ("CUDA_HOME", "CUDA_PATH")}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def load_with_flashinfer(
    path: Path, workspace: Path, nothing: Path
) -> subprocess.CompletedProcess[str]:
    """Let FlashInfer look for its library with `path` as PYTHONPATH and no program on PATH."""
    return run(
        LOAD,
        PYTHONPATH=str(path),
        PATH=str(nothing),
        FLASHINFER_WORKSPACE_BASE=str(workspace),
        FLASHINFER_CUDA_ARCH_LIST="9.0a",
    )


def test_the_library_holds_what_was_asked_for_and_says_what_it_is(built: Path) -> None:
    record = read_built(built)

    assert (record.module, record.arch) == (HOPPER, "sm_90a")
    assert record.compiler.startswith("nvcc ")
    (library,) = record.libraries
    assert library.instances == ("bf16_g1b1a1i1c0",)
    assert (built / library.file).stat().st_size == library.size


def test_flashinfer_loads_it_after_a_move_with_no_compiler_or_ninja_to_be_found(
    built: Path, tmp_path: Path
) -> None:
    """It takes it for flashinfer-jit-cache, and then compiles and looks through nothing."""
    moved = tmp_path / "moved"
    for name in (AOT, PYTHON):
        shutil.copytree(built / name, moved / name)

    done = load_with_flashinfer(moved / PYTHON, tmp_path / "workspace", tmp_path)

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == repr([str(moved / AOT / HOPPER / f"{HOPPER}.so")])
    assert not [*tmp_path.glob(f"workspace/.cache/flashinfer/*/*/cached_ops/{HOPPER}/*")]


def test_without_it_flashinfer_needs_a_compiler(tmp_path: Path) -> None:
    done = load_with_flashinfer(tmp_path, tmp_path / "workspace", tmp_path)

    assert done.returncode == 1
    assert "Error" in done.stderr.splitlines()[-1]


def test_an_instance_that_was_left_out_says_so_where_it_is_asked_for(built: Path) -> None:
    """The dispatch is called with null for every optional argument, in another dtype."""
    done = run(ASK_WITHOUT_BETA, str(built / AOT / HOPPER / f"{HOPPER}.so"))

    assert done.returncode == -signal.SIGABRT
    assert "was built by prewarm with bf16_g1b1a1i1c0 only" in done.stderr


def test_a_second_build_compiles_only_what_is_missing_and_gives_the_same_bytes(
    built: Path, tmp_path: Path, asked: Asked, call: PrefillCall
) -> None:
    again = tmp_path / "again"
    shutil.copytree(built / OBJECTS, again / OBJECTS)
    for file in (again / OBJECTS).glob("gdn_prefill_launcher-*"):
        file.unlink()

    ready, *parts = build_module(asked(HOPPER, call), "h100", again)

    assert isinstance(ready, Ready)
    assert {part.part for part in parts if isinstance(part, Made)} == {"gdn_prefill_launcher"}
    assert {part.part for part in parts if isinstance(part, Kept)} == {*ready.built}
    assert "bf16_g1b1a1i1c0" in ready.built
    assert read_built(again).libraries == read_built(built).libraries


def test_a_build_that_was_interrupted_leaves_no_record(
    built: Path, tmp_path: Path, asked: Asked, call: PrefillCall
) -> None:
    again = tmp_path / "again"
    for name in (OBJECTS, AOT):
        shutil.copytree(built / name, again / name)
    shutil.copy(built / "prewarm-flashinfer.json", again)

    parts = build_module(asked(HOPPER, call), "h100", again)
    next(parts)
    parts.close()

    assert not (again / "prewarm-flashinfer.json").exists()


def test_an_instance_that_this_flashinfer_does_not_know_is_refused(
    tmp_path: Path, asked: Asked, call: PrefillCall
) -> None:
    unknown = msgspec.structs.replace(call, dtype="fp32")

    with pytest.raises(InputError, match="has no instance fp32_g1b1a1i1c0"):
        list(build_module(asked(HOPPER, unknown), "h100", tmp_path))
