"""The base of every document record: frozen, typed, and strict about unknown fields.

msgspec does not inherit `kw_only`, so each record says it itself.
"""

from __future__ import annotations

from typing import dataclass_transform

import msgspec


@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
class Record(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
):
    """A frozen noun whose fields are exactly those of the document that holds it."""
