"""Key pairs for signatures: ECDSA on P-256, in PEM files, as cosign and openssl have them."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from prewarm.core.errors import InputError
from prewarm.core.files import host_error

_MAKE = (
    "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out prewarm.key;"
    " openssl pkey -in prewarm.key -pubout -out prewarm.pub"
)
_COSIGN = b"-----BEGIN ENCRYPTED "
_COSIGNS_OWN = (b"SIGSTORE PRIVATE KEY", b"COSIGN PRIVATE KEY")
_MOST = 64 << 10
"""Bytes of a key file."""


def _algorithm() -> ec.ECDSA:
    """Return how keys sign: equal data alike (RFC 6979) where OpenSSL is new enough for it."""
    try:
        return ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
    except (TypeError, UnsupportedAlgorithm):
        return ec.ECDSA(hashes.SHA256())


class PrivateKey:
    """A key that signs."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key

    @property
    def public(self) -> PublicKey:
        """The key that verifies what this one signs."""
        return PublicKey(self._key.public_key())

    def sign(self, data: bytes) -> bytes:
        """Return the signature of the SHA-256 of `data`, in DER."""
        return self._key.sign(data, _algorithm())


class PublicKey:
    """A key that verifies."""

    def __init__(self, key: ec.EllipticCurvePublicKey) -> None:
        self._key = key

    def signed(self, data: bytes, signature: bytes) -> bool:
        """Return whether `signature` is this key's for `data`."""
        try:
            self._key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True

    @property
    def hint(self) -> str:
        """The name by which signatures say that they are this key's, as cosign makes it up."""
        der = self._key.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return base64.b64encode(hashlib.sha256(der).digest()).decode()

    @property
    def pem(self) -> bytes:
        """The key as a PEM file."""
        return self._key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )


def read_private_key(path: Path, password: str | None = None) -> PrivateKey:
    """Return the private key in the PEM file at `path`, opened with `password` if it needs one.

    Raises InputError for anything but an ECDSA key on P-256, and for a wrong password.
    """
    data = _read(path, "private key")
    if _COSIGN in data and any(name in data for name in _COSIGNS_OWN):
        raise InputError(
            f"{path} is encrypted in cosign's own way, which only cosign opens",
            f"sign with cosign sign --key {path}, or make a key pair of your own: {_MAKE}",
        )
    secret = password.encode() if password else None
    try:
        key = serialization.load_pem_private_key(data, secret)
    except TypeError as error:
        raise InputError(
            f"{path}: {error}", "set PREWARM_KEY_PASSWORD to its password, or unset it"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InputError(
            f"{path} is no private key, or the password is wrong: {error}", _MAKE
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not _is_p256(key.curve):
        raise InputError(f"{path} is no ECDSA key on P-256", _MAKE)
    return PrivateKey(key)


def read_public_key(path: Path) -> PublicKey:
    """Return the public key in the PEM file at `path`.

    Raises InputError for anything but an ECDSA key on P-256.
    """
    data = _read(path, "public key")
    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InputError(f"{path} is no public key: {error}", _MAKE) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not _is_p256(key.curve):
        raise InputError(f"{path} is no ECDSA key on P-256", _MAKE)
    return PublicKey(key)


def _is_p256(curve: ec.EllipticCurve) -> bool:
    return isinstance(curve, ec.SECP256R1)


def _read(path: Path, what: str) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(_MOST)
    except FileNotFoundError as error:
        raise InputError(f"there is no {what} {path}", _MAKE) from error
    except OSError as error:
        raise host_error(error, f"read the {what} {path}") from error
