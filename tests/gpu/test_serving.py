"""A cache built without the GPU, used by vLLM's own engine on the GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prewarm.core.manifest_yaml import read_manifest
from tests.gpu.machine import target_here

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[2]
COMMON = (
    "--gdn-prefill-backend", "triton", "--attention-backend", "TRITON_ATTN",
    "--load-format", "dummy", "--skip-tokenizer-init", "--language-model-only",
    "--max-model-len", "8192", "--num-gpu-blocks-override", "1200",
)  # fmt: skip


def _small_model(directory: Path) -> Path:
    """Write Qwen3.5-9B cut to its first four layers: three of GDN, one of full attention."""
    config = json.loads((ROOT / "model-configs/Qwen3.5-9B/config.json").read_text())
    text = config["text_config"]
    text["num_hidden_layers"], text["layer_types"] = 4, text["layer_types"][:4]
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def _prewarm(*args: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "prewarm", *map(str, args)],
        check=False, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _serve(cache: Path, *serve_args: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.serve", *serve_args],
        check=False, capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "TRITON_CACHE_DIR": str(cache), "TRITON_CACHE_AUTOTUNING": "1"},
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stdout[-3000:] + done.stderr[-6000:]
    result: dict[str, Any] = json.loads(lines[0].removeprefix("RESULT "))
    sys.stdout.write(json.dumps(result, indent=1))
    return result


@pytest.mark.parametrize("mode", [("--enforce-eager",), ()], ids=["eager", "compiled with graphs"])
def test_serving_compiles_nothing_of_the_manifest(tmp_path: Path, mode: tuple[str, ...]) -> None:
    """Every launch of a planned kernel is a hit, and prefill computes what it should."""
    serve_args = (str(_small_model(tmp_path / "model")), *COMMON, *mode)
    manifest, compiled = tmp_path / "manifest.yaml", tmp_path / "compiled"
    _prewarm("plan", "--target", target_here(), "--closure", 10, "-o", manifest, "--", *serve_args)
    _prewarm("compile", manifest, "--cache-dir", compiled)
    _prewarm("pack", manifest, "--cache-dir", compiled, "-o", tmp_path / "image")
    cache = Path(_prewarm("install", tmp_path / "image", "--into", tmp_path / "installed"))

    served = _serve(cache, *serve_args)

    planned = {kernel.name for kernel in read_manifest(manifest).kernels}
    assert [miss for miss in served["misses"] if miss["kernel"] in planned] == []
    assert sum(c.get("hit", 0) for n, c in served["counts"].items() if n in planned) > 20
    assert served["error"] < 0.01
