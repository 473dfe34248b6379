"""Compare files with the index that says what they should be, in both directions."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

import msgspec

from prewarm.core.cache import (
    CACHE_MANIFEST,
    CACHE_SCHEMA,
    ENTRIES,
    FLASHINFER,
    CachedFile,
    CacheManifest,
    cache_document,
)
from prewarm.core.digest import digest_of
from prewarm.core.document import parse_json
from prewarm.core.errors import InputError, IntegrityError
from prewarm.core.files import relative_path
from prewarm.core.finding import (
    ALTERED,
    INDEX,
    MISSING,
    MOUNT_PATH,
    UNKNOWN,
    UNSAFE,
    Finding,
    UnsoundError,
)
from prewarm.ship.entry import key_of, parse_group, placeholder
from prewarm.ship.layer import MAX_SIZE
from prewarm.ship.regular import read_regular

ROOMS = ("io.triton.cache", "io.triton.manifest", "prewarm", FLASHINFER)
"""The directories at the root of a cache tree."""

_INDEX_SIZE = 16 << 20
"""Bytes that the index may have; that of 500 launches has 200 000."""

_KEY = re.compile(r"[A-Z2-7]{52}")
_REPLAN = "nothing to mend; to serve without that miss: prewarm plan --check MANIFEST -- SERVE ARGS"
_REINSTALL = "prewarm install SOURCE --into DIR, from an image that `prewarm verify` calls sound"


def read_index(data: bytes | None) -> CacheManifest:
    """Return the cache manifest in `data`.

    Raises UnsoundError where there is none, where it is not written as prewarm writes it, or
    where it lists a path that leaves the root.
    """
    if data is None:
        raise UnsoundError(_finding(MISSING, CACHE_MANIFEST, "the index of the cache", "nothing"))
    try:
        manifest = parse_json(data, CacheManifest, CACHE_SCHEMA, CACHE_MANIFEST)
        rewritten = cache_document(manifest)
    except (InputError, msgspec.MsgspecError, UnicodeError) as error:
        raise UnsoundError(_finding(INDEX, CACHE_MANIFEST, CACHE_SCHEMA, str(error))) from error
    if rewritten != data:
        raise UnsoundError(_finding(INDEX, CACHE_MANIFEST, digest_of(rewritten), digest_of(data)))
    for file in manifest.files:
        if not _belongs(file.path):
            raise UnsoundError(_finding(UNSAFE, file.path, "a path of a cache tree", "another"))
    return manifest


def _belongs(path: str) -> bool:
    try:
        return relative_path(path, CACHE_MANIFEST).parts[0] in ROOMS
    except IntegrityError:
        return False


def check_files(manifest: CacheManifest, files: Mapping[str, bytes]) -> Iterator[Finding]:
    """Yield a finding for each file that `manifest` lists and that is missing or altered."""
    for listed in manifest.files:
        data = files.get(listed.path)
        if data is None:
            yield _finding(MISSING, listed.path, listed.digest, "nothing")
        elif (found := _digested(listed, data)) != listed.digest:
            yield _finding(ALTERED, listed.path, listed.digest, found)


def check_names(manifest: CacheManifest, names: Iterable[str]) -> Iterator[Finding]:
    """Yield a finding for each name that `manifest` does not list, an entry counting once."""
    listed = {file.path for file in manifest.files} | {CACHE_MANIFEST}
    shipped = {_entry_of(path) for path in listed}
    strangers: dict[str, list[str]] = {}
    for name in names:
        entry = _entry_of(name)
        if name not in listed and entry is not None and entry not in shipped:
            strangers.setdefault(entry, []).append(PurePosixPath(name).name)
        elif name not in listed:
            fix = "remove it, after looking at what it is"
            yield _finding(UNKNOWN, name, "no such file", "a file that is not in the index", fix)
    for entry, files in strangers.items():
        found = f"{_made(files)}, most likely stored by Triton at run time: a miss"
        yield _finding(UNKNOWN, entry, "only entries that were shipped", found, _REPLAN)


def _entry_of(path: str) -> str | None:
    """Return the directory of the entry that the file at `path` belongs to."""
    parts = PurePosixPath(path).parts
    is_entry = len(parts) == 3 and parts[0] == ENTRIES and _KEY.fullmatch(parts[1])
    return f"{parts[0]}/{parts[1]}" if is_entry else None


def _made(files: Iterable[str]) -> str:
    """Return what Triton calls the thing whose entry has these files."""
    kinds = {
        ".cubin": "the kernel",
        ".autotune.json": "an autotune record of",
        ".so": "the host module",
    }
    for name in files:
        for suffix, kind in kinds.items():
            if name.endswith(suffix):
                return f"{kind} {name.partition('.')[0]}"
    return "an entry"


def check_root(files: Mapping[str, bytes], manifest: CacheManifest, root: str) -> Iterator[Finding]:
    """Yield a finding for each directory other than `root` that group files point to."""
    groups = (
        parse_group(files[listed.path], key_of(listed.path))
        for listed in manifest.files
        if listed.relocatable and listed.path in files
    )
    for found in sorted({group.root for group in groups if group is not None} - {root}):
        # By another name it may still be the same directory.
        if os.path.realpath(found) != os.path.realpath(root) or not os.path.isabs(found):
            where = root.rpartition("/")[0]
            fix = f"prewarm install SOURCE --into DIR, or pack again with --mount-path {where}"
            yield _finding(MOUNT_PATH, "paths in group files", root, found, fix)


def _digested(listed: CachedFile, data: bytes) -> str:
    if listed.relocatable:
        neutral = placeholder(data, key_of(listed.path))
        return "no group file of this entry" if neutral is None else digest_of(neutral)
    return digest_of(data)


def scan(root: Path) -> tuple[list[str], list[Finding]]:
    """Return the path of every regular file of the cache tree at `root`, and what is unsafe."""
    names: list[str] = []
    findings: list[Finding] = []
    waiting = [room for room in ROOMS if os.path.lexists(root / room)]
    while waiting:
        path = waiting.pop()
        mode = os.lstat(root / path).st_mode
        if not path.isprintable():
            expected = "a name in UTF-8 that can be printed"
            findings.append(_finding(UNSAFE, ascii(path), expected, "another"))
        elif stat.S_ISDIR(mode):
            names_here = os.listdir(root / path)
            waiting.extend(f"{path}/{name}" for name in names_here if not _is_bytecode(path, name))
        elif stat.S_ISREG(mode):
            names.append(path)
        else:
            kind = "a link" if stat.S_ISLNK(mode) else "a special file"
            findings.append(_finding(UNSAFE, path, "a file or a directory", kind))
    return sorted(names), findings


def _is_bytecode(directory: str, name: str) -> bool:
    """Return whether Python makes `name` where it imports what FlashInfer looks for."""
    return name == "__pycache__" and directory.startswith(f"{FLASHINFER}/")


def read_files(root: Path, names: Iterable[str]) -> dict[str, bytes]:
    """Return the bytes of the files called `names` of the cache tree at `root`.

    Raises UnsoundError where together they have more than a layer may, or one is no file.
    """
    files: dict[str, bytes] = {}
    left = MAX_SIZE
    for name in names:
        files[name] = read_regular(root / name, left, name, _REINSTALL)
        left -= len(files[name])
    return files


def index_bytes(root: Path) -> bytes:
    """Return the bytes of the index of the cache tree at `root`; raises UnsoundError."""
    return read_regular(root / CACHE_MANIFEST, _INDEX_SIZE, CACHE_MANIFEST, _REINSTALL)


def _finding(code: str, subject: str, expected: str, found: str, fix: str = _REINSTALL) -> Finding:
    return Finding(code=code, subject=subject, expected=expected, found=found, fix=fix)
