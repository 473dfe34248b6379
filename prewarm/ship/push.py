"""Push: the image of a layout goes to a registry, and into an index of such images."""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO

from prewarm.core.errors import InputError
from prewarm.core.record import Record
from prewarm.ship.blobs import upload
from prewarm.ship.change_index import extend_index
from prewarm.ship.choose import entry_of, same_facts
from prewarm.ship.image import MANIFEST_TYPE, Descriptor
from prewarm.ship.layer import MAX_SIZE
from prewarm.ship.layout import REF_NAME, StoredImage, read_blob, read_index, read_layout
from prewarm.ship.manifests import manifest_digest, put_manifest
from prewarm.ship.reference import Reference, parse_reference
from prewarm.ship.registry import Repository, open_repository
from prewarm.ship.transport import Connection


class Pushed(Record, kw_only=True):
    """An image in a registry."""

    reference: str
    """`repo@sha256:…`, which never changes what it means."""
    digest: str
    tag: str | None
    identity: str
    size: int
    """Bytes of the layer."""
    layer: str
    """What was done with it: `uploaded`, `there` already, `mounted`."""
    index: str | None = None
    """Digest of the index that names it now, where one was asked for."""


def push(
    layout: Path,
    reference: Reference,
    connection: Connection | None = None,
    *,
    index: str | None = None,
    mount_from: str | None = None,
) -> Pushed:
    """Bring the image in `layout` to the repository of `reference`, blobs first.

    Without a tag it gets the one that says what it is for. With `index` the index of that tag
    names it afterwards, in place of another one for the same toolchain, GPU and model.
    Raises InputError or IntegrityError where the layout is not sound, then nothing is sent;
    RegistryError, or TryAgainError, after which the registry has no tag that it did not have.
    """
    image = read_layout(layout)
    if reference.digest not in (None, image.digest):
        raise InputError(f"{layout} holds the image {image.digest}, not {reference.digest}")
    for name in (f"{reference.name}:{index}" if index else None, mount_from):
        if name is not None:
            parse_reference(name)
    tag = reference.tag or (None if reference.digest else tag_of(layout))
    with open_repository(reference, connection, push=True) as repository:
        layer = push_image(repository, layout, image, tag, mount_from)
        added = index and extend_index(repository, index, [entry_of(image)], same_facts)
    return Pushed(
        reference=str(reference.at(image.digest)),
        digest=image.digest,
        tag=tag,
        identity=image.identity,
        size=image.manifest.layers[0].size,
        layer=layer,
        index=added,
    )


def push_image(
    repository: Repository,
    layout: Path,
    image: StoredImage,
    tag: str | None,
    mount_from: str | None = None,
) -> str:
    """Bring `image` of `layout` to `repository`, its manifest last; return how its layer went.

    What is there already is not sent again. Raises RegistryError or TryAgainError.
    """
    layer = _push_blobs(repository, layout, image, mount_from)
    if manifest_digest(repository, tag or image.digest) != image.digest:
        data = read_blob(layout, _descriptor(layout))
        put_manifest(repository, data, MANIFEST_TYPE, tag)
    return layer


def _push_blobs(
    repository: Repository, layout: Path, image: StoredImage, mount_from: str | None
) -> str:
    """Upload config and layer; return how it went with the layer."""
    done = ""
    for descriptor in (image.manifest.config, *image.manifest.layers):
        data = read_blob(layout, descriptor, MAX_SIZE)

        def opened(content: bytes = data) -> BinaryIO:
            return io.BytesIO(content)

        done = upload(repository, descriptor, opened, mount_from=mount_from)
    return done


def _descriptor(layout: Path) -> Descriptor:
    (descriptor,) = read_index(layout).manifests
    return descriptor


def tag_of(layout: Path) -> str | None:
    """Return the tag by which `layout` names its image."""
    return _descriptor(layout).annotations.get(REF_NAME)
