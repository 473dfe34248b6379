"""What this image has of FlashInfer's Hopper library already."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from prewarm.core.flashinfer import HOPPER, PYTHON
from prewarm.flashinfer.flashinfer_seam import version

CODE = f"""
from prewarm.flashinfer.flashinfer_seam import prebuilt
found = prebuilt({HOPPER!r})
print(found and f"{{found.what}}: {{found.spares}}")
"""


@pytest.fixture
def prebuilt(tmp_path: Path, root: Path):
    """Return a function that asks in a fresh process; what it is given comes first on its path."""

    def ask(*paths: Path) -> str:
        done = subprocess.run(
            [sys.executable, "-c", CODE],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(map(str, (*paths, root))),
                "FLASHINFER_WORKSPACE_BASE": str(tmp_path),
                "FLASHINFER_CUDA_ARCH_LIST": "9.0a",
            },
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    return ask


def test_a_library_of_a_package_is_named_with_its_version(built: Path, prebuilt) -> None:
    assert prebuilt(built / PYTHON) == f"flashinfer-jit-cache {version()}+prewarm: False"


def test_flashinfers_own_package_spares_a_library_of_ours(
    built: Path, tmp_path: Path, prebuilt
) -> None:
    shutil.copytree(built, tmp_path / "theirs")
    package = tmp_path / "theirs" / PYTHON / "flashinfer_jit_cache" / "__init__.py"
    package.write_text(package.read_text("utf-8").replace("+prewarm", ""), "utf-8")

    assert prebuilt(tmp_path / "theirs" / PYTHON) == f"flashinfer-jit-cache {version()}: True"


def test_a_package_without_this_library_brings_nothing(tmp_path: Path, prebuilt) -> None:
    package = tmp_path / "path" / "flashinfer_jit_cache" / "__init__.py"
    package.parent.mkdir(parents=True)
    lines = (f'__version__ = "{version()}"', "get_jit_cache_dir = lambda: '/nowhere'")
    package.write_text("\n".join(lines), "utf-8")

    assert prebuilt(package.parents[1]) == "None"


def test_a_filled_cache_directory_is_found_where_flashinfer_would_look(
    tmp_path: Path, prebuilt
) -> None:
    assert prebuilt() == "None"
    cached = tmp_path / ".cache" / "flashinfer" / version() / "90a" / "cached_ops" / HOPPER
    cached.mkdir(parents=True)
    (cached / f"{HOPPER}.so").touch()

    found = prebuilt()
    assert found.startswith("a filled cache directory")
    assert found.endswith(": False")
