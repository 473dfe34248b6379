"""`prewarm prove` on the GPU: a cache that was made without it spares all work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.gpu.machine import SERVE_ARGS, prewarm, small_model, target_here, tunings_here

pytestmark = pytest.mark.gpu


EAGER = ("--enforce-eager",)
SPECULATION = {"method": "mtp", "num_speculative_tokens": 2, "attention_backend": "TRITON_ATTN"}
MTP = ("--speculative-config", json.dumps(SPECULATION))


@pytest.mark.parametrize(
    ("depth", "further"),
    [((), EAGER), (("--engine",), EAGER), (("--engine",), ()), (("--engine",), (*EAGER, *MTP))],
    ids=["layer", "engine", "compiled engine", "engine with MTP"],
)
def test_an_installed_cache_holds(
    tmp_path: Path, depth: tuple[str, ...], further: tuple[str, ...]
) -> None:
    serve_args = (str(small_model(tmp_path / "model")), *SERVE_ARGS, *further)
    manifest, compiled = tmp_path / "manifest.yaml", tmp_path / "compiled"
    prewarm("plan", "--target", target_here(), "--closure", 10, "-o", manifest, "--", *serve_args)
    prewarm("compile", manifest, "--cache-dir", compiled, "--tunings", tunings_here())
    prewarm("pack", manifest, "--cache-dir", compiled, "-o", tmp_path / "image")
    prewarm("install", tmp_path / "image", "--into", tmp_path / "installed")

    said = prewarm(
        "prove", tmp_path / "installed", *depth, "--no-cold", "--json", "--", *serve_args
    )

    found = json.loads(said)
    assert found["escapes"] == []
    assert found["holds"]
