"""Sigstore bundles: a statement in a DSSE envelope with the signature of one key.

Source of the format: sigstore's protobuf-specs (bundle v0.3) and cosign's BUNDLE_SPEC. What was
signed with a key needs no certificate and no log, so a bundle of ours holds neither.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

import msgspec

from prewarm.core.digest import canonical_json
from prewarm.ship.keys import PrivateKey, PublicKey
from prewarm.ship.statement import STATEMENT_MEDIA_TYPE, UntrustedError

BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_TYPES = frozenset({BUNDLE_TYPE, "application/vnd.dev.sigstore.bundle+json;version=0.3"})


class _Signature(msgspec.Struct, frozen=True, kw_only=True):
    # Without keyid: sigstore-go derives another name of the key than cosign's hint, and skips
    # signatures that name any other key.
    sig: str


class _Envelope(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    payload: str
    payload_type: str
    signatures: tuple[_Signature, ...]


class _PublicKey(msgspec.Struct, frozen=True, kw_only=True):
    hint: str = ""


class _Material(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    public_key: _PublicKey | None = None
    tlog_entries: tuple[Any, ...] = ()
    """Of a transparency log. Written though empty: some readers will have the field."""


class _Bundle(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    media_type: str
    verification_material: _Material
    dsse_envelope: _Envelope


def make_bundle(statement: bytes, key: PrivateKey) -> bytes:
    """Return `statement` signed with `key`, as canonical JSON."""
    signature = key.sign(pre_authentication(STATEMENT_MEDIA_TYPE, statement))
    envelope = _Envelope(
        payload=base64.b64encode(statement).decode(),
        payload_type=STATEMENT_MEDIA_TYPE,
        signatures=(_Signature(sig=base64.b64encode(signature).decode()),),
    )
    return canonical_json(
        _Bundle(
            media_type=BUNDLE_TYPE,
            verification_material=_Material(public_key=_PublicKey(hint=key.public.hint)),
            dsse_envelope=envelope,
        )
    )


def open_bundle(data: bytes, key: PublicKey) -> bytes:
    """Return the statement that `key` has signed in the bundle `data`.

    Raises UntrustedError where the bundle is not that.
    """
    envelope = _read(data).dsse_envelope
    payload = _decoded(envelope.payload)
    if len(envelope.signatures) != 1:
        raise UntrustedError(f"it has {len(envelope.signatures)} signatures instead of one")
    signature = _decoded(envelope.signatures[0].sig)
    if not key.signed(pre_authentication(envelope.payload_type, payload), signature):
        raise UntrustedError("it was made with another key, or what was signed has been changed")
    if envelope.payload_type != STATEMENT_MEDIA_TYPE:
        raise UntrustedError(f"its payload is of type {envelope.payload_type[:80]!r}")
    return payload


def names_key(data: bytes, key: PublicKey) -> bool:
    """Return whether the bundle `data` claims to be signed by `key`."""
    try:
        material = _read(data).verification_material.public_key
    except UntrustedError:
        return False
    return material is not None and material.hint == key.hint


def pre_authentication(payload_type: str, payload: bytes) -> bytes:
    """Return the bytes that a DSSE signature of `payload` is made over."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def _read(data: bytes) -> _Bundle:
    try:
        found = msgspec.json.decode(data, type=_Bundle)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise UntrustedError(f"it is no Sigstore bundle of a statement: {error}") from error
    if found.media_type not in _TYPES:
        raise UntrustedError(f"it is a bundle of type {found.media_type[:80]!r}")
    return found


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error) as error:
        raise UntrustedError(f"it holds no base64: {error}") from error
