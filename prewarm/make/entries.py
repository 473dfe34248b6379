"""The directory that Triton keeps its entries in: one writer at a time, whole entries only."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from prewarm.core.errors import TryAgainError
from prewarm.core.files import host_errors

_KEY = re.compile(r"[A-Z2-7]{52}")
_TEMPORARY = "tmp.pid_"


@contextlib.contextmanager
def sole_writer(cache_dir: Path) -> Iterator[None]:
    """Make `cache_dir`, hold it as its only writer, and leave only whole entries in it.

    Raises TryAgainError while another prewarm writes there, HostError where none can.
    """
    with host_errors(f"write the cache directory {cache_dir}"):
        cache_dir.mkdir(parents=True, exist_ok=True)
        handle = os.open(cache_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TryAgainError(
                f"another prewarm is writing {cache_dir}", "wait for it, or use another --cache-dir"
            ) from error
        sweep(cache_dir)
        try:
            yield
        finally:
            sweep(cache_dir)
    finally:
        os.close(handle)


def sweep(cache_dir: Path) -> None:
    """Remove what an interrupted Triton left in `cache_dir`: entries without an end, drafts."""
    with host_errors(f"clean the cache directory {cache_dir}"):
        for entry in sorted(cache_dir.iterdir()):
            if _KEY.fullmatch(entry.name) and entry.is_dir() and not entry.is_symlink():
                _sweep_entry(entry)


def _sweep_entry(entry: Path) -> None:
    names = os.listdir(entry)
    if not any(_ends_an_entry(name) for name in names):
        shutil.rmtree(entry)
        return
    for name in names:
        if name.startswith(_TEMPORARY):
            shutil.rmtree(entry / name)


def _ends_an_entry(name: str) -> bool:
    """Whether Triton writes the file `name` last, or alone."""
    return name.startswith("__grp__") or name.endswith((".so", ".autotune.json"))
