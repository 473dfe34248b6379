"""From a directory that `prewarm compile` filled to a cache tree: the files of an image, slim.

The tree depends on what was compiled and on nothing else: not on where the directory was, on
times, owners, modes or the order of files. What is not in the directory's index (locks, other
kernels, leftovers of a killed compile) stays behind.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prewarm.core.cache import (
    CACHE_MANIFEST,
    COMPILED_NAME,
    COMPILED_SCHEMA,
    ENTRIES,
    MCV_INDEX,
    PLACEHOLDER_ROOT,
    PLAN,
    CachedFile,
    CacheManifest,
    Compiled,
    cache_document,
)
from prewarm.core.digest import digest_of
from prewarm.core.document import parse_json
from prewarm.core.errors import InputError
from prewarm.core.first_start import first_start
from prewarm.core.manifest import Manifest
from prewarm.core.manifest_yaml import render_manifest
from prewarm.core.record import Record
from prewarm.core.tuning_keys import tuning_keys
from prewarm.ship import mcv
from prewarm.ship.entry import (
    GROUP_PREFIX,
    Group,
    is_group,
    key_of,
    key_of_hash,
    parse_metadata,
    render_group,
    render_metadata,
    reroot,
)
from prewarm.ship.flashinfer import Part, flashinfer_part

_KEY = re.compile(r"[A-Z2-7]{52}")
_FILE = re.compile(r"[^/\\\0]+")


class CacheTree(Record, kw_only=True):
    """The files of an image, their group files belonging to no directory yet."""

    manifest: CacheManifest
    files: dict[str, bytes]
    """By path, `prewarm/manifest.json` among them."""
    compiled_size: int
    """Bytes of the same entries as Triton left them."""
    first_start: str
    """What a first start with this cache still does, in words."""

    @property
    def identity(self) -> str:
        """Digest of `prewarm/manifest.json`, whatever directory the tree is made for."""
        return digest_of(self.files[CACHE_MANIFEST])


def cache_tree(manifest: Manifest, cache_dir: Path, flashinfer: Path | None = None) -> CacheTree:
    """Return the tree for `manifest` out of the directories that `prewarm compile` made.

    Raises InputError when a directory was made from another manifest, or when something in
    its index is not there or not what the index says.
    """
    compiled = read_compiled(cache_dir)
    recompile = f"prewarm compile MANIFEST --cache-dir {cache_dir}"
    if compiled.manifest != manifest.digest:
        raise InputError(
            f"{cache_dir} was compiled from the manifest {compiled.manifest},"
            f" not from {manifest.digest}",
            recompile,
        )
    part = None
    if flashinfer is not None:
        part = flashinfer_part(flashinfer, manifest, compiled.toolchain, compiled.arch)
    try:
        return tree_of(manifest, compiled, Entries(lambda key: cache_dir / key), part)
    except IncompleteError as error:
        raise InputError(f"{cache_dir}: {error}", recompile) from error


def read_compiled(cache_dir: Path) -> Compiled:
    """Return the index in `cache_dir`; raises InputError where there is none."""
    path = cache_dir / COMPILED_NAME
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{cache_dir} holds no {COMPILED_NAME}: {error.strerror}",
            f"prewarm compile MANIFEST --cache-dir {cache_dir}",
        ) from error
    return parse_json(data, Compiled, COMPILED_SCHEMA, str(path))


def rooted(files: Mapping[str, bytes], root: str) -> dict[str, bytes]:
    """Return `files` with the paths in group files under `root`."""
    return {
        path: (reroot(data, key_of(path), root) or data) if is_group(path) else data
        for path, data in files.items()
    }


class IncompleteError(Exception):
    """Something in the index is not in the directory."""


class Entries:
    """Reads files of entries, and counts the bytes of whatever Triton left beside them."""

    def __init__(self, directory_of: Callable[[str], Path]) -> None:
        """Read the entry of a key in the directory that `directory_of` names."""
        self._directory_of = directory_of

    def names(self, key: str) -> list[str]:
        if not _KEY.fullmatch(key):
            raise IncompleteError(f"{key!r} is not a key of Triton's")
        try:
            return sorted(p.name for p in self._directory_of(key).iterdir() if p.is_file())
        except OSError as error:
            raise IncompleteError(f"the entry {key} is not there ({error.strerror})") from error

    def read(self, key: str, name: str) -> bytes:
        if not _FILE.fullmatch(name) or not _KEY.fullmatch(key):
            raise IncompleteError(f"{key}/{name} is not a file of a cache")
        try:
            return (self._directory_of(key) / name).read_bytes()
        except OSError as error:
            raise IncompleteError(f"{key}/{name} is not there ({error.strerror})") from error

    def size(self, key: str) -> int:
        return sum((self._directory_of(key) / name).stat().st_size for name in self.names(key))


def tree_of(
    manifest: Manifest, compiled: Compiled, entries: Entries, part: Part | None = None
) -> CacheTree:
    """Return the tree for `manifest` with what `compiled` lists out of `entries`, and `part`.

    Raises IncompleteError where something is not there or not what `compiled` says.
    """
    files: dict[str, bytes] = {PLAN: render_manifest(manifest).encode()}
    index = []
    keys = sorted({launch.key for launch in compiled.launches})
    for key in keys:
        slim, metadata = slim_entry(entries, key, compiled.arch)
        files |= {f"{ENTRIES}/{key}/{name}": data for name, data in slim.items()}
        index.append(mcv.index_entry(metadata))
    others = {(m.key, m.file) for m in compiled.host_modules}
    others |= {(r.key, r.file) for r in compiled.autotune_records}
    for key, name in sorted(others):
        files[f"{ENTRIES}/{key}/{name}"] = entries.read(key, name)
    files[MCV_INDEX] = mcv.index(index)
    files |= part.files if part else {}
    described = CacheManifest(
        manifest=manifest.digest,
        deployment=manifest.deployment,
        target_arch=compiled.arch,
        toolchain=compiled.toolchain,
        launches=tuple(sorted(compiled.launches, key=lambda each: each.launch)),
        host_modules=tuple(sorted(compiled.host_modules, key=lambda each: each.key)),
        selection=compiled.selection,
        autotune_records=tuple(sorted(compiled.autotune_records, key=lambda each: each.key)),
        unbound=tuple(sorted(compiled.unbound)),
        tuned=_is_tuned(manifest, compiled),
        sources={kernel.name: kernel.source for kernel in manifest.kernels},
        flashinfer=part.built if part else None,
        files=tuple(_described(path, files[path]) for path in sorted(files)),
    )
    files[CACHE_MANIFEST] = cache_document(described)
    size = sum(entries.size(key) for key in {*keys, *(key for key, _ in others)})
    return CacheTree(
        manifest=described,
        files=files,
        compiled_size=size,
        first_start=first_start(manifest, compiled.selection, len(compiled.unbound)),
    )


def _described(path: str, data: bytes) -> CachedFile:
    return CachedFile(path=path, digest=digest_of(data), size=len(data), relocatable=is_group(path))


def slim_entry(entries: Entries, key: str, arch: int) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Return what is shipped of the entry `key`, and its metadata."""
    groups = [name for name in entries.names(key) if name.startswith(GROUP_PREFIX)]
    if len(groups) != 1:
        raise IncompleteError(f"the entry {key} has {len(groups)} group files instead of one")
    name = groups[0].removeprefix(GROUP_PREFIX)
    cubin = name.removesuffix(".json") + ".cubin"
    metadata = parse_metadata(entries.read(key, name))
    if metadata is None or key_of_hash(str(metadata.get("hash"))) != key:
        raise IncompleteError(f"{key}/{name} is not the metadata of that entry")
    found = metadata["target"]["arch"]
    if found != arch:
        raise IncompleteError(f"the entry {key} is for sm_{found}, the index says sm_{arch}")
    group = Group(root=PLACEHOLDER_ROOT, names=(cubin, name))
    return {
        groups[0]: render_group(key, group),
        cubin: entries.read(key, cubin),
        name: render_metadata(metadata),
    }, metadata


def _is_tuned(manifest: Manifest, compiled: Compiled) -> bool:
    """Return whether every tuning key has its record; each winner must have one."""
    winners = [key.winner for key in tuning_keys(manifest, compiled.selection)]
    wanted, there = len(winners) - winners.count(None), len(set(compiled.autotune_records))
    if there != wanted:
        raise IncompleteError(f"there are {there} autotune records of {wanted} winners")
    return None not in winners
