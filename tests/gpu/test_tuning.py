"""Tunings measured on this GPU, and a cache assembled from them that vLLM's engine serves with."""

from __future__ import annotations

from pathlib import Path

import pytest

from prewarm.core.manifest_yaml import read_manifest
from prewarm.core.tunings_yaml import read_tunings
from tests.gpu.machine import (
    DEFAULT_PREFILL,
    SERVE_ARGS,
    flashinfer_library,
    prewarm,
    serve,
    small_model,
    target_here,
)

pytestmark = pytest.mark.gpu


def test_serving_with_tunings_neither_compiles_nor_benchmarks(tmp_path: Path) -> None:
    """Winners measured here, one of them perhaps beyond the list, are found and compute right."""
    model = small_model(tmp_path / "model")
    serve_args = (str(model), *SERVE_ARGS, "--enforce-eager")
    manifest, tunings = tmp_path / "manifest.yaml", tmp_path / "tunings.yaml"
    compiled = tmp_path / "compiled"
    prewarm("plan", "--target", target_here(), "--closure", 10, "-o", manifest, "--", *serve_args)
    few = ("--sizes", "64,1024=2,2048x8", "--search", 6)
    prewarm("tune", manifest, *few, "--model", model, "-o", tunings)
    prewarm("compile", manifest, "--tunings", tunings, "--cache-dir", compiled)
    prewarm("pack", manifest, "--cache-dir", compiled, "-o", tmp_path / "image")
    cache = Path(prewarm("install", tmp_path / "image", "--into", tmp_path / "installed"))

    served = serve(cache, *serve_args)

    planned = {kernel.name for kernel in read_manifest(manifest).kernels}
    counts = {name: count for name, count in served["counts"].items() if name in planned}
    assert [miss for miss in served["misses"] if miss["kernel"] in planned] == []
    assert sum(count.get("benchmark", 0) for count in counts.values()) == 0
    assert sum(count.get("hit", 0) for count in counts.values()) > 15
    assert served["error"] < 0.01
    tuned = [key for kernel in read_tunings(tunings).kernels for key in kernel.keys]
    assert len(tuned) == 6
    assert all(key.score < 1.5 for key in tuned)


def test_flashinfer_is_measured_beside_triton(tmp_path: Path) -> None:
    model = str(small_model(tmp_path / "model"))
    manifest, by_default = tmp_path / "manifest.yaml", tmp_path / "default.yaml"
    plan = ("plan", "--target", target_here(), "--closure", 0, "-o")
    prewarm(*plan, manifest, "--", model, *SERVE_ARGS, "--enforce-eager")
    prewarm(*plan, by_default, "--", model, *DEFAULT_PREFILL, "--enforce-eager")
    library = flashinfer_library(by_default, tmp_path)

    few = ("--sizes", "64,2048", "--search", 0, "--model", model)
    prewarm("tune", manifest, *few, "--flashinfer", library, "-o", tmp_path / "tunings.yaml")

    (run,) = read_tunings(tmp_path / "tunings.yaml").runs
    assert [each.backend for each in run.prefills] == ["flashinfer", "triton", "triton"]
    assert all(time > 0 for each in run.prefills for time in each.times)
    flashinfer, winners, references = run.prefills
    assert winners.times[1] < 1.1 * references.times[1]
    assert flashinfer.how.endswith("bf16_g1b1a1i1c0")
