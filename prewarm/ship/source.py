"""Where an install takes its files from: an image layout, or an image that is mounted."""

from __future__ import annotations

from pathlib import Path

from prewarm.core.cache import CACHE_MANIFEST, CacheManifest
from prewarm.core.digest import digest_of
from prewarm.core.errors import InputError
from prewarm.core.files import host_errors
from prewarm.core.finding import IDENTITY, Finding, UnsoundError, in_order
from prewarm.core.record import Record
from prewarm.ship.check import check_files, check_names, read_files, read_index, scan
from prewarm.ship.layout import is_layout, read_layout
from prewarm.ship.members import files_of


class Source(Record, kw_only=True):
    """A sound cache: every file in memory, its digest checked, before anything is written."""

    identity: str
    manifest: CacheManifest
    files: dict[str, bytes]
    image: str | None
    """Digest of the image manifest; None for a mounted image."""


def open_source(path: Path) -> Source:
    """Return the cache in the layout or mounted image at `path`.

    Raises InputError where there is none, and UnsoundError at the first thing that is not as
    the index says.
    """
    if is_layout(path):
        image = read_layout(path)
        source = _source(files_of(image.tar), image.digest)
        if image.identity != source.identity:
            raise UnsoundError(wrong_identity(image.identity, source.identity))
        return source
    if is_tree(path):
        with host_errors(f"read {path}"):
            names, unsafe = scan(path)
            if unsafe:
                raise UnsoundError(in_order(unsafe)[0])
            return _source(read_files(path, names), None)
    raise InputError(
        f"{path} is neither an image layout nor a mounted cache image",
        "prewarm pack MANIFEST --cache-dir DIR -o OUT",
    )


def is_tree(path: Path) -> bool:
    """Return whether `path` is the root of a cache tree."""
    return (path / CACHE_MANIFEST).is_file()


def wrong_identity(expected: str, found: str) -> Finding:
    """Return the finding for a cache that is not the one it was said to be."""
    return Finding(
        code=IDENTITY,
        subject=CACHE_MANIFEST,
        expected=expected,
        found=found,
        fix="build or pull the image again, then install it again",
    )


def _source(files: dict[str, bytes], image: str | None) -> Source:
    manifest = read_index(files.get(CACHE_MANIFEST))
    findings = in_order([*check_files(manifest, files), *check_names(manifest, files)])
    if findings:
        raise UnsoundError(findings[0])
    identity = digest_of(files[CACHE_MANIFEST])
    return Source(identity=identity, manifest=manifest, files=files, image=image)
