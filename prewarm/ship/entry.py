"""One entry of Triton's cache as it is shipped: cubin, metadata, and the group that joins them.

Triton 3.6 finds an entry through `<KEY>/__grp__NAME.json`, which holds the absolute path of
every other file, and reads all of those at each hit. Of them only the cubin and the metadata
are needed, so only those two are kept. What the build machine left in the metadata (where its
libdevice was) is cut down to a name: Triton reads it at compile time and never after.
"""

from __future__ import annotations

import base64
import json
from pathlib import PurePosixPath
from typing import Any

import msgspec

from prewarm.core.cache import ENTRIES, PLACEHOLDER_ROOT
from prewarm.core.record import Record

GROUP_PREFIX = "__grp__"


class _Target(msgspec.Struct):
    backend: str
    arch: int | str
    warp_size: int


class _Metadata(msgspec.Struct):
    """What is used of the metadata of a compiled kernel."""

    hash: str
    target: _Target
    extern_libs: tuple[tuple[str, str], ...] | None = None


class Group(Record, kw_only=True):
    """The files of an entry, and the directory under which they are sought."""

    root: str
    names: tuple[str, ...]


def is_group(path: str) -> bool:
    """Return whether the file at `path` of a cache tree is the group of an entry."""
    parts = PurePosixPath(path).parts
    return len(parts) == 3 and parts[0] == ENTRIES and parts[2].startswith(GROUP_PREFIX)


def key_of(path: str) -> str:
    """Return the key of the entry that the file at `path` of a cache tree belongs to."""
    return PurePosixPath(path).parts[1]


def key_of_hash(digest: str) -> str | None:
    """Return the directory that Triton keeps the compile `digest` (hex) in, None if it is none."""
    try:
        return base64.b32encode(bytes.fromhex(digest)).decode("ascii").rstrip("=")
    except ValueError:
        return None


def render_group(key: str, group: Group) -> bytes:
    """Return the group file of the entry `key`, the same bytes for equal groups."""
    paths = {name: f"{group.root}/{key}/{name}" for name in sorted(group.names)}
    # Escaped to ASCII, as Triton does it: it opens the file in the locale of the process.
    return json.dumps({"child_paths": paths}).encode("ascii")


def parse_group(data: bytes, key: str) -> Group | None:
    """Return the group in `data`, or None where it is not what `render_group` writes for `key`."""
    try:
        paths = json.loads(data)["child_paths"]
        names = tuple(sorted(paths))
        root = paths[names[0]].removesuffix(f"/{key}/{names[0]}")
        group = Group(root=root, names=names)
        return group if render_group(key, group) == data else None
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return None


def reroot(data: bytes, key: str, root: str) -> bytes | None:
    """Return the group file `data` with its paths under `root`, or None where it is no group."""
    group = parse_group(data, key)
    return None if group is None else render_group(key, Group(root=root, names=group.names))


def placeholder(data: bytes, key: str) -> bytes | None:
    """Return the group file `data` as it is digested: belonging to no directory."""
    return reroot(data, key, PLACEHOLDER_ROOT)


def parse_metadata(data: bytes) -> dict[str, Any] | None:
    """Return the metadata of a compiled kernel, or None where `data` is none."""
    try:
        metadata = msgspec.json.decode(data, type=dict[str, Any])
        msgspec.convert(metadata, _Metadata)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None
    return metadata


def render_metadata(metadata: dict[str, Any]) -> bytes:
    """Return `metadata` as JSON that names no directory of the machine it was compiled on."""
    libraries = metadata.get("extern_libs") or []
    names = [[name, PurePosixPath(path).name] for name, path in libraries]
    return json.dumps({**metadata, "extern_libs": names}, sort_keys=True).encode("ascii")
