"""in-toto statements: what is said, by a predicate of some type, of an image named by its digest.

Source of the format: in-toto's attestation specification, v1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from prewarm.core.digest import canonical_json

STATEMENT_MEDIA_TYPE = "application/vnd.in-toto+json"
SIGNATURE = "https://sigstore.dev/cosign/sign/v1"
"""Type of a predicate that says nothing: the statement is cosign's signature of the image."""
PROVENANCE = "https://slsa.dev/provenance/v1"
SBOM = "https://spdx.dev/Document"

_TYPE = "https://in-toto.io/Statement/v1"
_TYPES = frozenset({_TYPE, "https://in-toto.io/Statement/v0.1"})
_WORDS = {SIGNATURE: "signature", PROVENANCE: "provenance", SBOM: "SBOM"}


class UntrustedError(Exception):
    """Why something signed does not count."""


class Subject(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a statement is about."""

    name: str = ""
    digest: dict[str, str] = {}


class Statement(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A statement."""

    type: str = msgspec.field(name="_type")
    subject: tuple[Subject, ...]
    predicate_type: str
    predicate: Any = None

    def is_about(self, digest: str) -> bool:
        """Return whether the image `digest` is what it is about."""
        return any(digest in _digests(subject) for subject in self.subject)

    def names_of(self, digest: str) -> tuple[str, ...]:
        """Return the names under which it is about the image `digest`."""
        named = (each.name for each in self.subject if digest in _digests(each))
        return tuple(name for name in named if name)


def _digests(subject: Subject) -> list[str]:
    return [f"{algorithm}:{value}" for algorithm, value in subject.digest.items()]


def make_statement(
    predicate_type: str, predicate: Mapping[str, Any], digest: str, repository: str | None = None
) -> bytes:
    """Return the statement of `predicate` about the image `digest`, as canonical JSON.

    With a `repository` it is about the image under that name.
    """
    algorithm, _, value = digest.partition(":")
    subject = Subject(name=repository or "", digest={algorithm: value})
    statement = Statement(
        type=_TYPE, subject=(subject,), predicate_type=predicate_type, predicate=predicate
    )
    return canonical_json(statement)


def read_statement(data: bytes) -> Statement:
    """Return the statement in `data`; raises UntrustedError where it holds none."""
    try:
        found = msgspec.json.decode(data, type=Statement)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise UntrustedError(f"its payload is no in-toto statement: {error}") from error
    if found.type not in _TYPES:
        raise UntrustedError(f"its payload is of type {found.type[:80]!r}")
    return found


def require(
    statement: Statement, predicate_type: str, digest: str, repository: str | None = None
) -> None:
    """Raise UntrustedError unless `statement` says `predicate_type` of the image `digest`.

    With a `repository` it must be about the image under that name.
    """
    if statement.predicate_type != predicate_type:
        raise UntrustedError(f"it says {statement.predicate_type[:80]!r} of the image")
    if not statement.is_about(digest):
        about = ", ".join(d for subject in statement.subject[:3] for d in _digests(subject)[:3])
        raise UntrustedError(
            f"it is the {word(predicate_type)} of another image, {about[:200] or 'of none'}"
        )
    names = statement.names_of(digest)
    if repository is not None and repository not in names:
        said = ", ".join(name[:200] for name in names[:3]) or "an image without a name"
        raise UntrustedError(f"it was signed as {said}, not as {repository}")


def word(predicate_type: str) -> str:
    """Return what people call a predicate of that type."""
    return _WORDS.get(predicate_type, predicate_type)
