"""Digests, and the canonical JSON that they are taken over."""

from __future__ import annotations

import hashlib
import re

import msgspec

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def digest_of(data: bytes) -> str:
    """Return `sha256:<hex>` of `data`, spelled as OCI spells it."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def canonical_json(value: object) -> bytes:
    """Return `value` as JSON with sorted keys and no spaces, the same bytes for equal values."""
    return msgspec.json.encode(msgspec.to_builtins(value), order="sorted")
