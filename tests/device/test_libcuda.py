import json
import subprocess
import sys
from pathlib import Path

import pytest

from prewarm.core.errors import HostError
from prewarm.device import libcuda

EXTENSIONS = """
import json
from prewarm.device.libcuda import SONAME, load_stub
directory = load_stub()
import ctypes
import torch
import vllm._C_stable_libtorch, vllm._moe_C_stable_libtorch, vllm._flashmla_C, vllm._qutlass_C
import vllm.cumem_allocator
maps = open("/proc/self/maps").read()
print(json.dumps({
    "operator": hasattr(torch.ops._C, "silu_and_mul"),
    "cuda": torch.cuda.is_available(),
    "init": ctypes.CDLL(SONAME).cuInit(0),
    "drivers": sorted({line.split()[-1] for line in maps.splitlines() if SONAME in line}),
    "stub": str(directory / SONAME),
}))
"""


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache é"))
    return tmp_path / "cache é" / "prewarm"


def test_cuda_extensions_load_and_register_their_operators_without_a_driver():
    done = subprocess.run(
        [sys.executable, "-c", EXTENSIONS], capture_output=True, text=True, check=True
    )
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["operator"] is True
    assert seen["cuda"] is False
    assert seen["init"] == 100
    assert seen["drivers"] == [seen["stub"]]


def test_the_stub_is_built_once(own_cache: Path, monkeypatch: pytest.MonkeyPatch):
    first = libcuda.stub_directory()
    built = (first / libcuda.SONAME).stat()
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CC", raising=False)
    assert libcuda.stub_directory() == first
    assert (first / libcuda.SONAME).stat() == built
    assert first.is_relative_to(own_cache)


def test_two_builds_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    builds = []
    for name in ("one", "two"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        builds.append((libcuda.stub_directory() / libcuda.SONAME).read_bytes())
    assert builds[0] == builds[1]


def test_without_a_compiler_the_error_names_the_package(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(HostError) as caught:
        libcuda.stub_directory()
    assert caught.value.exit_code == 4
    assert caught.value.hint == "apt-get install gcc libc6-dev"
    assert not own_cache.exists()


def test_a_compiler_that_fails_is_quoted(own_cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CC", "false")
    with pytest.raises(HostError, match="cannot build the stub of the CUDA driver"):
        libcuda.stub_directory()
    assert not any(own_cache.glob("*/*"))
