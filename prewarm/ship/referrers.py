"""What refers to an image: signatures, provenance. By the registry's API, else by a tag."""

from __future__ import annotations

import re

from prewarm.core.digest import digest_of
from prewarm.core.errors import RegistryError
from prewarm.ship.change_index import change_index
from prewarm.ship.image import INDEX_TYPE
from prewarm.ship.manifests import (
    MANIFEST_SIZE,
    Entry,
    Index,
    RemoteManifest,
    decode,
    get_manifest,
    put_manifest,
)
from prewarm.ship.registry import Repository
from prewarm.ship.transport import NotThereError

_MOST_PAGES = 100


def referrers(
    repository: Repository, digest: str, artifact_type: str | None = None
) -> tuple[Entry, ...]:
    """Return what refers to the manifest `digest`, of the one type or of all.

    Where the registry has no such API, what the tag `sha256-…` names. It is what the registry
    says, not yet checked. Raises RegistryError or TryAgainError.
    """
    found = _by_api(repository, digest)
    if found is None:
        found = _by_tag(repository, digest)
    return tuple(
        entry for entry in found if artifact_type is None or entry.artifact_type == artifact_type
    )


def attach(repository: Repository, data: bytes, media_type: str) -> Entry:
    """Write the manifest `data`, which names a subject, so that `referrers` finds it.

    Its blobs must be there already. Raises RegistryError or TryAgainError, and ValueError where
    it names no subject.
    """
    manifest = decode(data, RemoteManifest, "the manifest")
    if manifest.subject is None:
        raise ValueError("a manifest without a subject refers to nothing")
    entry = Entry(
        media_type=media_type,
        digest=digest_of(data),
        size=len(data),
        artifact_type=manifest.artifact_type or manifest.config.media_type,
        annotations=manifest.annotations,
    )
    answered = put_manifest(repository, data, media_type)
    if answered.get("oci-subject") != manifest.subject.digest:
        change_index(repository, referrers_tag(manifest.subject.digest), entry)
    return entry


def referrers_tag(digest: str) -> str:
    """Return the tag that stands in for the API: `sha256-<hex>`."""
    return digest.replace(":", "-", 1)


def _by_api(repository: Repository, digest: str) -> tuple[Entry, ...] | None:
    """Return every referrer that the API names, None where the registry has no such API."""
    doing = f"read the referrers of {repository.reference.name}@{digest}"
    transport = repository.transport
    found: list[Entry] = []
    path = f"referrers/{digest}"
    seen = {path}
    while len(seen) <= _MOST_PAGES:
        call = repository.call("GET", path, doing, expect=(200, 404, 405))
        with transport.send(call) as response:
            kind = response.headers.get("Content-Type", "").partition(";")[0].strip()
            if response.status_code != 200 or kind != INDEX_TYPE:
                return None
            body = transport.read(response, MANIFEST_SIZE, doing)
            query = _next_query(response.headers.get("Link", ""))
        found += decode(body, Index, "the list of referrers").manifests
        path = f"referrers/{digest}?{query}"
        if query is None or path in seen:
            return tuple(found)
        seen.add(path)
    raise RegistryError(f"cannot {doing}: there is no end of them")


def _next_query(link: str) -> str | None:
    """Return the query of the next page; the rest of a link may lead elsewhere."""
    found = re.match(r"\s*<[^>?]{0,4096}\?([^>]{1,4096})>\s*;[^,]*\brel=\"?next\"?", link)
    return found[1] if found else None


def _by_tag(repository: Repository, digest: str) -> tuple[Entry, ...]:
    try:
        stored = get_manifest(repository, referrers_tag(digest))
    except NotThereError:
        return ()
    return stored.index().manifests if stored.is_index else ()
