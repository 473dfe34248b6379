"""`prewarm prove` on the GPU: a cache that was made without it spares all work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prewarm.core.flashinfer import HOPPER
from tests.gpu.machine import (
    DEFAULT_PREFILL,
    SERVE_ARGS,
    flashinfer_library,
    prewarm,
    small_model,
    target_here,
    tunings_here,
)

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


@pytest.mark.parametrize("depth", [(), ("--engine",)], ids=["layer", "engine"])
def test_flashinfers_prefill_is_loaded_from_the_image_and_not_built(
    tmp_path: Path, depth: tuple[str, ...]
) -> None:
    serve_args = (str(small_model(tmp_path / "model")), *DEFAULT_PREFILL, *EAGER)
    manifest, compiled = tmp_path / "manifest.yaml", tmp_path / "compiled"
    prewarm("plan", "--target", target_here(), "--closure", 10, "-o", manifest, "--", *serve_args)
    prewarm("compile", manifest, "--cache-dir", compiled)
    library = flashinfer_library(manifest, tmp_path)
    prewarm(
        "pack", manifest, "--cache-dir", compiled, "--flashinfer", library, "-o", tmp_path / "image"
    )
    prewarm("install", tmp_path / "image", "--into", tmp_path / "installed")

    said = prewarm(
        "prove", tmp_path / "installed", *depth, "--no-cold", "--json", "--", *serve_args
    )

    found = json.loads(said)
    assert found["holds"]
    (column,) = found["columns"]
    taken = column["libraries"][HOPPER]
    assert taken["loads"] >= 1
    assert "builds" not in taken
