"""What an installed directory looks like, and the receipt that says what was put there.

::

    DIR/
      .prewarm.lock                                    one installer at a time
      triton -> versions/<identity>/io.triton.cache    the marker: replaced in one rename, last
      flashinfer -> triton/../flashinfer               where a cache has it: follows the marker
      versions/<identity>/                             a cache tree, and its receipt.json
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import msgspec

from prewarm.core.cache import ENTRIES, FLASHINFER
from prewarm.core.digest import canonical_json
from prewarm.core.document import parse_json
from prewarm.core.errors import InputError
from prewarm.core.finding import MISSING, UNSAFE, Finding, UnsoundError
from prewarm.core.record import Record
from prewarm.ship.regular import read_regular

LOCK = ".prewarm.lock"
LINK = "triton"
VERSIONS = "versions"
BESIDE = f"{LINK}/../{FLASHINFER}"
"""Where the link `flashinfer` leads, by way of the marker: both change in its one rename."""
RECEIPT = "receipt.json"
RECEIPT_SCHEMA = "prewarm/receipt/v1"
_RECEIPT_SIZE = 64 << 10

_TARGET = re.compile(rf"{VERSIONS}/([0-9a-f]{{16}}(?:-[0-9]+)?)/{re.escape(ENTRIES)}")


class Receipt(Record, kw_only=True):
    """What was installed, and for which directory."""

    schema: str = RECEIPT_SCHEMA
    identity: str
    root: str
    """The directory that TRITON_CACHE_DIR names and group files point to."""
    image: str | None = None
    """Digest of the image it came from; None where that was mounted."""


def render_receipt(receipt: Receipt) -> bytes:
    """Return the bytes of `receipt`."""
    return canonical_json({"schema": receipt.schema, **msgspec.to_builtins(receipt)})


def read_receipt(version: Path) -> Receipt | None:
    """Return the receipt of the installed `version`, or None where there is no valid one."""
    try:
        data = read_regular(version / RECEIPT, _RECEIPT_SIZE, RECEIPT, "prewarm install")
        return parse_json(data, Receipt, RECEIPT_SCHEMA, RECEIPT)
    except (OSError, UnsoundError, InputError):
        return None


def is_installed(directory: Path) -> bool:
    """Return whether `directory` is one that prewarm installs into."""
    return (directory / LOCK).is_file() or os.path.islink(directory / LINK)


def current_version(directory: Path) -> str | None:
    """Return the name of the version that `directory` serves, or None where it serves none.

    Raises UnsoundError where the marker, or the directory of versions, leads elsewhere.
    """
    versions, link = directory / VERSIONS, directory / LINK
    if versions.is_symlink() or (os.path.lexists(versions) and not versions.is_dir()):
        raise UnsoundError(_foreign(VERSIONS, "a directory"))
    if not os.path.lexists(link):
        return None
    found = _TARGET.fullmatch(os.readlink(link)) if link.is_symlink() else None
    if found is None:
        raise UnsoundError(_foreign(LINK, f"a link to {VERSIONS}/IDENTITY/{ENTRIES}"))
    if (versions / found[1]).is_symlink():
        raise UnsoundError(_foreign(f"{VERSIONS}/{found[1]}", "a directory"))
    return found[1]


def no_version(directory: Path) -> Finding:
    """Return the finding for a directory in which no install was ever completed."""
    return Finding(
        code=MISSING,
        subject=LINK,
        expected=f"a link to {VERSIONS}/IDENTITY/{ENTRIES}",
        found="nothing",
        fix=f"prewarm install SOURCE --into {directory}",
    )


def _foreign(subject: str, expected: str) -> Finding:
    return Finding(
        code=UNSAFE,
        subject=subject,
        expected=expected,
        found="something that prewarm did not make",
        fix="install into another directory, or remove it after looking at what it is",
    )
