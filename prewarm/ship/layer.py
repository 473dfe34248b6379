"""A layer: the tar of a cache tree, the same bytes from the same files, and back again.

The reader accepts what the writer makes (plain files and directories, PAX names) and nothing
else: no links, no devices, no path that leaves the root, nothing twice, nothing cut short.
"""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

import zstandard

from prewarm.core.errors import InputError, IntegrityError
from prewarm.core.files import relative_path
from prewarm.core.finding import ALTERED, UNSAFE, Finding, UnsoundError

MAX_SIZE = 1 << 30
"""Bytes that a layer may have when decompressed, whatever it says of itself."""

GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
PLAIN = "application/vnd.oci.image.layer.v1.tar"
DOCKER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"

_BLOCK = 512
_AGAIN = "build or pull the image again"


def source_date_epoch() -> int:
    """Return SOURCE_DATE_EPOCH, or 0; raises InputError when it is not a whole number."""
    text = os.environ.get("SOURCE_DATE_EPOCH") or "0"
    if not text.isdecimal():
        raise InputError(
            f"SOURCE_DATE_EPOCH is {text!r}, which is not a whole number of seconds",
            "export SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)",
        )
    return int(text)


def tar_of(files: Mapping[str, bytes], epoch: int) -> bytes:
    """Return a tar of `files` and of every directory above them, directories first.

    Files of one name follow each other, and equal ones directly: each launcher is there twice,
    and gzip looks back 32 KiB. Directories are 0775 and files 0664 of 0:0, so that a process of
    any user in group 0, as clusters assign them, can store what it has to compile after all.
    """
    parents = {str(parent) for path in files for parent in PurePosixPath(path).parents} - {"."}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(parents):
            info = tarfile.TarInfo(path)
            info.type, info.mode, info.mtime = tarfile.DIRTYPE, 0o775, epoch
            tar.addfile(info)
        for path, data in sorted(files.items(), key=_name_and_content):
            info = tarfile.TarInfo(path)
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

    Raises UnsoundError when it has more or fewer, InputError for an unknown compression. No
    more than `size` bytes are ever unpacked.
    """
    size = min(size, MAX_SIZE)
    try:
        if media_type in (GZIP, DOCKER_GZIP):
            tar = _gunzip(blob, size + 1)
        elif media_type == ZSTD:
            reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(blob)
            tar = reader.read(size + 1)
        elif media_type == PLAIN:
            tar = blob
        else:
            raise InputError(f"a layer of the type {media_type!r} cannot be read", _AGAIN)
    except (zlib.error, zstandard.ZstdError) as error:
        raise _altered("compressed data", str(error)) from error
    if len(tar) != size:
        raise _altered(f"{size} bytes", f"{'more' if len(tar) > size else len(tar)}")
    return tar


def _gunzip(blob: bytes, limit: int) -> bytes:
    decompressor = zlib.decompressobj(wbits=31)
    tar = decompressor.decompress(blob, limit)
    if len(tar) < limit and not decompressor.eof:
        raise zlib.error("the data is cut short")
    return tar


def files_of(tar: bytes) -> dict[str, bytes]:
    """Return the files in `tar` by path; raises UnsoundError at anything that is not one."""
    files: dict[str, bytes] = {}
    directories: set[str] = set()
    for name, is_directory, data in _members(tar):
        try:
            path = str(relative_path(name.removesuffix("/"), "the layer"))
        except IntegrityError as error:
            raise _unsafe(name, "a path below the root", "a path that leaves it") from error
        above = {str(parent) for parent in PurePosixPath(path).parents} - {"."}
        if path in files or (path in directories and not is_directory) or above & files.keys():
            raise _unsafe(path, "each path once", "the same path again")
        directories |= above
        if is_directory:
            directories.add(path)
        else:
            files[path] = data
    return files


def _members(tar: bytes) -> Iterator[tuple[str, bool, bytes]]:
    """Yield (name, is a directory, content) of each member.

    Not `tarfile`: it follows GNU extensions, and an archive with negative sizes hangs it
    before Python 3.11.14.
    """
    offset, long_name = 0, None
    while offset + _BLOCK <= len(tar):
        header = tar[offset : offset + _BLOCK]
        offset += _BLOCK
        if not any(header):
            return
        _check_sum(header)
        name, size, kind = _name(header), _octal(header[124:136]), header[156:157]
        data = tar[offset : offset + size]
        if len(data) != size:
            break
        offset += -(-size // _BLOCK) * _BLOCK
        if kind == b"x":
            long_name = _pax_path(data)
            continue
        name, long_name = long_name or name, None
        if kind not in (b"0", b"\0", b"5"):
            raise _unsafe(name, "a file or a directory", f"a member of type {kind!r}")
        yield name, kind == b"5", data
    raise _altered("a whole tar", "one that is cut short")


def _name(header: bytes) -> str:
    name, prefix = (header[a:b].split(b"\0")[0] for a, b in ((0, 100), (345, 500)))
    return _text(prefix + b"/" + name if prefix else name)


def _text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _unsafe(repr(raw), "a name in UTF-8", "other bytes") from error


def _octal(field: bytes) -> int:
    text = field.strip(b" \0")
    if not text.isdigit() or any(digit in b"89" for digit in text):
        raise _altered("octal figures in a tar header", repr(field))
    return int(text, 8)


def _check_sum(header: bytes) -> None:
    blank = header[:148] + b" " * 8 + header[156:]
    if sum(blank) != _octal(header[148:156]):
        raise _altered("a tar header with its check sum", "another sum")


def _pax_path(data: bytes) -> str | None:
    """Return the path among the PAX records in `data`; times and owners do not matter here."""
    path = None
    while data:
        length, _, _ = data.partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(data):
            raise _altered("PAX records", "something else")
        record = data[len(length) + 1 : int(length) - 1]
        key, _, value = record.partition(b"=")
        if key == b"size" or key.startswith(b"GNU.sparse"):
            raise _unsafe(_text(key), "plain files", "a sparse file or a size in PAX")
        if key == b"path":
            path = _text(value)
        data = data[int(length) :]
    return path


def _altered(expected: str, found: str) -> UnsoundError:
    return UnsoundError(
        Finding(code=ALTERED, subject="layer", expected=expected, found=found, fix=_AGAIN)
    )


def _unsafe(subject: str, expected: str, found: str) -> UnsoundError:
    return UnsoundError(
        Finding(code=UNSAFE, subject=subject, expected=expected, found=found, fix=_AGAIN)
    )
