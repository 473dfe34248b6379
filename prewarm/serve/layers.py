"""Directories of Triton cache entries: what of them can be used, and how one is added.

An entry is a directory that its key names. Its files lie beside the group file that lists
them; the paths that a group file holds are never followed, so that no entry leads out of its
directory, and one that was moved is still found.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import struct
import uuid
from collections.abc import Callable, Mapping

import msgspec

from prewarm.core.cache import CACHE_MANIFEST, CACHE_SCHEMA, ENTRIES

GROUP_PREFIX = "__grp__"
LINK = "triton"
"""What an installed cache calls the link to the entries that it serves."""

_TARGET = re.compile(rf"versions/[^/]+/{re.escape(ENTRIES)}")
_BINARIES = {"cuda": ".cubin", "hip": ".hsaco"}
"""The ending of what a launch loads, by Triton's name of the backend."""
_ELF = (".cubin", ".hsaco", ".so")
_ELF_HEADER = 64
_RECORD = ".autotune.json"

IsRecord = Callable[[bytes], bool]
"""Whether Triton's autotuner can read an autotune record of these bytes."""


class DamagedError(Exception):
    """An entry that is there, or should be, and cannot be used; says which file and why."""


class Layer:
    """The entries in one directory.

    With `digests` (`KEY/FILE` to SHA-256) a file is used if it has its digest; without one, if
    Triton can read it and it is not cut short.
    """

    def __init__(
        self, root: str, is_record: IsRecord, digests: Mapping[str, str] | None = None
    ) -> None:
        self.root = root
        self._is_record = is_record
        self._digests = digests or {}

    def file(self, key: str, name: str) -> str | None:
        """Return the path of the file `name` of the entry `key`, None where there is none.

        Raises DamagedError.
        """
        with contextlib.closing(_Entry(self.root, key)) as entry:
            if entry.read(name) is None:
                self._must_be_there(key, name)
                return None
            self._require(entry, key, name)
            return f"{self.root}/{key}/{name}"

    def group(self, key: str, name: str) -> dict[str, str] | None:
        """Return the paths of the group whose metadata is `name`, None where there is none.

        What a launch does not need is left out where it cannot be used. Raises DamagedError.
        """
        with contextlib.closing(_Entry(self.root, key)) as entry:
            listed = entry.read(GROUP_PREFIX + name)
            if listed is None:
                self._must_be_there(key, name)
                return None
            names = _names(listed)
            metadata = self._require(entry, key, name)
            needed = {name, *_binaries(name, metadata)}
            if not needed <= {*names}:
                raise DamagedError(f"{key}/{GROUP_PREFIX}{name} does not list what it must")
            for each in needed - {name}:
                self._require(entry, key, each)
            return {
                each: f"{self.root}/{key}/{each}"
                for each in names
                if each in needed or self._is_sound(entry, key, each)
            }

    def _must_be_there(self, key: str, name: str) -> None:
        if f"{key}/{name}" in self._digests:
            raise DamagedError(f"{key}/{name} is not there")

    def _is_sound(self, entry: _Entry, key: str, name: str) -> bool:
        try:
            self._require(entry, key, name)
        except DamagedError:
            return False
        return True

    def _require(self, entry: _Entry, key: str, name: str) -> bytes:
        """Return the file `name`; raises DamagedError unless it is what it must be."""
        data = entry.read(name)
        if data is None:
            raise DamagedError(f"{key}/{name} is not there")
        if not data:
            raise DamagedError(f"{key}/{name} is empty")
        digest = self._digests.get(f"{key}/{name}")
        if digest is None:
            fault = self._fault(key, name, data)
        else:
            is_it = hashlib.sha256(data).hexdigest() == digest
            fault = None if is_it else "is not what was installed"
        if fault is not None:
            raise DamagedError(f"{key}/{name} {fault}")
        return data

    def _fault(self, key: str, name: str, data: bytes) -> str | None:
        """Return why Triton could not take `data`, None where it can."""
        if name.endswith(_ELF):
            return None if _is_whole(data) else "is cut short"
        if name.endswith(_RECORD):
            return None if self._is_record(data) else "is no autotune record"
        if name.endswith(".json"):
            return None if _is_metadata(data, key) else "is no metadata of that entry"
        return None if _is_text(data) else "is no text"


class _Entry:
    """The directory of one entry, held open; a link is none."""

    def __init__(self, root: str, key: str) -> None:
        self._path = f"{root}/{key}"
        self._key = key
        try:
            self._handle = os.open(
                self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            )
        except FileNotFoundError:
            self._handle = -1
        except OSError as error:
            raise DamagedError(f"{key} cannot be read ({error.strerror})") from error

    def close(self) -> None:
        """Let go of the directory."""
        if self._handle >= 0:
            os.close(self._handle)

    def read(self, name: str) -> bytes | None:
        """Return the bytes of the file `name`, None where there is none; raises DamagedError."""
        if self._handle < 0:
            return None
        try:
            # Not to be blocked by a pipe, nor led elsewhere by a link.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            handle = os.open(name, flags, dir_fd=self._handle)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DamagedError(f"{self._key}/{name} cannot be read ({error.strerror})") from error
        try:
            about = os.fstat(handle)
            if not stat.S_ISREG(about.st_mode):
                raise DamagedError(f"{self._key}/{name} is not a file")
            return os.read(handle, about.st_size)
        except OSError as error:
            raise DamagedError(f"{self._key}/{name} cannot be read ({error.strerror})") from error
        finally:
            os.close(handle)


