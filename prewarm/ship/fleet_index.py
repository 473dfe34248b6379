"""The index of a fleet: one image of each deployment, in a layout of its own or in a registry.

Its entries repeat what each image is for, and what the fleet calls it, so that `pull` and
`install` can choose one without fetching any.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from prewarm.core.digest import digest_of
from prewarm.core.files import host_errors
from prewarm.core.record import Record
from prewarm.ship.change_index import extend_index, index_of
from prewarm.ship.choose import entry_of, same_facts
from prewarm.ship.gather import Gathered
from prewarm.ship.image import INDEX_TYPE, LABEL, Descriptor
from prewarm.ship.layout import (
    begin_layout,
    blob_path,
    finish_layout,
    read_layout,
    refuse_foreign,
)
from prewarm.ship.push import push_image, tag_of
from prewarm.ship.reference import Reference
from prewarm.ship.registry import open_repository
from prewarm.ship.transport import Connection


class WrittenIndex(Record, kw_only=True):
    """An index of the images of a fleet."""

    tag: str
    digest: str
    path: str
    """The layout that holds it and its images."""
    images: int


class PushedIndex(Record, kw_only=True):
    """An index in a registry, every image that it names beside it."""

    reference: str
    """`repo@sha256:…`, which never changes what it means."""
    digest: str
    tag: str
    uploaded: int
    """Images whose layer was not there before."""


def write_index(out: Path, tag: str, images: Sequence[Gathered]) -> WrittenIndex:
    """Make `out` a layout of the index `tag` and the `images` that it names, and nothing else.

    Each image is read back and checked on the way; blobs are linked, not copied, where the file
    system can. As of any layout its index.json comes last. Raises InputError where `out` holds
    something else, IntegrityError where an image is not sound, HostError.
    """
    refuse_foreign(out)
    entries, blobs = [], set[str]()
    with host_errors(f"write the index {out}"):
        begin_layout(out)
        for each in images:
            image = read_layout(Path(each.path))
            entries.append(entry_of(image, each.name))
            described = (image.manifest.config, *image.manifest.layers)
            for digest in (image.digest, *(blob.digest for blob in described)):
                blobs.add(digest)
                _link(blob_path(Path(each.path), digest), blob_path(out, digest))
        data = index_of(entries)
        descriptor = Descriptor(
            media_type=INDEX_TYPE,
            digest=digest_of(data),
            size=len(data),
            annotations={f"{LABEL}.images": str(len(entries))},
        )
        finish_layout(out, descriptor, data, tag, blobs)
    return WrittenIndex(tag=tag, digest=descriptor.digest, path=str(out), images=len(entries))


def push_index(
    images: Sequence[Gathered], reference: Reference, connection: Connection | None = None
) -> PushedIndex:
    """Bring `images` to the repository of `reference`, then all of them into the index of its tag.

    The index changes once, when every image is there; what others have put into it stays, but
    for images of the same deployments. Done again it changes nothing. Raises IntegrityError
    where an image is not sound, RegistryError or TryAgainError; then the index is as it was.
    """
    entries, uploaded, tag = [], 0, reference.wanted
    with open_repository(reference, connection, push=True) as repository:
        for each in images:
            layout = Path(each.path)
            image = read_layout(layout)
            uploaded += push_image(repository, layout, image, tag_of(layout)) == "uploaded"
            entries.append(entry_of(image, each.name))
        digest = extend_index(repository, tag, entries, same_facts)
    return PushedIndex(
        reference=str(reference.at(digest)), digest=digest, tag=tag, uploaded=uploaded
    )


def _link(source: Path, place: Path) -> None:
    """Put the file `source` at `place`, whole or not at all."""
    temporary = place.with_name(f".{place.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, place)
    # Renaming one name of a file to another name of it does nothing.
    temporary.unlink(missing_ok=True)
