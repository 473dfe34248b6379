"""Signatures in a registry: written beside an image, and asked for before it is used.

Each is written in both of cosign's forms: under the tag `sha256-….sig`, which cosign 2, cosign 3
and containers/image read, and as a Sigstore bundle that refers to the image, as cosign 3 writes
it. One of either form is enough.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

from prewarm.core.digest import digest_of
from prewarm.core.errors import RegistryError, TryAgainError
from prewarm.core.record import Record
from prewarm.ship.attached import attach_bundle, bundles
from prewarm.ship.blobs import read_blob, upload
from prewarm.ship.bundle import open_bundle
from prewarm.ship.image import CONFIG_TYPE, MANIFEST_TYPE, Descriptor, ImageManifest
from prewarm.ship.keys import PrivateKey, PublicKey
from prewarm.ship.manifests import PreconditionError, Stored, decode, get_manifest, put_manifest
from prewarm.ship.reference import Reference
from prewarm.ship.registry import Repository, open_repository
from prewarm.ship.signature import (
    MOST_PAYLOAD,
    PAYLOAD_TYPE,
    Signature,
    find,
    sign,
    store,
    stored_signatures,
    tag_of_signatures,
    untrusted,
)
from prewarm.ship.statement import (
    SIGNATURE,
    UntrustedError,
    make_statement,
    read_statement,
    require,
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
    bundle: str
    """Digest of the bundle that refers to it."""
    new: bool
    """Whether the key had not signed it before, in one of both forms at least."""


def sign_reference(
    reference: Reference, key: PrivateKey, connection: Connection | None = None
) -> tuple[Signed, ...]:
    """Sign what `reference` means: an image, or an index and every image in it.

    The signatures of others stay. Raises RegistryError or TryAgainError.
    """
    with open_repository(reference, connection, push=True) as repository:
        return tuple(
            _signed(repository, each, key) for each in _descriptors(get_manifest(repository))
        )


def _descriptors(stored: Stored) -> Iterator[Descriptor]:
    yield stored.descriptor
    if stored.is_index:
        entries = {entry.digest: entry.descriptor for entry in stored.index().manifests}
        yield from entries.values()


def _signed(repository: Repository, image: Descriptor, key: PrivateKey) -> Signed:
    name = repository.reference.name
    is_new = _sign_by_tag(repository, image.digest, key)
    bundle, _ = _bundled(repository, image.digest, Trust(key=key.public, identity=name))
    if bundle is None:
        is_new = True
        statement = make_statement(SIGNATURE, {}, image.digest, name)
        bundle = attach_bundle(repository, image, SIGNATURE, statement, key)
    return Signed(
        reference=str(repository.reference.at(image.digest)),
        signatures=tag_of_signatures(image.digest),
        bundle=bundle,
        new=is_new,
    )


def _sign_by_tag(repository: Repository, digest: str, key: PrivateKey) -> bool:
    """Write the signature of `key` under the tag, if it is not there; return whether it was not."""
    tag = tag_of_signatures(digest)
    name = repository.reference.name
    made = sign(key, digest, name)
    for _ in range(_ATTEMPTS):
        replaced, there = _stored(repository, digest)
        if find(there, key.public, digest, name)[0] is not None:
            return False
        try:
            _write(repository, (*there, made), tag, replaced)
        except PreconditionError:
            continue
        return True
    raise TryAgainError(f"{name}:{tag} was changed by others {_ATTEMPTS} times meanwhile")


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
    _, there = _stored(repository, digest)
    found, against = find(there, trust.key, digest, trust.identity)
    if found is not None:
        return
    bundle, also_against = _bundled(repository, digest, trust)
    if bundle is None:
        raise untrusted(digest, (*against, *also_against))


def signed_by_tag(
    repository: Repository, digest: str, key: PublicKey | None
) -> tuple[str | None, bool]:
    """Return the digest of what the tag of signatures names, and whether `key` signed there.

    None where there is no such tag. Raises RegistryError or TryAgainError.
    """
    stored, there = _stored(repository, digest)
    return stored, key is not None and find(there, key, digest)[0] is not None


def _bundled(
    repository: Repository, digest: str, trust: Trust
) -> tuple[str | None, tuple[str, ...]]:
    """Return the digest of the bundle that signs the image, or None and why each does not."""
    reasons = []
    for document, data in bundles(repository, digest, SIGNATURE):
        try:
            if isinstance(data, UntrustedError):
                raise data
            statement = read_statement(open_bundle(data, trust.key))
            require(statement, SIGNATURE, digest, trust.identity)
        except UntrustedError as error:
            reasons.append(str(error))
        else:
            return document.digest, ()
    return None, tuple(reasons)


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
