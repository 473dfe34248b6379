"""An image as provenance and SBOM speak of it: everything they say follows from its bytes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from prewarm.core.cache import CacheManifest
from prewarm.core.record import Record
from prewarm.ship.image import LABEL
from prewarm.ship.layout import read_layout
from prewarm.ship.source import open_source

URI = "https://prewarm.dev"
"""Names what prewarm defines; nothing is fetched from there."""
NO_TIME = "1970-01-01T00:00:00Z"
"""What images say that were made without a SOURCE_DATE_EPOCH."""


class Described(Record, kw_only=True):
    """An image that was read and found sound."""

    digest: str
    manifest_type: str
    manifest_size: int
    identity: str
    created: str
    made_by: str | None
    """The version of prewarm that made it, where the image says so."""
    mount_path: str | None
    manifest: CacheManifest
    files: Mapping[str, bytes]
    """As they lie in the layer, by path."""


def describe(layout: Path) -> Described:
    """Return the image in `layout`; raises InputError where it is no cache, or UnsoundError."""
    image, source = read_layout(layout), open_source(layout)
    labels = image.config.config.labels
    return Described(
        digest=image.digest,
        manifest_type=image.manifest.media_type,
        manifest_size=image.size,
        identity=source.identity,
        created=image.config.created or NO_TIME,
        made_by=labels.get(f"{LABEL}.version"),
        mount_path=labels.get(f"{LABEL}.mount-path"),
        manifest=source.manifest,
        files=source.files,
    )


def python_package(name: str, version: str) -> str:
    """Return the package URL of a Python package."""
    return f"pkg:pypi/{name}@{quote(version, safe='')}"


def ptxas_package(version: str) -> str:
    """Return the package URL of NVIDIA's assembler."""
    return f"pkg:generic/nvidia/ptxas@{quote(version, safe='')}"
