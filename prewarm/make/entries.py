"""The directory that Triton keeps its entries in: one writer at a time, whole entries only."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec

from prewarm.core.cache import COMPILED_NAME, COMPILED_SCHEMA, Compiled
from prewarm.core.document import parse_json
from prewarm.core.errors import InputError, TryAgainError
from prewarm.core.files import host_errors, write_atomic
from prewarm.core.selection import Selection

_KEY = re.compile(r"[A-Z2-7]{52}")
_TEMPORARY = "tmp.pid_"
_GROUP = "__grp__"


class _Group(msgspec.Struct):
    """A group file: Triton writes it last, and reads what it names."""

    child_paths: dict[str, str]


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
    """Leave only whole entries in `cache_dir`, which Triton finds by themselves.

    Removes drafts and entries that an interrupt cut short. The paths in a group file of an
    entry that was copied or moved here are set to where it is.
    """
    with host_errors(f"clean the cache directory {cache_dir}"):
        for entry in sorted(cache_dir.iterdir()):
            if _KEY.fullmatch(entry.name) and entry.is_dir() and not entry.is_symlink():
                _sweep_entry(entry)


def withdraw_index(cache_dir: Path, selection: Selection | None) -> None:
    """Remove the index in `cache_dir` unless it describes a cache of `selection`."""
    path = cache_dir / COMPILED_NAME
    with host_errors(f"replace {path}"):
        if path.exists() and not _describes(path, selection):
            path.unlink()


def _describes(index: Path, selection: Selection | None) -> bool:
    try:
        found = parse_json(index.read_bytes(), Compiled, COMPILED_SCHEMA, str(index))
    except InputError:
        return False
    return found.selection == selection


def _sweep_entry(entry: Path) -> None:
    names = os.listdir(entry)
    groups = [entry / name for name in names if name.startswith(_GROUP)]
    complete = groups or any(name.endswith((".so", ".autotune.json")) for name in names)
    if not complete or not all(_is_rooted(group) for group in groups):
        shutil.rmtree(entry)
        return
    for name in names:
        if name.startswith(_TEMPORARY):
            shutil.rmtree(entry / name)


def _is_rooted(group: Path) -> bool:
    """Whether all files that `group` names lie beside it; its paths then say so."""
    try:
        paths = msgspec.json.decode(group.read_bytes(), type=_Group).child_paths
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return False
    rooted = {name: str(group.parent / name) for name in paths}
    if not all(os.path.isfile(path) for path in rooted.values()):
        return False
    if rooted != paths:
        write_atomic(group, json.dumps({"child_paths": rooted}).encode())
    return True
