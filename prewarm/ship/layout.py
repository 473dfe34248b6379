"""An OCI image layout: a directory of blobs and the index that names the image.

The index is the marker. Blobs go in first, each whole or absent, then the index is replaced
in one rename, then blobs that nothing names any more go: a reader sees the old image or the
new one, and a killed writer leaves the old one.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import msgspec

from prewarm.core.digest import DIGEST, canonical_json, digest_of
from prewarm.core.errors import InputError
from prewarm.core.files import host_errors, write_atomic
from prewarm.core.finding import ALTERED, INDEX, MISSING, UNSAFE, Finding, UnsoundError
from prewarm.core.record import Record
from prewarm.ship.image import (
    IDENTITY_LABEL,
    INDEX_TYPE,
    LABEL,
    LAYER_SIZE_LABEL,
    MANIFEST_TYPE,
    Descriptor,
    Image,
    ImageConfig,
    ImageManifest,
)
from prewarm.ship.layer import MAX_SIZE, decompress

MARKER = "oci-layout"
INDEX_NAME = "index.json"
_MARKER_TEXT = b'{"imageLayoutVersion":"1.0.0"}'
REF_NAME = "org.opencontainers.image.ref.name"
_DOCUMENT_SIZE = 4 << 20
"""Bytes that an index, a manifest or a config may have, as registries limit them."""
_AGAIN = "build or pull the image again"

_SIZE = re.compile(r"[0-9]{1,18}")

T = TypeVar("T")


class ImageIndex(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """An OCI image index."""

    schema_version: int
    media_type: str = ""
    manifests: tuple[Descriptor, ...]
    annotations: dict[str, str] = {}


class StoredImage(Record, kw_only=True):
    """An image in a layout, every digest on the way to it checked."""

    digest: str
    """Of its manifest."""
    size: int
    """Bytes of its manifest."""
    manifest: ImageManifest
    config: ImageConfig
    tar: bytes
    """Its one layer, decompressed."""

    @property
    def identity(self) -> str:
        """Digest of the cache manifest that the image says it holds."""
        return self.config.config.labels[IDENTITY_LABEL]


def is_layout(path: Path) -> bool:
    """Return whether `path` is an OCI image layout."""
    return (path / MARKER).is_file()


def write_layout(out: Path, image: Image) -> None:
    """Make `out` a layout that holds `image` and nothing else.

    Raises InputError, before anything is touched, where `out` holds something that prewarm did
    not make, and HostError where it cannot be written.
    """
    refuse_foreign(out)
    blobs = {digest_of(data): data for data in (image.layer, image.config)}
    with host_errors(f"write the image {out}"):
        begin_layout(out)
        for digest, data in blobs.items():
            write_atomic(blob_path(out, digest), data)
        finish_layout(out, image.descriptor, image.manifest, image.tag, blobs)


def begin_layout(out: Path) -> None:
    """Make `out` a layout that has no index yet, or leave the one that is there."""
    out.mkdir(parents=True, exist_ok=True)
    # The marker first: a directory without it is not ours to go on with.
    write_atomic(out / MARKER, _MARKER_TEXT)
    (out / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)


def finish_layout(
    out: Path, image: Descriptor, manifest: bytes, tag: str | None, blobs: Iterable[str]
) -> None:
    """Make `image` what the layout `out` holds, its `manifest` and `blobs` and nothing else.

    The blobs, named by their digests, must be there.
    """
    write_atomic(blob_path(out, image.digest), manifest)
    named = {REF_NAME: tag} if tag else {}
    descriptor = msgspec.structs.replace(image, annotations=image.annotations | named)
    index = ImageIndex(schema_version=2, media_type=INDEX_TYPE, manifests=(descriptor,))
    write_atomic(out / INDEX_NAME, canonical_json(index))
    keep = {image.digest, *blobs}
    for path in (out / "blobs" / "sha256").iterdir():
        if f"sha256:{path.name}" not in keep:
            path.unlink()


def refuse_foreign(out: Path) -> None:
    """Raise InputError where `out` is something else than an image that prewarm made."""
    hint = "choose another directory with -o, or remove that one"
    if os.path.lexists(out) and (out.is_symlink() or not out.is_dir()):
        raise InputError(f"{out} is not a directory", hint)
    if not out.is_dir() or all(_is_cut_short(path) for path in out.iterdir()):
        return
    if not is_layout(out):
        raise InputError(f"{out} is neither empty nor an image layout", hint)
    if not (out / INDEX_NAME).exists():
        return
    for descriptor in read_index(out).manifests:
        if not any(name.startswith(f"{LABEL}.") for name in descriptor.annotations):
            raise InputError(f"{out} holds the image {descriptor.digest}, not made here", hint)


def _is_cut_short(path: Path) -> bool:
    """Return whether `path` is the marker of a layout whose writer was killed."""
    return path.name.startswith(f".{MARKER}.")


def read_index(layout: Path) -> ImageIndex:
    """Return the index of `layout`; raises InputError where it is no layout, or UnsoundError."""
    if not is_layout(layout):
        raise InputError(f"{layout} is not an OCI image layout: it has no file {MARKER!r}")
    return _decode(_read(layout / INDEX_NAME, _DOCUMENT_SIZE), ImageIndex, INDEX_NAME)


def read_layout(layout: Path) -> StoredImage:
    """Return the one cache image in `layout`.

    Raises InputError where it holds no cache image or several, UnsoundError where a size, a
    digest or a document is not what it should be.
    """
    manifests = read_index(layout).manifests
    if len(manifests) != 1 or manifests[0].media_type != MANIFEST_TYPE:
        raise InputError(
            f"{layout} holds {len(manifests)} images or an index of images; one image is needed",
            f"skopeo copy oci:{layout}:TAG oci:ONE",
        )
    descriptor = manifests[0]
    manifest = _decode(read_blob(layout, descriptor), ImageManifest, descriptor.digest)
    config = _decode(read_blob(layout, manifest.config), ImageConfig, manifest.config.digest)
    labels = config.config.labels
    size = labels.get(LAYER_SIZE_LABEL, "")
    if not _SIZE.fullmatch(size) or IDENTITY_LABEL not in labels or len(manifest.layers) != 1:
        raise InputError(
            f"the image in {layout} is not a cache image of prewarm's",
            "prewarm pack MANIFEST --cache-dir DIR -o OUT",
        )
    layer = manifest.layers[0]
    tar = decompress(read_blob(layout, layer, MAX_SIZE), layer.media_type, int(size))
    if config.rootfs.diff_ids != (digest_of(tar),):
        raise _unsound(ALTERED, layer.digest, " ".join(config.rootfs.diff_ids), digest_of(tar))
    return StoredImage(
        digest=descriptor.digest,
        size=descriptor.size,
        manifest=manifest,
        config=config,
        tar=tar,
    )


def read_blob(layout: Path, descriptor: Descriptor, limit: int = _DOCUMENT_SIZE) -> bytes:
    """Return the blob of `descriptor`; raises UnsoundError unless size and digest are right."""
    digest = descriptor.digest
    if not DIGEST.fullmatch(digest):
        raise _unsound(UNSAFE, repr(digest), "a sha256 digest", "something else")
    if not 0 <= descriptor.size <= limit:
        raise _unsound(ALTERED, digest, f"at most {limit} bytes", f"{descriptor.size}")
    data = _read(blob_path(layout, digest), descriptor.size)
    if len(data) != descriptor.size:
        raise _unsound(ALTERED, digest, f"{descriptor.size} bytes", f"{len(data)} bytes")
    if digest_of(data) != digest:
        raise _unsound(ALTERED, digest, digest, digest_of(data))
    return data


def blob_path(layout: Path, digest: str) -> Path:
    """Return where `layout` has the blob `digest`."""
    return layout / "blobs" / "sha256" / digest.removeprefix("sha256:")


def _read(path: Path, limit: int) -> bytes:
    """Return the bytes of the regular file at `path`, of which it may have `limit`."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise _unsound(MISSING, path.name, "a file", "nothing") from error
    except OSError as error:
        raise _unsound(UNSAFE, path.name, "a readable file", str(error.strerror)) from error
    with os.fdopen(handle, "rb") as stream:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise _unsound(UNSAFE, path.name, "a regular file", "a special file")
        if found.st_size > limit:
            raise _unsound(ALTERED, path.name, f"{limit} bytes", f"{found.st_size} bytes")
        return stream.read()


def _decode(data: bytes, kind: type[T], subject: str) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise _unsound(INDEX, subject, f"an OCI {kind.__name__}", str(error)) from error


def _unsound(code: str, subject: str, expected: str, found: str) -> UnsoundError:
    return UnsoundError(
        Finding(code=code, subject=subject, expected=expected, found=found, fix=_AGAIN)
    )
