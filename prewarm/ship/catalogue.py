"""What a repository holds: each cache with what it is for, and which of them fits this host."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from prewarm.core.record import Record
from prewarm.ship.attestations import Beside, beside
from prewarm.ship.blobs import read_blob
from prewarm.ship.choose import Choice, choices, facts_of, host_facts
from prewarm.ship.image import ImageConfig
from prewarm.ship.manifests import (
    MANIFEST_SIZE,
    Stored,
    UnreadableError,
    decode,
    get_manifest,
    manifest_digest,
    tags,
)
from prewarm.ship.reference import Reference
from prewarm.ship.registry import Repository, open_repository
from prewarm.ship.signed import Trust
from prewarm.ship.transport import Connection, NotThereError

_OF_ANOTHER = re.compile(r"sha256-[0-9a-f]{64}(\.[a-z]+)?")
"""Tags that carry signatures and referrers of images."""
_AT_A_TIME = 4


class Tagged(Record, kw_only=True):
    """A tag of a repository."""

    tag: str
    digest: str
    kind: str
    """`cache`, `index` of caches, or `other`."""
    size: int
    """Bytes of the layers; of an index, none."""
    images: int
    facts: dict[str, str]
    """What it is for: target, arch, vllm, triton, model and so on."""


class Shown(Record, kw_only=True):
    """What is behind a reference."""

    reference: str
    """`repo@sha256:…`."""
    digest: str
    media_type: str
    size: int
    facts: dict[str, str]
    labels: dict[str, str]
    images: tuple[Choice, ...]
    """Of an index: its images, each with what is against it on this host."""
    beside: tuple[Beside, ...] = ()
    """Signatures, provenance, SBOM."""


def list_tags(reference: Reference, connection: Connection | None = None) -> tuple[Tagged, ...]:
    """Return the tags of a repository without those of signatures.

    A tag that goes while they are read is left out. Raises RegistryError or TryAgainError.
    """
    with open_repository(reference, connection) as repository:
        names = [tag for tag in tags(repository) if not _OF_ANOTHER.fullmatch(tag)]
        with ThreadPoolExecutor(_AT_A_TIME) as pool:
            found = pool.map(lambda tag: _tagged(repository, tag), names)
            return tuple(each for each in found if each is not None)


def _tagged(repository: Repository, tag: str) -> Tagged | None:
    try:
        stored = get_manifest(repository, tag)
    except NotThereError:
        return None
    except UnreadableError:
        digest = manifest_digest(repository, tag) or ""
        return Tagged(tag=tag, digest=digest, kind="other", size=0, images=0, facts={})
    kind, size, images, facts = "other", 0, 0, dict[str, str]()
    with contextlib.suppress(UnreadableError):
        if stored.is_index:
            entries = stored.index().manifests
            every = [facts_of(entry.annotations) for entry in entries]
            facts, images = _shared(every), len(entries)
            kind = "index" if any(every) else "other"
        else:
            manifest = stored.manifest()
            size, images = sum(layer.size for layer in manifest.layers), 1
            facts = facts_of(manifest.annotations)
            kind = "cache" if "identity" in facts else "other"
    return Tagged(tag=tag, digest=stored.digest, kind=kind, size=size, images=images, facts=facts)


def _shared(every: list[dict[str, str]]) -> dict[str, str]:
    """Return of each fact the values that the images of an index have."""
    names = dict.fromkeys(name for facts in every for name in facts)
    return {
        name: " ".join(sorted({facts[name] for facts in every if name in facts})) for name in names
    }


def show_reference(
    reference: Reference,
    connection: Connection | None = None,
    *,
    want: Mapping[str, str] | None = None,
    trust: Trust | None = None,
) -> Shown:
    """Return what is behind `reference`, and beside it.

    With `trust` it must be signed so, and what is beside it and claims to be, too. Raises
    RegistryError, IntegrityError or TryAgainError.
    """
    with open_repository(reference, connection) as repository:
        stored = get_manifest(repository)
        there = beside(repository, stored.digest, trust)
        if stored.is_index:
            host = host_facts() | dict(want or {})
            images = choices(stored.index(), host)
            return _shown(repository, stored, there, images=images)
        manifest = stored.manifest()
        config = decode(
            read_blob(repository, manifest.config, MANIFEST_SIZE),
            ImageConfig,
            f"the config of {reference}",
        )
        labels = config.config.labels
        size = sum(layer.size for layer in manifest.layers)
        facts = facts_of(labels) or facts_of(manifest.annotations)
        return _shown(repository, stored, there, size=size, facts=facts, labels=labels)


def _shown(
    repository: Repository,
    stored: Stored,
    there: tuple[Beside, ...],
    *,
    size: int = 0,
    facts: dict[str, str] | None = None,
    labels: dict[str, str] | None = None,
    images: tuple[Choice, ...] = (),
) -> Shown:
    return Shown(
        reference=str(repository.reference.at(stored.digest)),
        digest=stored.digest,
        media_type=stored.media_type,
        size=size,
        facts=facts or {},
        labels=labels or {},
        images=images,
        beside=there,
    )
