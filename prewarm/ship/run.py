"""A run of a fleet build: which of its shards have finished, and which was the last.

Every shard leaves a marker, with the digest of its index, in one directory of the run, and looks
at that directory afterwards. Whichever comes last finds all of them; two that come at the same
time may both. Markers of an earlier run are in another directory, so what that has left counts
for nothing::

    OUT/runs/RUN/shard-3-of-8    the digest of OUT/shard-3-of-8/prewarm-shard.json
    OUT/runs/RUN/gathered        Gathering: written last
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from prewarm.core.digest import canonical_json, digest_of
from prewarm.core.document import parse_json
from prewarm.core.errors import InputError
from prewarm.core.files import host_errors, write_atomic
from prewarm.core.fleet import Part
from prewarm.core.record import Record
from prewarm.core.shard import SHARD_NAME

RUNS = "runs"
GATHERED = "gathered"
_LOCK = ".lock"
_SCHEMA = "prewarm/gathering/v1"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

PATIENCE = 90.0
"""Seconds for which a shard that is marked may be invisible: NFS clients keep what they saw of a
directory for up to 60."""


class Gathering(Record, kw_only=True):
    """What the images of a run were made of, and where they went."""

    schema: str = _SCHEMA
    shards: dict[str, str]
    """Name of each shard directory, and the digest of its index."""
    index: str
    """Digest of the index of the images."""
    repository: str | None = None
    """Where it was pushed."""


class Run:
    """One run of a fleet build, with the shards of an output directory."""

    def __init__(self, out: Path, name: str, of: int) -> None:
        """Read nothing yet; raises InputError for a `name` that no directory can have."""
        if not _NAME.fullmatch(name):
            raise InputError(f"{name!r} cannot name a run: letters, digits, '.', '_' and '-'")
        self._directory = out / RUNS / name
        self.shards = tuple(out / f"shard-{number}-of-{of}" for number in range(1, of + 1))

    def finish(self, part: Part) -> None:
        """Mark the shard `part` as finished; raises InputError where it is not."""
        shard = self.shards[part.number - 1]
        digest = _digest(shard)
        if digest is None:
            raise InputError(
                f"the shard {shard} is not finished: it holds no {SHARD_NAME}",
                f"prewarm build --matrix FILE --shard {part} -o {shard.parent}",
            )
        write_atomic(self._directory / shard.name, digest.encode())

    def waits_for(self, patience: float = PATIENCE) -> tuple[str, ...]:
        """Return the names of the shards that have not finished.

        One that is marked and not there as marked is looked for `patience` seconds: it may be
        on its way here, or have been begun again.
        """
        until = time.monotonic() + patience
        while True:
            marked = self._marked()
            unmarked = tuple(each.name for each in self.shards if each.name not in marked)
            differing = tuple(
                each.name
                for each in self.shards
                if each.name in marked and _digest(each) != marked[each.name]
            )
            if unmarked or not differing or time.monotonic() >= until:
                return (*unmarked, *differing)
            time.sleep(min(1.0, patience))

    def made_of(self) -> dict[str, str]:
        """Return the digest of the index of each shard, by the name of its directory."""
        return {each.name: _digest(each) or "" for each in self.shards}

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold this run against other processes, where the file system has locks.

        Where it has none two may gather at once, to the same bytes.
        """
        with host_errors(f"lock {self._directory}"):
            self._directory.mkdir(parents=True, exist_ok=True)
            handle = os.open(self._directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o664)
        try:
            _lock(handle)
            yield
        finally:
            os.close(handle)

    def gathered(self) -> Gathering | None:
        """Return what was gathered of this run, None where that is not done."""
        path = self._directory / GATHERED
        try:
            return parse_json(path.read_bytes(), Gathering, _SCHEMA, str(path))
        except (FileNotFoundError, InputError):
            return None

    def done(self, gathering: Gathering) -> None:
        """Keep that this run was gathered."""
        plain = {"schema": gathering.schema, **msgspec.to_builtins(gathering)}
        write_atomic(self._directory / GATHERED, canonical_json(plain) + b"\n")

    def _marked(self) -> dict[str, str]:
        with host_errors(f"read {self._directory}"):
            return {
                path.name: path.read_text("utf-8", "replace")
                for path in self._directory.iterdir()
                if path.name.startswith("shard-")
            }


def _digest(shard: Path) -> str | None:
    """Return the digest of the index of `shard`, None where it has none."""
    with host_errors(f"read {shard}"):
        try:
            return digest_of((shard / SHARD_NAME).read_bytes())
        except FileNotFoundError:
            return None


def _lock(handle: int) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
