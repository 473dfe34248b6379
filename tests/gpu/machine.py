"""The GPU of this machine, and what the tests on it share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prewarm.core.target import targets

ROOT = Path(__file__).parents[2]
DEFAULT_PREFILL = (
    "--attention-backend", "TRITON_ATTN",
    "--load-format", "dummy", "--skip-tokenizer-init", "--language-model-only",
    "--max-model-len", "8192", "--num-gpu-blocks-override", "1200",
)  # fmt: skip

SERVE_ARGS = ("--gdn-prefill-backend", "triton", *DEFAULT_PREFILL)
LIBRARY = "PREWARM_TEST_FLASHINFER"
"""Names what `compile --flashinfer` built for the small model on a machine without a GPU."""


def small_model(directory: Path) -> Path:
    """Write Qwen3.5-9B cut to its first four layers: three of GDN, one of full attention."""
    config = json.loads((ROOT / "model-configs/Qwen3.5-9B/config.json").read_text())
    text = config["text_config"]
    text["num_hidden_layers"], text["layer_types"] = 4, text["layer_types"][:4]
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def prewarm(*args: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "prewarm", *map(str, args)],
        check=False, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def serve(cache: Path, *serve_args: str) -> dict[str, Any]:
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


def target_here() -> str:
    """Return the name of the target that this machine's GPU is."""
    import torch

    name = torch.cuda.get_device_name(0)
    return next(target.name for target in targets().values() if target.device_name == name)


def tunings_here() -> Path:
    """Return the kept tunings of Qwen3.5-9B on this GPU; skips the test where there are none."""
    found = ROOT / f"manifests/tunings/{target_here()}-qwen3.5-9b-tp1.yaml"
    if not found.exists():
        pytest.skip(f"there are no tunings of {found.stem}")
    return found


def flashinfer_library(manifest: Path, scratch: Path) -> Path:
    """Return a FlashInfer library for the deployment of `manifest`: built here unless given."""
    given = os.environ.get(LIBRARY)
    if given:
        return Path(given)
    library = scratch / "flashinfer"
    prewarm("compile", manifest, "--cache-dir", scratch / "other", "--flashinfer", library)
    return library
