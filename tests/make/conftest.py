"""A manifest recorded on a virtual GPU, and the cache compiled from it, once a session."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prewarm.core.manifest import Manifest
from prewarm.core.manifest_yaml import read_manifest
from prewarm.make.compile import compile_manifest

RECORDER = Path(__file__).with_name("record_sample.py")
TUNED_RECORDER = Path(__file__).with_name("record_tuned.py")


@pytest.fixture(scope="session", autouse=True)
def _no_ptxas_on_path():
    """Leave Triton its own ptxas: flashinfer would name one of CUDA 13 that is on PATH."""
    before = os.environ["PATH"]
    kept = [each for each in before.split(os.pathsep) if not Path(each, "ptxas").exists()]
    os.environ["PATH"] = os.pathsep.join(kept)
    yield
    os.environ["PATH"] = before


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    """Return a function from a target's name to a manifest of five of vLLM's own launches."""

    @functools.cache
    def record(target: str) -> Manifest:
        out = tmp_path_factory.mktemp("sample") / f"{target}.yaml"
        subprocess.run(
            [sys.executable, RECORDER, target, out], check=True, capture_output=True, timeout=300
        )
        return read_manifest(out)

    return record


@pytest.fixture(scope="session")
def compiled(sample, tmp_path_factory):
    """Return a function from a target's name to a compiled cache directory; not to be changed."""

    @functools.cache
    def compile_(target: str) -> Path:
        directory = tmp_path_factory.mktemp("compiled") / "cäche of a pod"
        list(compile_manifest(sample(target), directory, jobs=2))
        return directory

    return compile_


@pytest.fixture(scope="session")
def prefill_plan(tmp_path_factory):
    """Return a function from a target's name to a manifest of one prefill with its autotuners."""

    @functools.cache
    def record(target: str) -> Manifest:
        out = tmp_path_factory.mktemp("prefill") / f"{target}.yaml"
        subprocess.run(
            [sys.executable, TUNED_RECORDER, target, out],
            check=True,
            capture_output=True,
            timeout=300,
        )
        return read_manifest(out)

    return record
