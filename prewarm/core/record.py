"""The base of every document record: frozen, typed, and strict about unknown fields.

msgspec does not inherit `kw_only`, so each record says it itself.
"""

from __future__ import annotations

import msgspec


class Record(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
):
    """A frozen noun whose fields are exactly those of the document that holds it."""
