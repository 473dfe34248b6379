"""The image that a cache is appended to: its manifest and config are read, its layers are not.

It is in a registry or in an image layout. Both documents are kept as plain data, so that what
prewarm does not know of stays in them.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from prewarm.core.digest import DIGEST
from prewarm.core.errors import InputError, IntegrityError
from prewarm.core.files import host_errors
from prewarm.core.record import Record
from prewarm.ship.blobs import PIECE, read_blob
from prewarm.ship.image import CONFIG_TYPE, Descriptor
from prewarm.ship.layout import INDEX_NAME, blob_path, read_index
from prewarm.ship.layout import read_blob as read_stored_blob
from prewarm.ship.manifests import (
    DOCKER_CONFIG_TYPE,
    INDEX_TYPES,
    MANIFEST_SIZE,
    Index,
    Platform,
    Stored,
    UnreadableError,
    decode,
    get_manifest,
    select_platform,
)
from prewarm.ship.reference import Reference
from prewarm.ship.registry import Repository, open_repository
from prewarm.ship.stream import BlobStream
from prewarm.ship.transport import Connection

Place = Repository | Path
"""What holds an image: a repository, or the directory of a layout."""

_CONFIG_TYPES = (CONFIG_TYPE, DOCKER_CONFIG_TYPE)


class Base(Record, kw_only=True):
    """An image of another maker."""

    place: Place
    name: str
    """The reference, or the directory of the layout, by which it was asked for."""
    stored: Stored
    manifest: dict[str, Any]
    config: dict[str, Any]
    layers: tuple[Descriptor, ...]
    platform: Platform

    @property
    def reference(self) -> str | None:
        """Its name where that is a reference: a directory means nothing elsewhere."""
        return self.name if isinstance(self.place, Repository) else None

    @property
    def environment(self) -> dict[str, str]:
        """The variables that its containers have."""
        lines: list[str] = (self.config.get("config") or {}).get("Env") or []
        return {line.partition("=")[0]: line.partition("=")[2] for line in lines}

    @property
    def labels(self) -> dict[str, str]:
        """Its labels."""
        return (self.config.get("config") or {}).get("Labels") or {}

    def opened(self, layer: Descriptor) -> BinaryIO:
        """Return the bytes of `layer` as a stream that is checked.

        Raises IntegrityError where a layout has others than the digest says; what is read from
        a registry raises it while it is read.
        """
        if isinstance(self.place, Repository):
            return BlobStream(self.place, layer)
        return _opened(self.place, layer)


class _Execution(msgspec.Struct, frozen=True):
    env: tuple[str, ...] | None = msgspec.field(name="Env", default=None)
    labels: dict[str, str] | None = msgspec.field(name="Labels", default=None)


class _RootFs(msgspec.Struct, frozen=True):
    diff_ids: tuple[str, ...]


class _Config(msgspec.Struct, frozen=True):
    """What of a config is used; the rest is kept as it is."""

    architecture: str
    os: str
    rootfs: _RootFs
    variant: str = ""
    config: _Execution | None = None
    history: tuple[dict[str, Any], ...] | None = None


def parse_platform(text: str) -> Platform:
    """Return the platform that `OS/ARCHITECTURE[/VARIANT]` names; raises InputError."""
    parts = text.split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise InputError(
            f"{text!r} is not OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT", "linux/amd64"
        )
    return Platform(os=parts[0], architecture=parts[1], variant=parts[2] if len(parts) == 3 else "")


def platform_text(platform: Platform) -> str:
    """Return `platform` as `parse_platform` reads it."""
    return "/".join(filter(None, (platform.os, platform.architecture, platform.variant)))


@contextlib.contextmanager
def open_base(
    where: Reference | Path, wanted: Platform, connection: Connection | None = None
) -> Iterator[Base]:
    """Yield the image at `where`, of an index the one for the platform `wanted`.

    Its layers can be opened until the block is left. Raises InputError where there is no image
    for that platform or no container image at all, IntegrityError where a digest is wrong,
    RegistryError or TryAgainError.
    """
    if isinstance(where, Reference):
        with open_repository(where, connection) as repository:
            yield _remote(repository, wanted)
    else:
        try:
            found = _local(where, wanted)
        except UnreadableError as error:
            raise IntegrityError(f"{where}: {error.message}") from error
        yield found


def _remote(repository: Repository, wanted: Platform) -> Base:
    name = str(repository.reference)
    stored = get_manifest(repository)
    if stored.is_index:
        chosen = _chosen(stored.index(), wanted, name)
        stored = get_manifest(repository, chosen.digest)
    descriptor = _config_descriptor(stored, name)
    data = read_blob(repository, descriptor, MANIFEST_SIZE)
    return _base(repository, name, stored, data)


def _local(layout: Path, wanted: Platform) -> Base:
    read_index(layout)
    index = decode((layout / INDEX_NAME).read_bytes(), Index, INDEX_NAME)
    if len(index.manifests) == 1:
        descriptor = index.manifests[0].descriptor
    else:
        descriptor = _only(index, wanted, str(layout))
    stored = _stored(layout, descriptor)
    if stored.is_index:
        stored = _stored(layout, _chosen(stored.index(), wanted, str(layout)))
    config = read_stored_blob(layout, _config_descriptor(stored, str(layout)))
    return _base(layout, str(layout), stored, config)


def _stored(layout: Path, descriptor: Descriptor) -> Stored:
    data = read_stored_blob(layout, descriptor)
    return Stored(digest=descriptor.digest, media_type=descriptor.media_type, data=data)


def _chosen(index: Index, wanted: Platform, name: str) -> Descriptor:
    try:
        entry = select_platform(index, wanted.os, wanted.architecture, wanted.variant or None)
    except InputError as error:
        raise InputError(f"{name}: {error.message}", "--platform OS/ARCHITECTURE") from error
    return entry.descriptor


def _only(index: Index, wanted: Platform, layout: str) -> Descriptor:
    """Return the one image of a layout's index: unlike those of others, it may hold several."""
    found = _chosen(index, wanted, layout)
    rest = [entry for entry in index.manifests if entry.digest != found.digest]
    if any(entry.media_type in INDEX_TYPES for entry in index.manifests) or _fits(rest, wanted):
        raise InputError(
            f"{layout} holds {len(index.manifests)} images; one is needed",
            f"skopeo copy oci:{layout}:TAG oci:ONE",
        )
    return found


