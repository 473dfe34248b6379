"""The image around a layer: config, labels, annotations, manifest.

A plain OCI image with a config and diff_ids and without `artifactType`: containerd mounts an
image volume by its diff_ids, and CRI-O takes an image with an artifact type for raw blobs.
"""

from __future__ import annotations

import re
import shlex
from datetime import UTC, datetime

import msgspec

import prewarm
from prewarm.core.cache import ENTRIES, CacheManifest
from prewarm.core.digest import canonical_json, digest_of
from prewarm.core.errors import UnsupportedError
from prewarm.core.record import Record
from prewarm.ship import mcv
from prewarm.ship.layer import GZIP
from prewarm.ship.tree import CacheTree, rooted

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"

LABEL = "dev.prewarm"
IDENTITY_LABEL = f"{LABEL}.identity"
LAYER_SIZE_LABEL = f"{LABEL}.layer-size"

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class Descriptor(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What a blob is, by digest; fields that others add are let pass."""

    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] = {}


class ImageManifest(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """An OCI image manifest."""

    schema_version: int
    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: dict[str, str] = {}


class RootFs(msgspec.Struct, frozen=True, kw_only=True):
    """The digests of an image's layers before compression."""

    type: str
    diff_ids: tuple[str, ...]


class Execution(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a container made from the image inherits."""

    labels: dict[str, str] = msgspec.field(name="Labels", default={})


class History(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a layer came to be."""

    created: str = ""
    created_by: str = ""


class ImageConfig(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An OCI image config."""

    created: str = ""
    architecture: str
    os: str
    config: Execution = Execution()
    rootfs: RootFs
    history: tuple[History, ...] = ()


class Image(Record, kw_only=True):
    """An image of one layer, as bytes."""

    manifest: bytes
    config: bytes
    layer: bytes
    tag: str
    """A tag that says what it is for."""
    annotations: dict[str, str]

    @property
    def descriptor(self) -> Descriptor:
        """What points to the image from an index."""
        return Descriptor(
            media_type=MANIFEST_TYPE,
            digest=digest_of(self.manifest),
            size=len(self.manifest),
            annotations=self.annotations,
        )


def image_of(
    tree: CacheTree, tar: bytes, layer: bytes, mount_path: str | None, epoch: int
) -> Image:
    """Return the image whose one layer, `layer` when compressed, is the `tar` of `tree`.

    Raises UnsupportedError for a CPU architecture that has no name in OCI.
    """
    machine = tree.manifest.toolchain.machine
    if machine not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UnsupportedError(f"no image can be made for {machine!r}; known: {known}")
    created = timestamp(epoch)
    config = ImageConfig(
        created=created,
        architecture=ARCHITECTURES[machine],
        os="linux",
        config=Execution(labels=labels(tree, mount_path) | {LAYER_SIZE_LABEL: str(len(tar))}),
        rootfs=RootFs(type="layers", diff_ids=(digest_of(tar),)),
        history=(History(created=created, created_by="prewarm pack"),),
    )
    config_bytes = canonical_json(config)
    annotations = _annotations(tree, created)
    manifest = ImageManifest(
        schema_version=2,
        media_type=MANIFEST_TYPE,
        config=_describe(CONFIG_TYPE, config_bytes),
        layers=(_describe(GZIP, layer),),
        annotations=annotations,
    )
    return Image(
        manifest=canonical_json(manifest),
        config=config_bytes,
        layer=layer,
        tag=tag_of(tree),
        annotations=annotations,
    )


def timestamp(epoch: int) -> str:
    """Return the second `epoch` as images write it."""
    return datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def tag_of(tree: CacheTree) -> str:
    """Return a tag that says which toolchain and GPU `tree` is for, and which tree it is."""
    tools = tree.manifest.toolchain
    plain = f"vllm-{tools.vllm}-triton-{tools.triton}-sm{tree.manifest.target_arch}"
    return re.sub(r"[^A-Za-z0-9_.-]", "_", plain) + "-" + tree.identity.partition(":")[2][:12]


def labels(tree: CacheTree, mount_path: str | None) -> dict[str, str]:
    """Return the labels of the image of `tree`: ours, MCV's and KServe's."""
    manifest, tools = tree.manifest, tree.manifest.toolchain
    ours = {
        "identity": tree.identity,
        "manifest": manifest.manifest,
        "model": manifest.deployment.model.name,
        "serve": shlex.join(manifest.deployment.serve_args),
        "version": prewarm.__version__,
        "target": manifest.deployment.target,
        "arch": f"sm_{manifest.target_arch}",
        "vllm": tools.vllm,
        "torch": tools.torch,
        "triton": tools.triton,
        "triton-key": tools.triton_key,
        "ptxas": tools.ptxas.version,
        "python-abi": tools.python_abi,
        "machine": tools.machine,
        "libc": tools.libc,
        "launches": str(len(manifest.launches)),
        **_tuning(manifest),
        **_flashinfer(manifest),
        "first-start": tree.first_start,
        **({} if mount_path is None else {"mount-path": mount_path}),
    }
    entries = len({launch.key for launch in manifest.launches})
    shipped = tree.files if mount_path is None else rooted(tree.files, f"{mount_path}/{ENTRIES}")
    return (
        {f"{LABEL}.{name}": value for name, value in ours.items()}
        | mcv.labels(manifest.target_arch, entries, shipped)
        | mcv.mount_labels(mount_path)
    )


def _tuning(manifest: CacheManifest) -> dict[str, str]:
    """Return what an image says of its winners, and of the GPU that they were measured on."""
    selection = manifest.selection
    found = {"tuned": "true" if manifest.tuned else "false"}
    if selection is None or not manifest.autotune_records:
        return found
    found |= {"tuned-on": selection.gpu, "tunings": selection.tunings}
    return found | {"tunings-of-another-gpu": "true"} if selection.foreign else found


def _flashinfer(manifest: CacheManifest) -> dict[str, str]:
    """Return what an image says of FlashInfer's libraries in it."""
    built = manifest.flashinfer
    if built is None:
        return {}
    instances = sorted(name for library in built.libraries for name in library.instances)
    return {
        "flashinfer": built.flashinfer,
        "flashinfer.module": built.module,
        "flashinfer.instances": " ".join(instances),
        "flashinfer.arch": built.arch,
        "flashinfer.compiler": built.compiler,
    }


def _annotations(tree: CacheTree, created: str) -> dict[str, str]:
    manifest = tree.manifest
    model, revision = manifest.deployment.model.name, manifest.deployment.model.revision
    title = f"Triton kernel cache of {model} on {manifest.deployment.target}"
    return {
        "org.opencontainers.image.created": created,
        "org.opencontainers.image.title": title,
        "org.opencontainers.image.version": tree.identity,
        **({"dev.prewarm.model-revision": revision} if revision else {}),
        IDENTITY_LABEL: tree.identity,
        f"{LABEL}.target": manifest.deployment.target,
        f"{LABEL}.arch": f"sm_{manifest.target_arch}",
        f"{LABEL}.vllm": manifest.toolchain.vllm,
        f"{LABEL}.triton": manifest.toolchain.triton,
        **{f"{LABEL}.{name}": value for name, value in _tuning(manifest).items()},
    }


def _describe(media_type: str, data: bytes) -> Descriptor:
    return Descriptor(media_type=media_type, digest=digest_of(data), size=len(data))
