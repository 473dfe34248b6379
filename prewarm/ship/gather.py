"""Gather: the shards of a fleet build become one image of each deployment.

Keys name contents. What several shards hold under one key must be the same bytes once paths of
the machine are out of them; where it is not, nothing says which is right, and nothing is packed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from prewarm.core.cache import AutotuneRecord, Compiled, CompiledLaunch
from prewarm.core.errors import InputError, IntegrityError
from prewarm.core.fleet import Distinct, Planned, bound_launches, library_of
from prewarm.core.manifest_yaml import read_manifest
from prewarm.core.record import Record
from prewarm.core.selection import selected_launches
from prewarm.core.shard import (
    CACHES,
    LIBRARIES,
    PLANS,
    RECORDS,
    Shard,
    ShardEntry,
    ShardLaunch,
)
from prewarm.core.target import target_named
from prewarm.ship.flashinfer import flashinfer_part
from prewarm.ship.layout import refuse_foreign
from prewarm.ship.pack import Packed, pack_tree
from prewarm.ship.shard import again, check_entries, read_shard
from prewarm.ship.tree import CacheTree, Entries, IncompleteError, tree_of

_SHOWN = 10
"""Things of one kind that an error spells out."""


class Gathered(Record, kw_only=True):
    """The image of one deployment."""

    name: str
    path: str
    packed: Packed


@dataclasses.dataclass(frozen=True)
class _Held:
    """A shard that was read."""

    directory: Path
    shard: Shard


@dataclasses.dataclass(frozen=True)
class _Found:
    """A launch, and the shard that holds it."""

    launch: ShardLaunch
    directory: Path

    def directories(self) -> dict[str, Path]:
        """Return where the launch and its host modules lie, by key."""
        keys = (self.launch.key, *(module.key for module in self.launch.host_modules))
        return {key: self.directory / CACHES / self.launch.group / key for key in keys}


class Fleet:
    """All shards of one fleet build, compared with each other: nothing missing, no conflict."""

    def __init__(self, directories: Sequence[Path]) -> None:
        """Read the shards in `directories`.

        Raises InputError where a shard is unfinished or one of another fleet, where shards are
        missing, or were made with another C library; IntegrityError where an entry is not what
        was compiled, and where two shards hold different content under one key.
        """
        self._shards = [_Held(each, read_shard(each)) for each in directories]
        _check_alike(self._shards)
        for held in self._shards:
            check_entries(held.directory, held.shard)
        _check_conflicts(self._shards)
        self._launches = {
            launch.identity: _Found(launch, held.directory)
            for held in self._shards
            for launch in held.shard.launches
        }
        self._tuned = {name: held for held in self._shards for name in held.shard.tuned}
        self._libraries = {
            name: held.directory / LIBRARIES / name
            for held in self._shards
            for name in held.shard.libraries
        }
        self.deployments = tuple(_plans(self._shards[0]))
        self._check_complete()

    def tree(self, planned: Planned) -> CacheTree:
        """Return the files of the image of `planned`, with its own launches only.

        Raises IntegrityError where an entry has gone since.
        """
        directories: dict[str, Path] = {}
        compiled = self._compiled(planned, directories)
        part = None
        if library := library_of(planned):
            part = flashinfer_part(
                self._libraries[library.name], planned.manifest, compiled.toolchain, compiled.arch
            )
        try:
            return tree_of(planned.manifest, compiled, Entries(directories.__getitem__), part)
        except IncompleteError as error:
            raise IntegrityError(f"{planned.name}: {error}", "build its shards again") from error

    def _check_complete(self) -> None:
        lacking = {each.name: what for each in self.deployments if (what := self._lacks(each))}
        if not lacking:
            return
        rows = [f"{name}: {what}" for name, what in lacking.items()]
        parts = _missing_parts(self._shards)
        raise InputError(
            f"the shards do not hold all of the fleet{parts}:\n  " + _listed(rows),
            "build the missing shards, then gather all of them",
        )

    def _lacks(self, planned: Planned) -> str:
        """Return what of the image of `planned` is in none of the shards, in words."""
        missing = sum(each.identity not in self._launches for each in bound_launches(planned))
        if missing:
            return f"{missing} launches"
        if planned.selection is not None and planned.name not in self._tuned:
            return "its autotune records"
        library = library_of(planned)
        if library is not None and library.name not in self._libraries:
            return "its library of FlashInfer"
        return ""

    def _compiled(self, planned: Planned, directories: dict[str, Path]) -> Compiled:
        """Return the index of what the image holds; `directories` learns where each key lies."""
        arch = target_named(planned.manifest.deployment.target).arch
        found = [(each, self._launches[each.identity]) for each in bound_launches(planned)]
        for _, held in found:
            directories |= held.directories()
        modules = {module for _, held in found for module in held.launch.host_modules}
        records = self._records(planned.name, directories) if planned.selection else ()
        libc = self._shards[0].shard.libc
        return Compiled(
            manifest=planned.manifest.digest,
            arch=arch,
            toolchain=msgspec.structs.replace(planned.manifest.toolchain, libc=libc),
            launches=tuple(_compiled_launch(each, held.launch) for each, held in found),
            host_modules=tuple(sorted(modules, key=lambda each: each.key)),
            selection=planned.selection,
            autotune_records=records,
            unbound=tuple(
                each.digest
                for each in selected_launches(planned.manifest, planned.selection)
                if each.unbound
            ),
        )

    def _records(self, name: str, directories: dict[str, Path]) -> tuple[AutotuneRecord, ...]:
        held = self._tuned[name]
        records = tuple(each.record for each in held.shard.records if each.deployment == name)
        for record in records:
            directories[record.key] = held.directory / RECORDS / name / record.key
        return records


def gather(
    directories: Sequence[Path], out: Path, mount_path: str | None = None
) -> Iterator[Gathered]:
    """Yield the image of each deployment of a fleet, written to `out`/NAME, from its shards.

    The images are those that `compile` and `pack` make of each deployment by itself, whatever
    the number of shards. Nothing is written before all shards were compared. Raises what
    `Fleet` and `Fleet.tree` raise, and what `pack` raises.
    """
    fleet = Fleet(directories)
    for planned in fleet.deployments:
        refuse_foreign(out / planned.name)
    for planned in fleet.deployments:
        path = out / planned.name
        packed = pack_tree(fleet.tree(planned), path, mount_path)
        yield Gathered(name=planned.name, path=str(path), packed=packed)


def _compiled_launch(wanted: Distinct, found: ShardLaunch) -> CompiledLaunch:
    return CompiledLaunch(launch=wanted.launch.digest, kernel=wanted.launch.kernel, key=found.key)


def _plans(held: _Held) -> Iterator[Planned]:
    """Yield every deployment of the fleet; raises InputError where a plan is another one."""
    for each in held.shard.deployments:
        path = held.directory / PLANS / f"{each.name}.yaml"
        manifest = read_manifest(path)
        if manifest.digest != each.manifest:
            raise InputError(
                f"{path} is not the plan that its shard was built from", again(held.directory)
            )
        yield Planned(
            name=each.name,
            manifest=manifest,
            selection=each.selection,
            flashinfer=each.flashinfer,
        )


def _check_alike(shards: Sequence[_Held]) -> None:
    """Raise InputError unless all are shards of one fleet, made on hosts of one C library."""
    first, *others = shards
    ours = {each.name: each for each in first.shard.deployments}
    for other in others:
        theirs = {each.name: each for each in other.shard.deployments}
        differing = [name for name in sorted(ours | theirs) if ours.get(name) != theirs.get(name)]
        between = f"{first.directory} and {other.directory}"
        if differing:
            raise InputError(
                f"{between} are not shards of one fleet; their plans or tunings differ for\n  "
                + _listed(differing),
                "give all shards the same plans: prewarm build --matrix FILE --plans DIR",
            )
        if first.shard.libc != other.shard.libc:
            raise InputError(
                f"{between} were built with {first.shard.libc} and {other.shard.libc}",
                "build every shard in the same image",
            )


def _check_conflicts(shards: Sequence[_Held]) -> None:
    """Raise IntegrityError where one key has two contents; records count by deployment."""
    first: dict[tuple[str, str], tuple[ShardEntry, Path]] = {}
    conflicts = []
    for held in shards:
        for entry in held.shard.entries:
            scope = CACHES if entry.place.startswith(f"{CACHES}/") else entry.place
            other, directory = first.setdefault((scope, entry.key), (entry, held.directory))
            if other.digest != entry.digest:
                conflicts.append(
                    f"{entry.holds}: {directory / other.place / other.key}"
                    f" and {held.directory / entry.place / entry.key}"
                )
    if conflicts:
        raise IntegrityError(
            "shards hold different content under one key:\n  " + _listed(conflicts),
            "they were not compiled alike: build every shard in the same image, with the same"
            " C compiler",
        )


def _missing_parts(shards: Sequence[_Held]) -> str:
    totals = {held.shard.part.of for held in shards}
    if len(totals) != 1:
        return ""
    (of,) = totals
    missing = sorted(set(range(1, of + 1)) - {held.shard.part.number for held in shards})
    return f", of which shard {', '.join(f'{each}/{of}' for each in missing)} is missing" * bool(
        missing
    )


def _listed(rows: Sequence[str]) -> str:
    more = [f"and {len(rows) - _SHOWN} more"] if len(rows) > _SHOWN else []
    return "\n  ".join([*rows[:_SHOWN], *more])
