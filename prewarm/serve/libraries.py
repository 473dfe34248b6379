"""The libraries of an installed cache, where FlashInfer finds them in this process."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from prewarm.core.cache import FLASHINFER_PYTHON
from prewarm.serve.flashinfer_seam import has_settled
from prewarm.serve.log import say_once


def use_libraries(entries: Path) -> None:
    """Put FlashInfer's part of the cache that holds `entries` first on the module path."""
    directory = Path(os.path.realpath(entries)).parent / FLASHINFER_PYTHON
    found = {os.path.realpath(each) for each in sys.path}
    if not directory.is_dir() or str(directory) in found:
        return
    if has_settled():
        say_once(
            "FlashInfer was imported before this plugin was loaded and does not find the libraries"
            f" in {directory}: put that directory first in PYTHONPATH"
        )
        return
    sys.path.insert(0, str(directory))
