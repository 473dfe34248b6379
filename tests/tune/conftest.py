"""What the tests of tuning share."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

IDLE = "0, GPU-aaaa, NVIDIA H100 80GB HBM3, 570.86, 0, 4, 345, 2619, 31, 700.00\n"


@pytest.fixture
def says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return what puts an nvidia-smi on PATH that prints the given text (there is no GPU here)."""

    def say(text: str) -> None:
        directory = tmp_path / "bin"
        directory.mkdir(exist_ok=True)
        command = directory / "nvidia-smi"
        command.write_text(f"#!/bin/sh\ncat <<'END'\n{text}END\n")
        command.chmod(command.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(directory), prepend=os.pathsep)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return say
