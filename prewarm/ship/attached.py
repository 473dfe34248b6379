"""Documents that refer to an image: written beside it with the image as their subject, and read.

Signed ones are Sigstore bundles as cosign attaches them. Unsigned ones are bare statements, by
buildkit's names for them.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

from prewarm.core.digest import canonical_json, digest_of
from prewarm.core.errors import IntegrityError, RegistryError
from prewarm.core.record import Record
from prewarm.ship.blobs import read_blob, upload
from prewarm.ship.bundle import BUNDLE_TYPE, make_bundle, open_bundle
from prewarm.ship.image import MANIFEST_TYPE, Descriptor
from prewarm.ship.keys import PrivateKey, PublicKey
from prewarm.ship.manifests import Entry, RemoteManifest, UnreadableError, get_manifest
from prewarm.ship.referrers import attach, referrers
from prewarm.ship.registry import Repository
from prewarm.ship.statement import SIGNATURE, STATEMENT_MEDIA_TYPE, UntrustedError
from prewarm.ship.transport import NotThereError

DOCUMENT_SIZE = 32 << 20
"""Bytes of a document that is read."""
SIGNATURE_SIZE = 256 << 10
"""The same of a bundle that is a signature."""
MOST_DOCUMENTS = 100
"""Documents of one image that are read."""

_EMPTY = b"{}"
_EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
_CONTENT = "dev.sigstore.bundle.content"
_BUNDLE_PREDICATE = "dev.sigstore.bundle.predicateType"
_BARE_PREDICATE = "in-toto.io/predicate-type"


class Document(Record, kw_only=True):
    """What refers to an image, as the registry holds it: nothing of it is to be believed yet."""

    digest: str
    """Of the manifest that refers to the image."""
    artifact_type: str
    predicate_type: str
    """What its annotation says that it says of the image, or nothing."""
    size: int
    """Bytes of that manifest."""

    @property
    def is_bundle(self) -> bool:
        """Whether it is said to be signed."""
        return self.artifact_type == BUNDLE_TYPE

    @property
    def is_statement(self) -> bool:
        """Whether it is said to be unsigned."""
        return self.artifact_type == STATEMENT_MEDIA_TYPE


def documents(repository: Repository, digest: str) -> tuple[Document, ...]:
    """Return what refers to the image `digest`, in the registry's order.

    Raises RegistryError or TryAgainError.
    """
    return tuple(map(_document, referrers(repository, digest)))


def _document(entry: Entry) -> Document:
    annotations = entry.annotations or {}
    return Document(
        digest=entry.digest,
        artifact_type=entry.artifact_type or "",
        predicate_type=annotations.get(_BUNDLE_PREDICATE) or annotations.get(_BARE_PREDICATE, ""),
        size=entry.size,
    )


def read_document(repository: Repository, document: Document, limit: int = DOCUMENT_SIZE) -> bytes:
    """Return the one blob of `document`.

    Raises UntrustedError where it has not one of at most `limit` bytes, or that is not what its
    digest says; RegistryError or TryAgainError where the registry does not give it.
    """
    try:
        manifest = get_manifest(repository, document.digest).manifest()
        if len(manifest.layers) != 1:
            raise UntrustedError(f"it has {len(manifest.layers)} layers instead of one")
        return read_blob(repository, manifest.layers[0], limit)
    except (IntegrityError, UnreadableError, NotThereError) as error:
        raise UntrustedError(f"it cannot be read: {error.message}") from error


def bundles(
    repository: Repository, digest: str, predicate_type: str
) -> Iterator[tuple[Document, bytes | UntrustedError]]:
    """Yield each bundle that may say `predicate_type` of the image `digest`, or why it is none.

    Raises RegistryError, also where there are too many to read, or TryAgainError.
    """
    found = [
        each
        for each in documents(repository, digest)
        if each.is_bundle and each.predicate_type in ("", predicate_type)
    ]
    if len(found) > MOST_DOCUMENTS:
        raise RegistryError(
            f"{repository.reference.name} has {len(found)} bundles of {digest};"
            f" {MOST_DOCUMENTS} are read"
        )
    limit = SIGNATURE_SIZE if predicate_type == SIGNATURE else DOCUMENT_SIZE
    for each in found:
        try:
            yield each, read_document(repository, each, limit)
        except UntrustedError as error:
            yield each, error


def find_bundle(
    repository: Repository, digest: str, predicate_type: str, statement: bytes, key: PublicKey
) -> str | None:
    """Return the digest of the referrer in which `key` says `statement` of the image `digest`.

    None where there is none. Raises RegistryError or TryAgainError.
    """
    for document, data in bundles(repository, digest, predicate_type):
        try:
            if isinstance(data, bytes) and open_bundle(data, key) == statement:
                return document.digest
        except UntrustedError:
            continue
    return None


def attach_bundle(
    repository: Repository,
    subject: Descriptor,
    predicate_type: str,
    statement: bytes,
    key: PrivateKey,
) -> str:
    """Attach `statement`, signed with `key`, to the image `subject`; return the referrer's digest.

    Raises RegistryError or TryAgainError.
    """
    annotations = {_CONTENT: "dsse-envelope", _BUNDLE_PREDICATE: predicate_type}
    return _attach(repository, subject, BUNDLE_TYPE, make_bundle(statement, key), annotations)


def attach_statement(
    repository: Repository, subject: Descriptor, predicate_type: str, statement: bytes
) -> str:
    """Attach `statement`, unsigned, to the image `subject`; return the referrer's digest.

    Raises RegistryError or TryAgainError.
    """
    annotations = {_BARE_PREDICATE: predicate_type}
    return _attach(repository, subject, STATEMENT_MEDIA_TYPE, statement, annotations)


def _attach(
    repository: Repository,
    subject: Descriptor,
    artifact_type: str,
    content: bytes,
    annotations: dict[str, str],
) -> str:
    manifest = RemoteManifest(
        schema_version=2,
        media_type=MANIFEST_TYPE,
        artifact_type=artifact_type,
        config=_uploaded(repository, _EMPTY, _EMPTY_TYPE),
        layers=(_uploaded(repository, content, artifact_type),),
        subject=Descriptor(media_type=subject.media_type, digest=subject.digest, size=subject.size),
        annotations=annotations,
    )
    return attach(repository, canonical_json(manifest), MANIFEST_TYPE).digest


def _uploaded(repository: Repository, data: bytes, media_type: str) -> Descriptor:
    blob = Descriptor(media_type=media_type, digest=digest_of(data), size=len(data))
    upload(repository, blob, lambda: io.BytesIO(data))
    return blob