def _fits(entries: list[Any], wanted: Platform) -> bool:
    return any(
        entry.platform is not None
        and (entry.platform.os, entry.platform.architecture) == (wanted.os, wanted.architecture)
        for entry in entries
    )


def _config_descriptor(stored: Stored, name: str) -> Descriptor:
    if stored.media_type in INDEX_TYPES:
        raise InputError(f"{name}: the index holds an index and no image for the platform")
    manifest = stored.manifest()
    if manifest.config.media_type not in _CONFIG_TYPES or manifest.artifact_type:
        kind = manifest.artifact_type or manifest.config.media_type
        raise InputError(f"{name} is no container image but {kind[:80]!r}")
    return manifest.config


def _base(place: Place, name: str, stored: Stored, data: bytes) -> Base:
    what = f"the config of {name}"
    found = decode(data, _Config, what)
    layers = stored.manifest().layers
    if len(layers) != len(found.rootfs.diff_ids):
        raise InputError(
            f"{name}: its manifest names {len(layers)} layers and its config"
            f" {len(found.rootfs.diff_ids)}"
        )
    return Base(
        place=place,
        name=name,
        stored=stored,
        manifest=decode(stored.data, dict[str, Any], f"the manifest {stored.digest}"),
        config=decode(data, dict[str, Any], what),
        layers=layers,
        platform=Platform(os=found.os, architecture=found.architecture, variant=found.variant),
    )


def _opened(layout: Path, blob: Descriptor) -> BinaryIO:
    """Return the blob of `layout` as a file whose bytes were checked."""
    if not DIGEST.fullmatch(blob.digest):
        raise InputError(f"{blob.digest!r} is not a sha256 digest")
    path = blob_path(layout, blob.digest)
    with host_errors(f"read {path}"):
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        stream = os.fdopen(handle, "rb")
        try:
            _check(stream, blob, path)
        except BaseException:
            stream.close()
            raise
    return stream


def _check(stream: io.BufferedReader, blob: Descriptor, path: Path) -> None:
    found = os.fstat(stream.fileno())
    if not stat.S_ISREG(found.st_mode) or found.st_size != blob.size:
        raise IntegrityError(f"{path}: {found.st_size} bytes, expected a file of {blob.size}")
    digest = hashlib.sha256()
    while piece := stream.read(PIECE):
        digest.update(piece)
    if f"sha256:{digest.hexdigest()}" != blob.digest:
        raise IntegrityError(f"{path}: its digest is sha256:{digest.hexdigest()}")
    stream.seek(0)
