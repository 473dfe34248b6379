"""Pull: an image of a registry becomes a layout, whole or not at all.

As with a layout that is written here the index is the marker, and comes last. Blobs that an
interrupted pull has left are gone on with.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from prewarm.core.errors import InputError
from prewarm.core.files import host_errors
from prewarm.core.record import Record
from prewarm.ship.blobs import download
from prewarm.ship.choose import Choice, choices, choose, host_facts, in_words
from prewarm.ship.image import IDENTITY_LABEL, Descriptor
from prewarm.ship.layer import MAX_SIZE
from prewarm.ship.layout import begin_layout, blob_path, finish_layout, refuse_foreign
from prewarm.ship.manifests import RemoteManifest, Stored, get_manifest
from prewarm.ship.reference import Reference
from prewarm.ship.registry import Repository, open_repository
from prewarm.ship.signed import Trust, check_signed
from prewarm.ship.transport import Connection


class Found(Record, kw_only=True):
    """The image that a reference means on this host."""

    stored: Stored
    choices: tuple[Choice, ...] = ()
    """The images of the index that it was chosen from, each with what is against it."""


class Pulled(Record, kw_only=True):
    """An image that was pulled."""

    reference: str
    """`repo@sha256:…`."""
    digest: str
    identity: str
    size: int
    """Bytes of its layers as they were sent."""
    decision: tuple[str, ...]
    """What was held against this host where an index was chosen from, a line each."""


def find(repository: Repository, want: Mapping[str, str] | None = None) -> Found:
    """Return the image that the reference of `repository` means.

    Of an index that is the one which fits this host, or `want` where it says otherwise. Raises
    MismatchError where none does, InputError where several do, RegistryError or TryAgainError.
    """
    stored = get_manifest(repository)
    if not stored.is_index:
        return Found(stored=stored)
    host = host_facts() | dict(want or {})
    every = choices(stored.index(), host)
    chosen = choose(every, host, str(repository.reference))
    return Found(stored=get_manifest(repository, chosen.digest), choices=every)


def pull(
    reference: Reference,
    out: Path,
    connection: Connection | None = None,
    *,
    want: Mapping[str, str] | None = None,
    trust: Trust | None = None,
) -> Pulled:
    """Make `out` a layout of the image that `reference` means; see `find` for an index.

    With `trust`, only an image that is signed so. Raises what `find` does; InputError where
    `out` holds something else or the image is no cache of prewarm's, IntegrityError where a
    signature, a size or a digest is wrong, HostError where `out` cannot be written. Then `out`
    holds the image that it held before, or none.
    """
    with open_repository(reference, connection) as repository:
        found = find(repository, want)
        if trust is not None:
            check_signed(repository, found.stored.digest, trust)
        stored, manifest = found.stored, found.stored.manifest()
        annotations = manifest.annotations or {}
        blobs = _blobs(repository, stored, manifest)
        with alone(out):
            refuse_foreign(out)
            with host_errors(f"write the image {out}"):
                begin_layout(out)
            for descriptor in blobs:
                download(repository, descriptor, blob_path(out, descriptor.digest))
            described = Descriptor(
                media_type=stored.media_type,
                digest=stored.digest,
                size=len(stored.data),
                annotations=annotations,
            )
            with host_errors(f"write the image {out}"):
                finish_layout(
                    out,
                    described,
                    stored.data,
                    reference.tag,
                    [blob.digest for blob in blobs],
                )
    return Pulled(
        reference=str(reference.at(stored.digest)),
        digest=stored.digest,
        identity=annotations[IDENTITY_LABEL],
        size=sum(layer.size for layer in manifest.layers),
        decision=tuple(map(in_words, found.choices)),
    )


def _blobs(
    repository: Repository, stored: Stored, manifest: RemoteManifest
) -> tuple[Descriptor, ...]:
    """Return the blobs of a cache image; raises InputError where it is none."""
    where = str(repository.reference.at(stored.digest))
    if IDENTITY_LABEL not in (manifest.annotations or {}):
        raise InputError(
            f"{where} is not a cache image of prewarm's",
            f"prewarm list {repository.reference.name}",
        )
    blobs = (manifest.config, *manifest.layers)
    size = sum(blob.size for blob in blobs)
    if any(blob.size < 0 for blob in blobs) or size > MAX_SIZE:
        raise InputError(f"{where} has {size} bytes; a cache has at most {MAX_SIZE}")
    return blobs


@contextlib.contextmanager
def alone(out: Path) -> Iterator[None]:
    """Make the directory `out`, and hold it against another pull into it."""
    with host_errors(f"lock {out}"):
        try:
            out.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            refuse_foreign(out)
        handle = os.open(out, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
