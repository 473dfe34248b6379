"""A cache built without the GPU, used by vLLM's own engine on the GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from prewarm.core.manifest_yaml import read_manifest
from tests.gpu.machine import SERVE_ARGS, prewarm, serve, small_model, target_here

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("mode", [("--enforce-eager",), ()], ids=["eager", "compiled with graphs"])
def test_serving_compiles_nothing_of_the_manifest(tmp_path: Path, mode: tuple[str, ...]) -> None:
    """Every launch of a planned kernel is a hit, and prefill computes what it should."""
    serve_args = (str(small_model(tmp_path / "model")), *SERVE_ARGS, *mode)
    manifest, compiled = tmp_path / "manifest.yaml", tmp_path / "compiled"
    prewarm("plan", "--target", target_here(), "--closure", 10, "-o", manifest, "--", *serve_args)
    prewarm("compile", manifest, "--cache-dir", compiled)
    prewarm("pack", manifest, "--cache-dir", compiled, "-o", tmp_path / "image")
    cache = Path(prewarm("install", tmp_path / "image", "--into", tmp_path / "installed"))

    served = serve(cache, *serve_args)

    planned = {kernel.name for kernel in read_manifest(manifest).kernels}
    assert [miss for miss in served["misses"] if miss["kernel"] in planned] == []
    assert sum(c.get("hit", 0) for n, c in served["counts"].items() if n in planned) > 20
    assert served["error"] < 0.01
