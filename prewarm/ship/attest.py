"""Attestations: provenance and SBOM of images in a registry, attached to them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from prewarm.core.record import Record
from prewarm.ship.attached import attach_bundle, attach_statement, documents, find_bundle
from prewarm.ship.described import Described, describe
from prewarm.ship.image import Descriptor
from prewarm.ship.keys import PrivateKey
from prewarm.ship.manifests import get_manifest
from prewarm.ship.provenance import provenance
from prewarm.ship.pull import pull
from prewarm.ship.reference import Reference
from prewarm.ship.registry import Repository, open_repository
from prewarm.ship.sbom import sbom
from prewarm.ship.statement import PROVENANCE, SBOM, make_statement, word
from prewarm.ship.transport import Connection


class Attested(Record, kw_only=True):
    """A document that an image has."""

    reference: str
    """Of the image, `repo@sha256:…`."""
    document: str
    """What it is: `provenance` or `SBOM`."""
    attached: str
    """`repo@sha256:…` of what refers to the image and holds the document."""
    signed: bool
    new: bool
    """Whether the image did not have it before."""


def attest(
    reference: Reference,
    work: Path,
    key: PrivateKey | None = None,
    connection: Connection | None = None,
) -> tuple[Attested, ...]:
    """Attach provenance and SBOM to what `reference` means: an image, or every image of an index.

    With `key` they are signed. Images are pulled into the directory `work`. Raises what `pull`
    does; what was attached before that stays.
    """
    with open_repository(reference, connection, push=True) as repository:
        return tuple(
            done
            for digest in images_of(repository)
            for done in _attested(repository, digest, work, key, connection)
        )


def images_of(repository: Repository) -> tuple[str, ...]:
    """Return the digest of the image that the reference of `repository` means, or of all."""
    stored = get_manifest(repository)
    if not stored.is_index:
        return (stored.digest,)
    return tuple(dict.fromkeys(entry.digest for entry in stored.index().manifests))


def _attested(
    repository: Repository,
    digest: str,
    work: Path,
    key: PrivateKey | None,
    connection: Connection | None,
) -> Iterator[Attested]:
    layout = work / digest.partition(":")[2]
    pull(repository.reference.at(digest), layout, connection)
    image = describe(layout)
    name = repository.reference.name
    for predicate_type, predicate in ((PROVENANCE, provenance(image)), (SBOM, sbom(image))):
        statement = make_statement(predicate_type, predicate, digest, name)
        attached, is_new = _attach(repository, image, predicate_type, statement, key)
        yield Attested(
            reference=str(repository.reference.at(digest)),
            document=word(predicate_type),
            attached=str(repository.reference.at(attached)),
            signed=key is not None,
            new=is_new,
        )


def _attach(
    repository: Repository,
    image: Described,
    predicate_type: str,
    statement: bytes,
    key: PrivateKey | None,
) -> tuple[str, bool]:
    """Return the digest of the referrer that holds `statement`, and whether it is new."""
    subject = Descriptor(
        media_type=image.manifest_type, digest=image.digest, size=image.manifest_size
    )
    if key is None:
        there = {each.digest for each in documents(repository, image.digest)}
        attached = attach_statement(repository, subject, predicate_type, statement)
        return attached, attached not in there
    found = find_bundle(repository, image.digest, predicate_type, statement, key.public)
    if found is not None:
        return found, False
    return attach_bundle(repository, subject, predicate_type, statement, key), True
