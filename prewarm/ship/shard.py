"""Shard directories of a fleet build: indexed when they are done, read back, and compared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from prewarm.core.digest import canonical_json, digest_of
from prewarm.core.document import parse_json
from prewarm.core.errors import InputError, IntegrityError
from prewarm.core.files import host_errors, relative_path, write_atomic
from prewarm.core.flashinfer_file import read_built
from prewarm.core.shard import (
    CACHES,
    LIBRARIES,
    RECORDS,
    SHARD_NAME,
    SHARD_SCHEMA,
    Shard,
    ShardEntry,
    ShardLaunch,
    ShardRecord,
    shard_document,
)
from prewarm.ship.flashinfer import files_of
from prewarm.ship.tree import Entries, IncompleteError, slim_entry


def entries_of(
    directory: Path,
    launches: Iterable[ShardLaunch],
    records: Iterable[ShardRecord],
    libraries: Iterable[str] = (),
) -> tuple[ShardEntry, ...]:
    """Return every entry that these have in the shard in `directory`.

    Raises IntegrityError where one is not there or not what its name says.
    """
    read = _Reader(directory)
    found: dict[tuple[str, str], ShardEntry] = {}
    for launch in launches:
        place = f"{CACHES}/{launch.group}"
        found[place, launch.key] = read.launch(place, launch)
        for module in launch.host_modules:
            if (place, module.key) not in found:
                found[place, module.key] = read.file(
                    place, module.key, module.file, f"the host module {module.name}"
                )
    for each in records:
        place, record = f"{RECORDS}/{each.deployment}", each.record
        what = f"the autotune record of {record.kernel}"
        found[place, record.key] = read.file(place, record.key, record.file, what)
    for name in libraries:
        for entry in read.libraries(f"{LIBRARIES}/{name}"):
            found[entry.place, entry.key] = entry
    return tuple(found[where] for where in sorted(found))


class _Reader:
    """Describes entries by what is shipped of them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def launch(self, place: str, launch: ShardLaunch) -> ShardEntry:
        """Return the entry of `launch`, its files as they are packed."""
        try:
            files, _ = slim_entry(self._entries(place), launch.key, launch.arch)
        except IncompleteError as error:
            raise self._damaged(place, error) from error
        content = canonical_json({name: digest_of(data) for name, data in files.items()})
        return ShardEntry(
            place=place, key=launch.key, holds=launch.kernel, digest=digest_of(content)
        )

    def file(self, place: str, key: str, name: str, holds: str) -> ShardEntry:
        """Return the entry `key`, of which one file is packed."""
        try:
            data = self._entries(place).read(key, name)
        except IncompleteError as error:
            raise self._damaged(place, error) from error
        return ShardEntry(place=place, key=key, holds=holds, digest=digest_of(data))

    def libraries(self, place: str) -> Iterator[ShardEntry]:
        """Yield each file of what was built of FlashInfer."""
        directory = self._directory / place
        try:
            built = read_built(directory)
            holds = f"the library {built.module} of FlashInfer"
            for name, data in files_of(directory, built):
                yield ShardEntry(place=place, key=name, holds=holds, digest=digest_of(data))
        except (OSError, InputError) as error:
            raise self._damaged(place, error) from error

    def _entries(self, place: str) -> Entries:
        return Entries(lambda key: self._directory / place / key)

    def _damaged(self, place: str, error: Exception) -> IntegrityError:
        return IntegrityError(f"{self._directory / place}: {error}", again(self._directory))


def check_entries(directory: Path, shard: Shard) -> None:
    """Raise IntegrityError where the shard in `directory` does not hold what was compiled there."""
    found = entries_of(directory, shard.launches, shard.records, shard.libraries)
    known = {(each.place, each.key): each.digest for each in shard.entries}
    for place, key in sorted(known.keys() - {(each.place, each.key) for each in found}):
        raise IntegrityError(
            f"{directory / place / key} was compiled there and is gone", again(directory)
        )
    for each in found:
        compiled = known.get((each.place, each.key))
        if compiled != each.digest:
            raise IntegrityError(
                f"{directory / each.place / each.key} ({each.holds}) is not what was compiled"
                f" there: its digest was {compiled}, now it is {each.digest}",
                again(directory),
            )


def again(directory: Path) -> str:
    """Return what mends the shard in `directory`."""
    return f"remove {directory}, then run the build of that shard again"


def write_shard(directory: Path, shard: Shard) -> None:
    """Mark the shard in `directory` as finished: `shard` is what it holds."""
    write_atomic(directory / SHARD_NAME, shard_document(shard) + b"\n")


def withdraw_shard(directory: Path) -> None:
    """Mark the shard in `directory` as unfinished; it is made where it is not there."""
    with host_errors(f"write the shard {directory}"):
        directory.mkdir(parents=True, exist_ok=True)
        (directory / SHARD_NAME).unlink(missing_ok=True)


def read_shard(directory: Path) -> Shard:
    """Return the index of the shard in `directory`.

    Raises InputError where there is none or it is no index, IntegrityError where it names a
    path that leaves the directory.
    """
    path = directory / SHARD_NAME
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        what = "is not finished" if directory.is_dir() else "is not there"
        raise InputError(
            f"the shard {directory} {what}: it holds no {SHARD_NAME}",
            "run the build of that shard again: what it compiled before is kept",
        ) from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    shard = parse_json(data, Shard, SHARD_SCHEMA, str(path))
    names = {each.name for each in shard.deployments} | {each.deployment for each in shard.records}
    for name in sorted(names | {launch.group for launch in shard.launches} | {*shard.libraries}):
        if len(relative_path(name, str(path)).parts) != 1:
            raise IntegrityError(f"{path}: {name!r} is not a plain name")
    return shard
