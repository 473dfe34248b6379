"""The members of a layer's tar, read as one that may have been made to do harm.

Accepted is what `layer` writes (plain files and directories, PAX names) and nothing else. What
container engines might read differently is refused as well, lest an image hold one thing for
them and another for us.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import NamedTuple

from prewarm.core.errors import IntegrityError
from prewarm.core.files import relative_path
from prewarm.core.finding import ALTERED, UNSAFE, Finding, UnsoundError

AGAIN = "build or pull the image again"

MOST_MEMBERS = 50_000
LONGEST_PART, LONGEST_PATH, DEEPEST = 255, 1024, 16
"""Bytes of a file's name and of its path, as file systems take them; directories above a file."""

_BLOCK = 512
_PAX_SIZE = 64 << 10
_MAGIC = b"ustar\x0000"
_WHITEOUT = ".wh."

_FILE, _DIRECTORY, _PAX = b"0", b"5", b"x"
_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a fifo",
    b"S": "a sparse file",
    b"g": "a PAX header for every member",
    b"K": "a long link name of GNU tar",
    b"L": "a long name of GNU tar",
}
_SPECIAL_BITS = ((0o4000, "set-user-ID"), (0o2000, "set-group-ID"), (0o1000, "sticky"))


class Member(NamedTuple):
    """A file or a directory as it stands in the tar."""

    path: str
    is_directory: bool
    data: bytes


def files_of(tar: bytes) -> dict[str, bytes]:
    """Return the files in `tar` by path; raises UnsoundError at anything that is not one."""
    files: dict[str, bytes] = {}
    listed: set[str] = set()
    directories: set[str] = set()
    spellings: dict[str, str] = {}
    for number, member in enumerate(_members(tar)):
        path = member.path
        if number >= MOST_MEMBERS:
            raise altered(f"at most {MOST_MEMBERS} members", "more")
        above = _above(path)
        if path in files or path in listed or any(each in files for each in above):
            raise _unsafe(path, "each path once", "the same path again")
        if path in directories and not member.is_directory:
            raise _unsafe(path, "each path once", "the same path again")
        for each in (path, *above):
            if spellings.setdefault(_folded(each), each) != each:
                other = spellings[_folded(each)]
                raise _unsafe(each, "names that differ by more than their case", repr(other))
        directories.update(above)
        if member.is_directory:
            directories.add(path)
            listed.add(path)
        else:
            files[path] = member.data
    return files


def _above(path: str) -> list[str]:
    return [str(parent) for parent in PurePosixPath(path).parents][:-1]


def _folded(path: str) -> str:
    """Return what is the same for two names that are one on some file systems."""
    return unicodedata.normalize("NFC", path.casefold())


def _members(tar: bytes) -> Iterator[Member]:
    """Yield each member.

    Not `tarfile`: it follows GNU extensions, and an archive with negative sizes hangs it
    before Python 3.11.14.
    """
    offset, long_name, has_pax = 0, None, False
    while offset + _BLOCK <= len(tar):
        header = tar[offset : offset + _BLOCK]
        if not any(header):
            if has_pax:
                break
            _check_rest(tar, offset)
            return
        offset += _BLOCK
        _check_sum(header)
        name, size, kind = _name(header), _octal(header[124:136]), header[156:157]
        if kind == b"\0":
            kind = _FILE
        _check_kind(long_name or name, kind, size, _octal(header[100:108]))
        data = tar[offset : offset + size]
        if len(data) != size:
            break
        offset += -(-size // _BLOCK) * _BLOCK
        if kind == _PAX:
            if has_pax:
                raise _unsafe(name, "one PAX header for a member", "two")
            long_name, has_pax = _pax_path(data), True
            continue
        name, long_name, has_pax = long_name or name, None, False
        yield Member(_checked_path(name, kind), kind == _DIRECTORY, data)
    raise altered("a whole tar", "one that is cut short")


def _check_kind(name: str, kind: bytes, size: int, mode: int) -> None:
    if kind not in (_FILE, _DIRECTORY, _PAX):
        found = _KINDS.get(kind, f"a member of type {kind!r}")
        raise _unsafe(name, "a file or a directory", found)
    if kind == _DIRECTORY and size:
        raise _unsafe(name, "a directory", "a directory with content")
    if kind == _PAX and size > _PAX_SIZE:
        raise _unsafe(name, f"a PAX header of at most {_PAX_SIZE} bytes", f"{size} bytes")
    for bit, called in _SPECIAL_BITS:
        if kind != _PAX and mode & bit:
            raise _unsafe(name, "an ordinary mode", f"the {called} bit")


def _check_rest(tar: bytes, offset: int) -> None:
    """Raise UnsoundError where more than padding follows the end of the archive."""
    if tar.count(0, offset) != len(tar) - offset:
        raise altered("nothing after the end of the tar", "more data")


def _checked_path(name: str, kind: bytes) -> str:
    try:
        path = str(relative_path(name.removesuffix("/"), "the layer"))
    except IntegrityError as error:
        raise _unsafe(name, "a path below the root", "a path that leaves it") from error
    if kind == _FILE and name.endswith("/"):
        raise _unsafe(name, "a file", "the name of a directory")
    if not path.isprintable():
        raise _unsafe(repr(path), "a name that can be printed", "control characters")
    parts = path.split("/")
    if any(part.startswith(_WHITEOUT) for part in parts):
        raise _unsafe(path, "files to add", "a whiteout, which removes one")
    too_long = any(len(part.encode()) > LONGEST_PART for part in parts)
    if too_long or len(path.encode()) > LONGEST_PATH or len(parts) > DEEPEST:
        raise _unsafe(f"{path[:80]}…", "a path that file systems take", "a longer or deeper one")
    return path


def _name(header: bytes) -> str:
    if header[257:265] != _MAGIC:
        raise altered("a tar of POSIX", "one of another kind")
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
        raise altered("octal figures in a tar header", repr(field))
    return int(text, 8)


def _check_sum(header: bytes) -> None:
    blank = header[:148] + b" " * 8 + header[156:]
    if sum(blank) != _octal(header[148:156]):
        raise altered("a tar header with its check sum", "another sum")


def _pax_path(data: bytes) -> str | None:
    """Return the path among the PAX records in `data`; times and owners do not matter here."""
    path = None
    for key, value in _pax_records(data):
        if key == b"size" or key.startswith(b"GNU.sparse"):
            raise _unsafe(_text(key), "plain files", "a sparse file or a size in PAX")
        if key == b"path":
            path = _text(value)
    return path


def _pax_records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    offset = 0
    while offset < len(data):
        digits = data[offset : offset + 6].partition(b" ")[0]
        end = offset + int(digits) if digits.isdigit() else 0
        record = data[offset + len(digits) + 1 : end]
        key, equals, value = record.removesuffix(b"\n").partition(b"=")
        if end > len(data) or not record.endswith(b"\n") or not equals:
            raise altered("PAX records", "something else")
        yield key, value
        offset = end


def altered(expected: str, found: str) -> UnsoundError:
    """Return the error for a layer whose bytes are not those of a layer."""
    return UnsoundError(
        Finding(code=ALTERED, subject="layer", expected=expected, found=found, fix=AGAIN)
    )


def _unsafe(subject: str, expected: str, found: str) -> UnsoundError:
    return UnsoundError(
        Finding(code=UNSAFE, subject=subject, expected=expected, found=found, fix=AGAIN)
    )
