"""The tunings in `manifests/tunings` are those of the kernels that this vLLM has."""

from __future__ import annotations

import pytest

from prewarm.core.manifest_yaml import read_manifest
from prewarm.core.target import targets
from prewarm.core.tunings_merge import merge
from prewarm.core.tunings_yaml import read_tunings, render_tunings
from tests.conftest import ROOT

FILES = sorted((ROOT / "manifests/tunings").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_sources_and_candidates_are_those_of_today(file, planned):
    found = read_tunings(file)
    target = next(t.name for t in targets().values() if t.device_name == found.gpu)
    small = str(ROOT / "model-configs/Qwen3.5-0.8B")
    manifest = read_manifest(planned(target, small, "--gdn-prefill-backend", "triton"))
    today = {kernel.name: (kernel.source, kernel.candidates) for kernel in manifest.kernels}

    assert found.triton == manifest.toolchain.triton
    assert {k.name: (k.source, k.candidates) for k in found.kernels} == {
        kernel.name: today[kernel.name] for kernel in found.kernels
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_is_what_prewarm_writes(file):
    assert file.read_text() == render_tunings(read_tunings(file))


def test_those_of_one_gpu_can_be_merged():
    by_gpu = {}
    for found in map(read_tunings, FILES):
        by_gpu.setdefault(found.gpu, []).append(found)

    for every in by_gpu.values():
        merged = merge(every)
        assert len(merged.runs) == len(every)
        assert sum(len(k.keys) for k in merged.kernels) == 6 * len(every)


def test_there_are_some():
    assert FILES
