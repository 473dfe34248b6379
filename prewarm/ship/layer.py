"""A layer: the tar of a cache tree, the same bytes from the same files, compressed and back.

What reads the tar is `members`.
"""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import PurePosixPath

import zstandard

from prewarm.core.errors import InputError
from prewarm.ship.members import AGAIN, altered

MAX_SIZE = 1 << 30
"""Bytes that a layer may have when decompressed, whatever it says of itself."""

GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
PLAIN = "application/vnd.oci.image.layer.v1.tar"
DOCKER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"

MOST_GROWTH = 250
"""Times that a layer may grow when decompressed. Caches of one kernel's many configs reach 50."""
_SMALL = 16 << 20
"""Bytes that a layer may have however well it was compressed."""
_PIECE = 1 << 10
"""Bytes of zstd that are decompressed at a time; they may grow 30 000 times."""


def source_date_epoch() -> int:
    """Return SOURCE_DATE_EPOCH, or 0; raises InputError when it is not a whole number."""
    text = os.environ.get("SOURCE_DATE_EPOCH") or "0"
    if not text.isdecimal():
        raise InputError(
            f"SOURCE_DATE_EPOCH is {text!r}, which is not a whole number of seconds",
            "export SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)",
        )
    return int(text)


def tar_of(files: Mapping[str, bytes], epoch: int, below: str = "") -> bytes:
    """Return a tar of `files` and of every directory above them, directories first.

    With `below`, a relative directory, they are in that one, and it and those above it are 0755.

    Files of one name follow each other, and equal ones directly: each launcher is there twice,
    and gzip looks back 32 KiB. Directories are 0775 and files 0664 of 0:0, so that a process of
    any user in group 0, as clusters assign them, can store what it has to compile after all.
    """
    parents = {str(parent) for path in files for parent in PurePosixPath(path).parents} - {"."}
    root = PurePosixPath(below)
    modes = {str(path): 0o755 for path in (root, *root.parents)} if below else {}
    modes |= {str(root / path): 0o775 for path in parents}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(modes.keys() - {"."}):
            info = tarfile.TarInfo(path)
            info.type, info.mode, info.mtime = tarfile.DIRTYPE, modes[path], epoch
            tar.addfile(info)
        for path, data in sorted(files.items(), key=_name_and_content):
            info = tarfile.TarInfo(str(root / path))
            info.size, info.mode, info.mtime = len(data), 0o664, epoch
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _name_and_content(file: tuple[str, bytes]) -> tuple[str, bytes, str]:
    path, data = file
    return PurePosixPath(path).name, data, path


def compress(tar: bytes) -> bytes:
    """Return `tar` as gzip, the same bytes wherever zlib is the same build."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=buffer, mtime=0) as stream:
        stream.write(tar)
    return buffer.getvalue()


def decompress(blob: bytes, media_type: str, size: int) -> bytes:
    """Return the tar in `blob`, which says that it has `size` bytes.

    Raises UnsoundError when it has more or fewer, when something follows the compressed data,
    and when it grows as no cache does; InputError for an unknown compression. No more than
    `size` bytes are ever unpacked.
    """
    size = min(size, MAX_SIZE)
    if size > max(_SMALL, MOST_GROWTH * len(blob)):
        raise altered(f"at most {MOST_GROWTH} times what {len(blob)} bytes are", f"{size} bytes")
    try:
        if media_type in (GZIP, DOCKER_GZIP):
            tar = _gunzip(blob, size + 1)
        elif media_type == ZSTD:
            tar = _unzstd(blob, size + 1)
        elif media_type == PLAIN:
            tar = blob
        else:
            raise InputError(f"a layer of the type {media_type!r} cannot be read", AGAIN)
    except (zlib.error, zstandard.ZstdError) as error:
        raise altered("compressed data", str(error)) from error
    if len(tar) != size:
        raise altered(f"{size} bytes", f"{'more' if len(tar) > size else len(tar)}")
    return tar


def _gunzip(blob: bytes, limit: int) -> bytes:
    decompressor = zlib.decompressobj(wbits=31)
    tar = decompressor.decompress(blob, limit)
    if len(tar) < limit:
        _check_end(decompressor.eof, decompressor.unused_data)
    return tar


def _unzstd(blob: bytes, limit: int) -> bytes:
    """Return the first `limit` bytes; not by a reader, which does not tell where its data ends."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
    tar = bytearray()
    for at in range(0, len(blob), _PIECE):
        tar += decompressor.decompress(blob[at : at + _PIECE])
        if len(tar) >= limit:
            return bytes(tar[:limit])
        if decompressor.eof:
            _check_end(True, decompressor.unused_data + blob[at + _PIECE :])
            return bytes(tar)
    raise altered("compressed data", "data that is cut short")


def _check_end(is_whole: bool, rest: bytes) -> None:
    if not is_whole:
        raise altered("compressed data", "data that is cut short")
    if rest:
        # Engines go on to read it, as a second gzip member: the tar would not be the one checked.
        raise altered("one stream of compressed data", f"{len(rest)} bytes after its end")
