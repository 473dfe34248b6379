"""Signatures in a registry: written beside an image, and asked for before it is used."""

from __future__ import annotations

import io
from collections.abc import Iterator

from prewarm.core.digest import digest_of
from prewarm.core.errors import IntegrityError, RegistryError, TryAgainError
from prewarm.core.record import Record
from prewarm.ship.blobs import read_blob, upload
from prewarm.ship.image import CONFIG_TYPE, MANIFEST_TYPE, Descriptor, ImageManifest
from prewarm.ship.keys import PrivateKey, PublicKey
from prewarm.ship.manifests import PreconditionError, Stored, decode, get_manifest, put_manifest
from prewarm.ship.reference import Reference
from prewarm.ship.registry import Repository, open_repository
from prewarm.ship.signature import (
    MOST_PAYLOAD,
    PAYLOAD_TYPE,
    Signature,
    check,
    sign,
    store,
    stored_signatures,
    tag_of_signatures,
)
from prewarm.ship.transport import Connection, NotThereError

_MOST_SIGNATURES = 100
"""Signatures of one image that are read."""
_ATTEMPTS = 5


class Trust(Record, kw_only=True):
    """Whose signature an image must have."""

    key: PublicKey
    identity: str | None = None
    """The repository that it must have been signed under; None takes it from a mirror too."""


class Signed(Record, kw_only=True):
    """An image or index that a key has signed."""

    reference: str
    """`repo@sha256:…`."""
    signatures: str
    """The tag of its signatures."""
    new: bool
    """Whether the key had not signed it before."""


def sign_reference(
    reference: Reference, key: PrivateKey, connection: Connection | None = None
) -> tuple[Signed, ...]:
    """Sign what `reference` means: an image, or an index and every image in it.

    The signatures of others stay. Raises RegistryError or TryAgainError.
    """
    with open_repository(reference, connection, push=True) as repository:
        return tuple(
            _signed(repository, digest, key) for digest in _digests(get_manifest(repository))
        )


def _digests(stored: Stored) -> Iterator[str]:
    yield stored.digest
    if stored.is_index:
        yield from dict.fromkeys(entry.digest for entry in stored.index().manifests)


def _signed(repository: Repository, digest: str, key: PrivateKey) -> Signed:
    tag = tag_of_signatures(digest)
    name = repository.reference.name
    made = sign(key, digest, name)
    for _ in range(_ATTEMPTS):
        replaced, there = _stored(repository, digest)
        is_new = not _is_signed(there, key.public, digest, name)
        if is_new:
            try:
                _write(repository, (*there, made), tag, replaced)
            except PreconditionError:
                continue
        found = str(repository.reference.at(digest))
        return Signed(reference=found, signatures=tag, new=is_new)
    raise TryAgainError(f"{name}:{tag} was changed by others {_ATTEMPTS} times meanwhile")


def _is_signed(signatures: tuple[Signature, ...], key: PublicKey, digest: str, name: str) -> bool:
    try:
        check(signatures, key, digest, name)
    except IntegrityError:
        return False
    return True


def _write(
    repository: Repository, signatures: tuple[Signature, ...], tag: str, replaced: str | None
) -> None:
    stored = store(signatures)
    for data, kind in [
        (stored.config, CONFIG_TYPE),
        *((payload, PAYLOAD_TYPE) for payload in stored.payloads),
    ]:
        blob = Descriptor(media_type=kind, digest=digest_of(data), size=len(data))
        upload(repository, blob, lambda content=data: io.BytesIO(content))  # type: ignore[misc]
    put_manifest(repository, stored.manifest, MANIFEST_TYPE, tag, replaces=replaced)


def check_signed(repository: Repository, digest: str, trust: Trust) -> None:
    """Raise IntegrityError unless the image `digest` of `repository` is signed as `trust` says.

    Raises RegistryError or TryAgainError where the registry does not say.
    """
    _, found = _stored(repository, digest)
    check(found, trust.key, digest, trust.identity)


def _stored(repository: Repository, digest: str) -> tuple[str | None, tuple[Signature, ...]]:
    """Return the digest of what the tag of signatures names, None for nothing, and these."""
    tag = tag_of_signatures(digest)
    try:
        stored = get_manifest(repository, tag)
    except NotThereError:
        return None, ()
    if stored.is_index:
        raise RegistryError(f"{repository.reference.name}:{tag} holds no signatures but an index")
    manifest = decode(stored.data, ImageManifest, f"{repository.reference.name}:{tag}")
    if len(manifest.layers) > _MOST_SIGNATURES:
        raise RegistryError(
            f"{repository.reference.name}:{tag} holds {len(manifest.layers)} signatures;"
            f" {_MOST_SIGNATURES} are read"
        )
    payloads = [read_blob(repository, layer, MOST_PAYLOAD) for layer in manifest.layers]
    return stored.digest, stored_signatures(manifest, payloads)