def _names(group: bytes) -> tuple[str, ...]:
    """Return the names in a group file, none where it is none."""
    try:
        # A dict of paths up to Triton 3.6, later a list of names.
        names = tuple(json.loads(group)["child_paths"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return ()
    plain = all(type(n) is str and n and n not in {".", ".."} and "/" not in n for n in names)
    return names if plain else ()


def _is_whole(data: bytes) -> bool:
    """Return whether an ELF file ends no earlier than its tables, of which one is at its end.

    Loading a library that was cut short does not fail: it kills the process.
    """
    if len(data) < _ELF_HEADER or not data.startswith(b"\x7fELF\x02"):
        return False
    tables: tuple[int, int] = struct.unpack_from("<QQ", data, 0x20)
    sizes: tuple[int, int, int, int] = struct.unpack_from("<HHHH", data, 0x36)
    programs, sections = tables[0] + sizes[0] * sizes[1], tables[1] + sizes[2] * sizes[3]
    return max(programs, sections) <= len(data)


def _is_metadata(data: bytes, key: str) -> bool:
    try:
        metadata = json.loads(data)
        digest = bytes.fromhex(metadata["hash"])
        is_complete = type(metadata["target"]["backend"]) is str
    except (ValueError, LookupError, TypeError, RecursionError):
        return False
    return is_complete and base64.b32encode(digest).decode().rstrip("=") == key


def _binaries(name: str, metadata: bytes) -> tuple[str, ...]:
    """Return the file without which the kernel whose metadata is `name` cannot be loaded."""
    ending = _BINARIES.get(json.loads(metadata)["target"]["backend"])
    return () if ending is None else (name.removesuffix(".json") + ending,)


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


# --- the installed cache ------------------------------------------------------------------


class _File(msgspec.Struct):
    path: str
    digest: str
    relocatable: bool = False


class _Index(msgspec.Struct):
    """The part of a CacheManifest that lookups need."""

    schema: str
    files: tuple[_File, ...]


class Baked:
    """The cache that was installed into a directory, whichever version it serves just now.

    The directory may also be the cache tree of an image, copied or mounted, or the entries in
    either.
    """

    def __init__(self, directory: str, is_record: IsRecord) -> None:
        above, name = os.path.split(directory)
        is_entries = name == ENTRIES or (name == LINK and os.path.islink(directory))
        self.directory = above if is_entries else directory
        self._is_record = is_record
        self._layer: Layer | None = None

    def layer(self) -> Layer:
        """Return the entries that are served now; raises OSError where there are none."""
        entries = self._entries()
        if not os.path.isdir(entries):
            raise OSError(None, "it is not there")
        if self._layer is None or self._layer.root != entries:
            os.scandir(entries).close()
            self._layer = Layer(entries, self._is_record, _digests(entries))
        return self._layer

    def _entries(self) -> str:
        try:
            target = os.readlink(f"{self.directory}/{LINK}")
        except FileNotFoundError:
            return f"{self.directory}/{ENTRIES}"
        if not _TARGET.fullmatch(target):
            raise OSError(None, f"its link {LINK!r} leads to {target!r}")
        return f"{self.directory}/{target}"


def _digests(entries: str) -> dict[str, str]:
    """Return `KEY/FILE` to SHA-256 of what was packed, nothing where the index cannot be read.

    Group files have none: they belong to the directory.
    """
    try:
        with open(f"{os.path.dirname(entries)}/{CACHE_MANIFEST}", "rb") as stream:
            index = msgspec.json.decode(stream.read(), type=_Index)
    except (OSError, msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return {}
    if index.schema != CACHE_SCHEMA:
        return {}
    return {
        each.path.removeprefix(f"{ENTRIES}/"): each.digest.removeprefix("sha256:")
        for each in index.files
        if each.path.startswith(f"{ENTRIES}/") and not each.relocatable
    }


# --- what is added ------------------------------------------------------------------------


def store(entry: str, name: str, data: bytes | str) -> str:
    """Write the file `name` of the directory `entry`, whole or not at all; return its path.

    Raises OSError.
    """
    try:
        return _store(entry, name, data)
    except FileNotFoundError:
        # Somebody clears the cache at this moment.
        return _store(entry, name, data)


def _store(entry: str, name: str, data: bytes | str) -> str:
    path = f"{entry}/{name}"
    # Named as Triton names it: who looks through entries, as Inductor does, knows to pass by.
    stage = os.path.join(entry, f"tmp.pid_{os.getpid()}_{uuid.uuid4()}")
    if os.path.islink(entry):
        # It is no entry to `Layer`, and what it leads to is not ours to write.
        os.unlink(entry)
    os.makedirs(stage)
    try:
        with open(f"{stage}/{name}", "wb" if isinstance(data, bytes) else "w") as stream:
            stream.write(data)
        os.replace(f"{stage}/{name}", path)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return path
