"""What an image in a registry has beside it: signatures, provenance, SBOM, and who signed them."""

from __future__ import annotations

from typing import Literal

from prewarm.core.errors import IntegrityError, RegistryError
from prewarm.core.record import Record
from prewarm.ship.attached import MOST_DOCUMENTS, Document, documents, read_document
from prewarm.ship.bundle import names_key, open_bundle
from prewarm.ship.keys import PublicKey
from prewarm.ship.registry import Repository
from prewarm.ship.signature import PAYLOAD_TYPE
from prewarm.ship.signed import Trust, check_signed, signed_by_tag
from prewarm.ship.statement import SIGNATURE, UntrustedError, read_statement, require, word

By = Literal["nobody", "somebody", "this key", "another key", "unknown"]


class Beside(Record, kw_only=True):
    """Something beside an image."""

    what: str
    """`signature`, `provenance`, `SBOM`, or what it says of itself."""
    artifact_type: str
    digest: str
    """Of what refers to the image, or of what the tag of signatures names."""
    signed_by: By
    """`unknown` is what others have attached in a way of theirs."""


def beside(repository: Repository, digest: str, trust: Trust | None = None) -> tuple[Beside, ...]:
    """Return what the image `digest` has beside it, signatures first.

    With `trust` the image must be signed so, and whatever claims to be signed by that key must
    be: raises IntegrityError otherwise. Raises RegistryError or TryAgainError.
    """
    if trust is not None:
        check_signed(repository, digest, trust)
    found = documents(repository, digest)
    if trust is not None and len(found) > MOST_DOCUMENTS:
        raise RegistryError(
            f"{repository.reference.name} has {len(found)} documents of {digest};"
            f" {MOST_DOCUMENTS} are read"
        )
    key = None if trust is None else trust.key
    every = [*_by_tag(repository, digest, key), *(_of(repository, digest, d, key) for d in found)]
    return tuple(sorted(every, key=lambda each: (each.what != word(SIGNATURE), each.what)))


def _by_tag(repository: Repository, digest: str, key: PublicKey | None) -> list[Beside]:
    stored, is_ours = signed_by_tag(repository, digest, key)
    if stored is None:
        return []
    by: By = "somebody" if key is None else "this key" if is_ours else "another key"
    return [Beside(what=word(SIGNATURE), artifact_type=PAYLOAD_TYPE, digest=stored, signed_by=by)]


def _of(repository: Repository, digest: str, document: Document, key: PublicKey | None) -> Beside:
    return Beside(
        what=word(document.predicate_type) or document.artifact_type or "unknown",
        artifact_type=document.artifact_type,
        digest=document.digest,
        signed_by=_signer(repository, digest, document, key),
    )


def _signer(repository: Repository, digest: str, document: Document, key: PublicKey | None) -> By:
    if not document.is_bundle:
        return "nobody" if document.is_statement else "unknown"
    if key is None:
        return "somebody"
    data = b""
    try:
        data = read_document(repository, document)
        statement = read_statement(open_bundle(data, key))
        require(statement, document.predicate_type or statement.predicate_type, digest)
    except UntrustedError as error:
        if not data or names_key(data, key):
            raise IntegrityError(
                f"the {word(document.predicate_type) or 'bundle'} {document.digest} of the image"
                f" {digest} cannot be trusted: {error}",
                "prewarm attest REF --key KEY",
            ) from error
        return "another key"
    return "this key"
