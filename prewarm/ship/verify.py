"""Verify: is what lies there, byte for byte, what was packed, and does it point to itself?

The integrity half. Whether Triton will ask for these keys is told by the room that has Triton.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from prewarm.core.cache import CACHE_MANIFEST, ENTRIES, FLASHINFER, PLAN, CacheManifest
from prewarm.core.digest import digest_of
from prewarm.core.document import read_text
from prewarm.core.errors import InputError
from prewarm.core.files import host_errors
from prewarm.core.finding import IDENTITY, MISSING, Finding, UnsoundError, in_order
from prewarm.core.manifest import Manifest
from prewarm.core.manifest_yaml import parse_manifest
from prewarm.core.record import Record
from prewarm.ship.check import (
    check_files,
    check_names,
    check_root,
    index_bytes,
    read_files,
    read_index,
    scan,
)
from prewarm.ship.layout import is_layout
from prewarm.ship.receipt import (
    BESIDE,
    LINK,
    RECEIPT,
    VERSIONS,
    current_version,
    is_installed,
    no_version,
    read_receipt,
)
from prewarm.ship.source import is_tree, open_source, wrong_identity


def verify_directory(path: Path, identity: str | None = None) -> tuple[Finding, ...]:
    """Return what is wrong with the cache at `path`, in a fixed order; nothing where it is sound.

    `path` is a directory that was installed into (or its `triton`, as TRITON_CACHE_DIR names
    it), a cache tree that an image was copied or mounted to, or an image layout. With
    `identity`, it must be that cache. Raises InputError where `path` is none of them.
    """
    path = _directory(path)
    with host_errors(f"read {path}"):
        try:
            return in_order(_findings(path, identity))
        except UnsoundError as error:
            return (error.finding,)


def installed_manifest(path: Path) -> CacheManifest:
    """Return the index of the cache at `path`, which may be anything that can be verified.

    Raises InputError where there is no cache, UnsoundError where the index cannot be read.
    """
    path = _directory(path)
    if is_layout(path):
        return open_source(path).manifest
    tree = path
    if not is_tree(path):
        version = current_version(path)
        if version is None:
            raise UnsoundError(no_version(path))
        tree = path / VERSIONS / version
    with host_errors(f"read {path}"):
        return read_index(index_bytes(tree))


class Held(Record, kw_only=True):
    """What a sound cache holds besides its entries, and where those are."""

    manifest: CacheManifest
    plan: Manifest
    """The manifest that was compiled."""
    entries: Path | None
    """The directory that TRITON_CACHE_DIR must name; None for an image layout."""


def held(path: Path) -> Held:
    """Return what the cache at `path` holds; call it where `verify_directory` found it sound.

    Raises InputError where there is no cache or its plan is not one, UnsoundError where the
    index cannot be read.
    """
    path = _directory(path)
    manifest = installed_manifest(path)
    entries = None
    if is_layout(path):
        text = _plan_in(open_source(path).files)
    elif is_tree(path):
        text = read_text(path / PLAN, "the plan")
        entries = Path(os.path.abspath(path / ENTRIES))
    else:
        entries = Path(os.path.abspath(path / LINK))
        text = read_text(entries.resolve().parent / PLAN, "the plan")
    return Held(manifest=manifest, plan=parse_manifest(text, PLAN), entries=entries)


def _plan_in(files: Mapping[str, bytes]) -> str:
    try:
        return files[PLAN].decode("utf-8")
    except (KeyError, UnicodeDecodeError) as error:
        raise InputError(f"the image holds no {PLAN} that can be read") from error


def _directory(path: Path) -> Path:
    """Return the directory that `path` stands for; raises InputError where it holds no cache."""
    if path.name == LINK and is_installed(path.parent):
        return path.parent
    if not (is_layout(path) or is_installed(path) or is_tree(path)):
        raise InputError(
            f"{path} holds no cache: no image layout, no installed directory, no cache tree",
            f"prewarm install SOURCE --into {path}",
        )
    return path


def _findings(path: Path, identity: str | None) -> Iterator[Finding]:
    if is_layout(path):
        found = open_source(path).identity
        if identity not in (None, found):
            yield wrong_identity(str(identity), found)
    elif is_installed(path):
        yield from _check_installed(path, identity)
    else:
        yield from _check_tree(path, f"{os.path.abspath(path)}/{ENTRIES}", identity)


def _check_installed(directory: Path, identity: str | None) -> Iterator[Finding]:
    name = current_version(directory)
    if name is None:
        yield no_version(directory)
        return
    version = directory / VERSIONS / name
    receipt = read_receipt(version)
    if receipt is None:
        yield Finding(
            code=IDENTITY,
            subject=RECEIPT,
            expected="the receipt of the install",
            found="nothing that can be read",
            fix=f"prewarm install SOURCE --into {directory}",
        )
    elif identity not in (None, receipt.identity):
        yield wrong_identity(str(identity), receipt.identity)
    root = f"{os.path.abspath(directory)}/{LINK}"
    yield from _check_tree(version, root, receipt.identity if receipt else None)
    yield from _check_link(directory, version)


def _check_link(directory: Path, version: Path) -> Iterator[Finding]:
    """Yield a finding where FlashInfer's part is there and the link to it is not."""
    link = directory / FLASHINFER
    if not (version / FLASHINFER).is_dir() or (link.is_symlink() and os.readlink(link) == BESIDE):
        return
    yield Finding(
        code=MISSING,
        subject=FLASHINFER,
        expected=f"a link to {BESIDE}",
        found="something else" if os.path.lexists(link) else "nothing",
        fix=f"prewarm install SOURCE --into {directory}",
    )


def _check_tree(tree: Path, root: str, identity: str | None) -> Iterator[Finding]:
    names, unsafe = scan(tree)
    yield from unsafe
    known = set(names)
    try:
        index = index_bytes(tree) if CACHE_MANIFEST in known else None
        manifest = read_index(index)
    except UnsoundError as error:
        yield error.finding
        return
    assert index is not None
    found = digest_of(index)
    if identity not in (None, found):
        yield wrong_identity(str(identity), found)
    files = read_files(tree, (f.path for f in manifest.files if f.path in known))
    # What is unsafe was reported as such: it is not missing as well.
    safe = {finding.subject for finding in unsafe}
    yield from (
        each
        for each in check_files(manifest, files)
        if not any(each.subject == s or each.subject.startswith(f"{s}/") for s in safe)
    )
    yield from check_names(manifest, names)
    yield from check_root(files, manifest, root)
