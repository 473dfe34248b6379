"""Adding to an index that others add to as well.

Few registries write on a condition. Where one does, a lost race is told and run again; else the
tag is read again a moment later, and what another writer has overwritten is added once more.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
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


def change_index(
    repository: Repository,
    tag: str,
    entry: Entry,
    replaces: Replaces = lambda there: False,
    settle: float = SETTLE,
) -> str:
    """Put `entry` into the index `tag`, in place of those that it replaces; return its digest.

    The index is made where there is none. Raises InputError where the tag is of something else,
    TryAgainError where others overwrite it again and again, or RegistryError.
    """
    plain: dict[str, Any] = msgspec.to_builtins(entry)
    for attempt in range(_ATTEMPTS):
        old = _read(repository, tag)
        index = _content(old)
        kept = [
            each
            for each in index["manifests"]
            if each["digest"] != entry.digest and not replaces(msgspec.convert(each, Entry))
        ]
        # Order follows the digest, so that writers in any order make the same bytes.
        index["manifests"] = sorted([*kept, plain], key=lambda each: str(each["digest"]))
        data = canonical_json(index)
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
        if now is not None and plain in _content(now)["manifests"]:
            return now.digest
    raise TryAgainError(
        f"others change the index {repository.reference.name}:{tag} all the time",
        f"let one writer at a time push to it; the image itself is there, as {entry.digest}",
    )


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
