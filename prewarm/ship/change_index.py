"""Adding to an index that others add to as well.

Few registries write on a condition. Where one does, a lost race is told and run again; else the
tag is read again a moment later, and what another writer has overwritten is added once more.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from prewarm.core.digest import canonical_json
from prewarm.core.errors import InputError, TryAgainError
from prewarm.ship.image import INDEX_TYPE
from prewarm.ship.manifests import (
    Entry,
    PreconditionError,
    Stored,
    decode,
    get_manifest,
    put_manifest,
)
from prewarm.ship.registry import Repository
from prewarm.ship.transport import NotThereError

SETTLE = 0.5
"""Seconds after which a writer who read the index before this one wrote it has written too."""
_ATTEMPTS = 20

Replaces = Callable[[Entry], bool]
ReplacesEach = Callable[[Entry, Entry], bool]


def change_index(
    repository: Repository,
    tag: str,
    entry: Entry,
    replaces: Replaces = lambda there: False,
    settle: float = SETTLE,
) -> str:
    """Put `entry` into the index `tag`, in place of those that it replaces; return its digest.

    Raises what `extend_index` raises.
    """
    return extend_index(repository, tag, [entry], lambda there, _: replaces(there), settle)


def extend_index(
    repository: Repository,
    tag: str,
    entries: Sequence[Entry],
    replaces: ReplacesEach,
    settle: float = SETTLE,
) -> str:
    """Put all `entries` into the index `tag` at once; return its digest.

    What is there goes where `replaces` says so of it and one of `entries`. The index is made
    where there is none. Raises InputError where the tag is of something else, TryAgainError
    where others overwrite it again and again, or RegistryError.
    """
    ours: list[dict[str, Any]] = msgspec.to_builtins(entries)
    for attempt in range(_ATTEMPTS):
        old = _read(repository, tag)
        index = _content(old)
        kept = [
            each
            for each in index["manifests"]
            if not _replaced(msgspec.convert(each, Entry), entries, replaces)
        ]
        data = in_order({**index, "manifests": [*kept, *ours]})
        if old is None or old.data != data:
            try:
                put_manifest(
                    repository, data, INDEX_TYPE, tag, replaces=old.digest if old else None
                )
            except PreconditionError:
                time.sleep(random.uniform(0, 0.1 * (attempt + 1)))  # noqa: S311 (no secret)
                continue
            time.sleep(settle * random.uniform(1, 1.5))  # noqa: S311
        now = _read(repository, tag)
        if now is not None and all(each in _content(now)["manifests"] for each in ours):
            return now.digest
    raise TryAgainError(
        f"others change the index {repository.reference.name}:{tag} all the time",
        "let one writer at a time push to it; what it was to name is there, as "
        + ", ".join(entry.digest for entry in entries),
    )


def in_order(index: dict[str, Any]) -> bytes:
    """Return `index` as JSON, in an order that writers of any order come to."""
    every = sorted(index["manifests"], key=lambda each: str(each["digest"]))
    return canonical_json({**index, "manifests": every})


def index_of(entries: Sequence[Entry]) -> bytes:
    """Return an index of `entries` and of nothing else."""
    return in_order({**_content(None), "manifests": msgspec.to_builtins(entries)})


def _replaced(there: Entry, entries: Sequence[Entry], replaces: ReplacesEach) -> bool:
    return any(there.digest == each.digest or replaces(there, each) for each in entries)


def _read(repository: Repository, tag: str) -> Stored | None:
    try:
        stored = get_manifest(repository, tag)
    except NotThereError:
        return None
    if not stored.is_index:
        raise InputError(
            f"{repository.reference.name}:{tag} is an image and no index of images",
            "choose another tag with --index",
        )
    return stored


def _content(stored: Stored | None) -> dict[str, Any]:
    """Return the index as plain data, whatever fields others have put there."""
    if stored is None:
        return {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": []}
    stored.index()
    plain: dict[str, Any] = decode(stored.data, dict[str, Any], f"the index {stored.digest}")
    return {**plain, "mediaType": INDEX_TYPE}
