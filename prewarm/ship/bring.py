"""How an image that was appended to gets to where it is wanted, the manifest last.

The layers of the base are mounted where the registry has them, passed on from registry to
registry where it does not, and copied where the image goes into a layout.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from prewarm.core.errors import RegistryError
from prewarm.core.files import host_errors, write_atomic
from prewarm.ship.appended import AppendedImage
from prewarm.ship.base import Base
from prewarm.ship.blobs import download, has_blob, mount, upload
from prewarm.ship.image import IDENTITY_LABEL, Descriptor
from prewarm.ship.layout import begin_layout, blob_path, finish_layout, refuse_foreign
from prewarm.ship.manifests import manifest_digest, put_manifest
from prewarm.ship.pull import alone
from prewarm.ship.reference import Reference
from prewarm.ship.registry import Repository, open_repository
from prewarm.ship.transport import Connection

Advance = Callable[[str], None]

_AT_A_TIME = 4
"""Questions; layers are passed on one after another."""


class Counts:
    """How the layers of the base came to be where they are wanted."""

    def __init__(self) -> None:
        """Begin with none."""
        self.layers: Counter[str] = Counter()
        self.copied = 0

    def add(self, how: str, layer: Descriptor) -> None:
        """Count `layer`."""
        self.layers[how] += 1
        self.copied += layer.size if how == "copied" else 0


def push_appended(
    made: AppendedImage,
    base: Base,
    reference: Reference,
    tag: str,
    connection: Connection | None,
    *,
    advance: Advance,
) -> Counts:
    """Bring the image to the repository of `reference`, where `tag` is it afterwards.

    Raises RegistryError, TryAgainError, or IntegrityError for a layer with a wrong digest; then
    the tag is what it was.
    """
    counts = Counts()
    with open_repository(reference, connection, push=True) as target:
        # What is ours comes first: it is small, and tells whether we may push at all.
        upload(target, made.layer_descriptor, lambda: io.BytesIO(made.layer))
        upload(target, made.config_descriptor, lambda: io.BytesIO(made.config))
        layers = _distinct(base)
        with ThreadPoolExecutor(_AT_A_TIME) as pool:
            granted = list(pool.map(lambda each: _granted(target, base, each), layers))
        for each, how in zip(layers, granted, strict=True):
            if how is None:
                upload(target, each, partial(base.opened, each))
            counts.add(how or "copied", each)
            advance(f"layer {each.digest}")
        if manifest_digest(target, tag) != made.descriptor.digest:
            put_manifest(target, made.manifest, made.media_type, tag)
    return counts


def _distinct(base: Base) -> list[Descriptor]:
    return list({layer.digest: layer for layer in base.layers}.values())


def _granted(target: Repository, base: Base, layer: Descriptor) -> str | None:
    """Return how `target` has `layer` without a byte of it sent, None where it has not."""
    mount_from = _mountable(base, target.reference)
    if mount_from == target.reference.repository or has_blob(target, layer):
        return "there"
    try:
        granted = mount_from is not None and mount(target, layer, mount_from)
    except RegistryError:
        # Who may push here may not be let in there by the same login.
        return None
    return "mounted" if granted else None


def _mountable(base: Base, reference: Reference) -> str | None:
    """Return the repository of the base where it is in the same registry."""
    if not isinstance(base.place, Repository):
        return None
    theirs = base.place.reference
    return theirs.repository if theirs.api_host == reference.api_host else None


def write_appended(
    made: AppendedImage, base: Base, out: Path, identity: str, *, advance: Advance
) -> Counts:
    """Make `out` a layout of the image, the layers of the base among its blobs.

    Raises InputError where `out` holds something else, HostError where it cannot be written,
    IntegrityError, RegistryError or TryAgainError; then `out` holds the image that it held
    before, or none.
    """
    counts = Counts()
    ours = {
        made.layer_descriptor.digest: made.layer,
        made.config_descriptor.digest: made.config,
    }
    with alone(out):
        refuse_foreign(out)
        with host_errors(f"write the image {out}"):
            begin_layout(out)
        for each in _distinct(base):
            counts.add(_copied(base, each, blob_path(out, each.digest)), each)
            advance(f"layer {each.digest}")
        with host_errors(f"write the image {out}"):
            for digest, data in ours.items():
                write_atomic(blob_path(out, digest), data)
            # By this `refuse_foreign` knows the layout again.
            marked = Descriptor(
                media_type=made.media_type,
                digest=made.descriptor.digest,
                size=len(made.manifest),
                annotations={IDENTITY_LABEL: identity},
            )
            keep = [*ours, *(each.digest for each in base.layers)]
            finish_layout(out, marked, made.manifest, None, keep)
    return counts


def _copied(base: Base, layer: Descriptor, path: Path) -> str:
    """Put `layer` of the base at `path`, whole or not at all; return how."""
    if isinstance(base.place, Repository):
        was_there = path.exists()
        download(base.place, layer, path)
        return "there" if was_there else "copied"
    with base.opened(layer) as stream, host_errors(f"write {path}"):
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:16]}.")
        try:
            with os.fdopen(handle, "wb") as written:
                shutil.copyfileobj(stream, written, 1 << 20)
                written.flush()
                os.fsync(written.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    return "copied"
