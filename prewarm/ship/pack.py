"""Pack: a directory that `prewarm compile` filled becomes an image in an OCI layout."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from prewarm.core.cache import ENTRIES
from prewarm.core.digest import digest_of
from prewarm.core.errors import InputError
from prewarm.core.manifest import Manifest
from prewarm.core.record import Record
from prewarm.ship.image import image_of
from prewarm.ship.layer import compress, source_date_epoch, tar_of
from prewarm.ship.layout import write_layout
from prewarm.ship.tree import CacheTree, cache_tree, rooted


class Sizes(Record, kw_only=True):
    """Bytes at each stage from Triton's directory to the blob."""

    compiled: int
    slim: int
    tar: int
    layer: int


class Packed(Record, kw_only=True):
    """An image that was written."""

    identity: str
    """Digest of the content, whatever directory it is made for."""
    diff_id: str
    """Digest of the layer before compression."""
    manifest_digest: str
    """Digest of the image."""
    tag: str
    """A tag that says what it is for, as the layout names the image."""
    launches: int
    files: int
    tuned: bool
    first_start: str
    """What a first start with this cache still does, in words."""
    mount_path: str | None
    sizes: Sizes


def pack(
    manifest: Manifest,
    cache_dir: Path,
    out: Path,
    mount_path: str | None = None,
    flashinfer: Path | None = None,
) -> Packed:
    """Write the cache of `manifest` in `cache_dir` as an image layout at `out`.

    With `flashinfer`, the directory of what was built of FlashInfer, that is in the image too.

    With `mount_path`, the absolute directory at which the root of the image will be mounted or
    copied, Triton finds the entries there without an install. Raises InputError where the
    directories were not compiled from `manifest` or lack something, and HostError where `out`
    cannot be written.
    """
    return pack_tree(cache_tree(manifest, cache_dir, flashinfer), out, mount_path)


def pack_tree(tree: CacheTree, out: Path, mount_path: str | None = None) -> Packed:
    """Write `tree` as an image layout at `out`, as `pack` does."""
    epoch = source_date_epoch()
    if mount_path is not None:
        mount_path = absolute(mount_path)
    root = None if mount_path is None else f"{mount_path}/{ENTRIES}"
    files = tree.files if root is None else rooted(tree.files, root)
    tar = tar_of(files, epoch)
    image = image_of(tree, tar, compress(tar), mount_path, epoch)
    write_layout(out, image)
    return Packed(
        identity=tree.identity,
        diff_id=digest_of(tar),
        manifest_digest=image.descriptor.digest,
        tag=image.tag,
        launches=len(tree.manifest.launches),
        files=len(files),
        tuned=tree.manifest.tuned,
        first_start=tree.first_start,
        mount_path=mount_path,
        sizes=Sizes(
            compiled=tree.compiled_size,
            slim=sum(map(len, files.values())),
            tar=len(tar),
            layer=len(image.layer),
        ),
    )


def absolute(mount_path: str) -> str:
    """Return the directory `mount_path`, plainly spelled; raises InputError where it is none."""
    path = PurePosixPath(mount_path)
    if not path.is_absolute() or ".." in path.parts or len(path.parts) == 1:
        raise InputError(
            f"the mount path {mount_path!r} is not an absolute directory below /",
            "--mount-path /opt/prewarm",
        )
    return "/" + "/".join(path.parts[1:])
