"""Signatures in cosign's format: a payload that names one image by digest, and who signed it.

Source of the format: cosign's SIGNATURE_SPEC and containers' "simple signing"; the image's digest
is signed, never its tag.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable

import msgspec

from prewarm.core.digest import canonical_json, digest_of
from prewarm.core.errors import IntegrityError
from prewarm.core.record import Record
from prewarm.ship.image import CONFIG_TYPE, MANIFEST_TYPE, Descriptor, ImageManifest
from prewarm.ship.keys import PrivateKey, PublicKey

PAYLOAD_TYPE = "application/vnd.dev.cosign.simplesigning.v1+json"
SIGNATURE_ANNOTATION = "dev.cosignproject.cosign/signature"
MOST_PAYLOAD = 64 << 10
"""Bytes of a payload that is read."""
_TYPE = "cosign container image signature"
_SIGN = "prewarm sign REF --key KEY"


class Signature(Record, kw_only=True):
    """One signature as it is stored."""

    payload: bytes
    signature: bytes
    """Of the payload, in DER."""


class _Identity(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    docker_reference: str


class _Image(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    docker_manifest_digest: str


class _Critical(msgspec.Struct, frozen=True, kw_only=True):
    identity: _Identity
    image: _Image
    type: str


class _Payload(msgspec.Struct, frozen=True, kw_only=True):
    critical: _Critical
    optional: dict[str, object] | None = None


def sign(key: PrivateKey, digest: str, repository: str) -> Signature:
    """Return the signature of the image `digest` in `repository`, its name without a tag."""
    payload = canonical_json(
        {
            "critical": {
                "identity": {"docker-reference": repository},
                "image": {"docker-manifest-digest": digest},
                "type": _TYPE,
            },
            "optional": None,
        }
    )
    return Signature(payload=payload, signature=key.sign(payload))


def tag_of_signatures(digest: str) -> str:
    """Return the tag under which the signatures of the image `digest` are stored beside it."""
    return f"{digest.replace(':', '-')}.sig"


class StoredSignatures(Record, kw_only=True):
    """What a registry holds under that tag."""

    manifest: bytes
    config: bytes
    payloads: tuple[bytes, ...]


def store(signatures: Iterable[Signature]) -> StoredSignatures:
    """Return `signatures` as an image: a layer for each payload, annotated with its signature."""
    every = tuple(signatures)
    layers = tuple(
        Descriptor(
            media_type=PAYLOAD_TYPE,
            digest=digest_of(each.payload),
            size=len(each.payload),
            annotations={SIGNATURE_ANNOTATION: base64.b64encode(each.signature).decode()},
        )
        for each in every
    )
    config = canonical_json(
        {
            "architecture": "",
            "os": "",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
        }
    )
    manifest = ImageManifest(
        schema_version=2,
        media_type=MANIFEST_TYPE,
        config=Descriptor(media_type=CONFIG_TYPE, digest=digest_of(config), size=len(config)),
        layers=layers,
    )
    payloads = tuple(each.payload for each in every)
    return StoredSignatures(manifest=canonical_json(manifest), config=config, payloads=payloads)


def stored_signatures(manifest: ImageManifest, payloads: Iterable[bytes]) -> tuple[Signature, ...]:
    """Return the signatures that `manifest` annotates its `payloads` with, in their order.

    A layer that is no signature is left out.
    """
    found = []
    for layer, payload in zip(manifest.layers, payloads, strict=True):
        try:
            text = layer.annotations.get(SIGNATURE_ANNOTATION, "")
            signature = base64.b64decode(text, validate=True)
        except (ValueError, binascii.Error):
            continue
        if signature and layer.media_type == PAYLOAD_TYPE:
            found.append(Signature(payload=payload, signature=signature))
    return tuple(found)


def check(
    signatures: Iterable[Signature], key: PublicKey, digest: str, repository: str | None = None
) -> Signature:
    """Return the one of `signatures` that `key` made for the image `digest`.

    With a `repository` it must have been signed under that name. Raises IntegrityError, with the
    reason for each signature, where there is none.
    """
    found, reasons = find(signatures, key, digest, repository)
    if found is None:
        raise untrusted(digest, reasons)
    return found


def find(
    signatures: Iterable[Signature], key: PublicKey, digest: str, repository: str | None = None
) -> tuple[Signature | None, tuple[str, ...]]:
    """Return what `check` does, or None and why each of `signatures` does not count."""
    reasons = []
    for each in signatures:
        reason = _refuse(each, key, digest, repository)
        if reason is None:
            return each, ()
        reasons.append(reason)
    return None, tuple(reasons)


def untrusted(digest: str, reasons: Iterable[str]) -> IntegrityError:
    """Return the error for the image `digest` whose signatures do not count, for `reasons`."""
    rows = "".join(f"\n  {reason}" for reason in dict.fromkeys(reasons))
    if not rows:
        return IntegrityError(f"the image {digest} is not signed", _SIGN)
    return IntegrityError(f"no signature of the image {digest} can be trusted:{rows}", _SIGN)


def _refuse(
    signature: Signature, key: PublicKey, digest: str, repository: str | None
) -> str | None:
    """Return why `signature` does not count, None where it does."""
    if not key.signed(signature.payload, signature.signature):
        return "it was made with another key, or what was signed has been changed"
    try:
        said = msgspec.json.decode(signature.payload, type=_Payload).critical
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        return f"its payload is not cosign's: {error}"
    if said.type != _TYPE:
        return f"its payload is of type {said.type!r}"
    if said.image.docker_manifest_digest != digest:
        return f"it is the signature of another image, {said.image.docker_manifest_digest}"
    if repository is not None and said.identity.docker_reference != repository:
        return f"it was signed as {said.identity.docker_reference}, not as {repository}"
    return None
