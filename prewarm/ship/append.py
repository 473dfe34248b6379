"""Append: an image of another maker with a cache on top, without downloading that image.

Of the base two documents are read: its manifest and its config.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from prewarm.core.cache import ENTRIES, FLASHINFER_PYTHON, PLAN
from prewarm.core.digest import digest_of
from prewarm.core.errors import InputError, MismatchError, UnsupportedError
from prewarm.core.first_start import first_start
from prewarm.core.manifest_yaml import parse_manifest
from prewarm.core.record import Record
from prewarm.ship.appended import Addition, Replaced, appended, replaced
from prewarm.ship.base import Base, open_base, parse_platform, platform_text
from prewarm.ship.bring import Advance, push_appended, write_appended
from prewarm.ship.entry import is_group, key_of, parse_group
from prewarm.ship.environment import Variable, environment
from prewarm.ship.image import ARCHITECTURES, IDENTITY_LABEL, LABEL, labels
from prewarm.ship.layer import compress, source_date_epoch, tar_of
from prewarm.ship.layout import refuse_foreign
from prewarm.ship.manifests import Platform
from prewarm.ship.pack import absolute
from prewarm.ship.reference import Reference
from prewarm.ship.source import Source, open_source
from prewarm.ship.transport import Connection
from prewarm.ship.tree import CacheTree, rooted

MOUNT_PATH = "/opt/prewarm"
"""Where a cache goes that was not packed for another place."""

_NOT_OURS = (
    *("/root", "/tmp", "/var/tmp", "/run", "/var/run", "/var/lock"),  # noqa: S108 (refused)
    *("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/dev", "/proc", "/sys"),
)
"""Directories that are links in some bases, or not 0755; a layer with them would change that."""

_KEYS_PREFIX = "TRITON_"


class Appended(Record, kw_only=True):
    """An image that was made of a base and a cache."""

    reference: str
    """`repo@sha256:…`, or the directory of the layout."""
    digest: str
    tag: str | None
    base: str
    base_digest: str
    platform: str
    identity: str
    mount_path: str
    size: int
    """Bytes of the cache's layer."""
    environment: tuple[Variable, ...]
    replaced: tuple[Replaced, ...]
    """Variables that the base has with other values."""
    foreign: dict[str, str]
    """Variables of the base that may enter keys, and that the cache was not built with."""
    base_layers: dict[str, int]
    """How many of them were `there`, `mounted`, or had to be `copied`."""
    copied: int
    """Bytes of them that went through this machine."""
    first_start: str
    """What a first start with it still does, in words."""


def append(
    base: Reference | Path,
    source: Path,
    to: Reference | Path,
    connection: Connection | None = None,
    *,
    mount_path: str | None = None,
    platform: str | None = None,
    override_env: bool = False,
    advance: Advance = lambda name: None,
) -> Appended:
    """Make `to` the image `base` with the cache in `source` at `mount_path`, and its variables.

    `base` and `to` are in registries or are layouts; `source` is a layout or a mounted image.
    Without a `platform` the base's image for the cache's own is taken, without a `mount_path`
    the cache goes where it was packed for, else to /opt/prewarm. `advance` is told each layer
    of the base. The same base, cache and SOURCE_DATE_EPOCH give the same digest.

    Raises MismatchError where the base is for another platform than the cache, InputError where
    it has a cache, or variables with other values and not `override_env`; IntegrityError for a
    wrong digest, HostError, RegistryError or TryAgainError. Then `to` is what it was before.
    """
    if isinstance(to, Reference) and to.digest is not None:
        raise InputError(f"{to}: the digest follows from what is made", "name a tag")
    if isinstance(to, Path):
        refuse_foreign(to)
    cache = open_source(source)
    place = _mount_path(mount_path or _packed_for(cache))
    own = _platform(cache)
    wanted = parse_platform(platform or own)
    with open_base(base, wanted, connection) as found:
        _check_fits(found, own, wanted)
        python = f"{place}/{FLASHINFER_PYTHON}" if cache.manifest.flashinfer else None
        variables = environment(f"{place}/{ENTRIES}", cache.manifest.toolchain, python)
        others = replaced(found, variables)
        if others and not override_env:
            raise _conflict(found, others)
        told, addition = _addition(cache, place, variables)
        made = appended(found, addition)
        if isinstance(to, Reference):
            tag = to.tag or "latest"
            counts = push_appended(made, found, to, tag, connection, advance=advance)
        else:
            tag = None
            counts = write_appended(made, found, to, cache.identity, advance=advance)
    digest = made.descriptor.digest
    return Appended(
        reference=str(to.at(digest)) if isinstance(to, Reference) else str(to),
        digest=digest,
        tag=tag,
        base=found.name,
        base_digest=found.stored.digest,
        platform=platform_text(found.platform),
        identity=cache.identity,
        mount_path=place,
        size=len(addition.layer),
        environment=variables,
        replaced=others,
        foreign=_foreign(found, cache, variables),
        base_layers=dict(counts.layers),
        copied=counts.copied,
        first_start=told,
    )


def _platform(cache: Source) -> str:
    machine = cache.manifest.toolchain.machine
    if machine not in ARCHITECTURES:
        raise UnsupportedError(f"images have no name for {machine!r}, which the cache is for")
    return f"linux/{ARCHITECTURES[machine]}"


def _packed_for(cache: Source) -> str:
    """Return the mount path that the cache was packed for, or the usual one."""
    for path, data in cache.files.items():
        if is_group(path):
            group = parse_group(data, key_of(path))
            root = PurePosixPath(group.root) if group else PurePosixPath(ENTRIES)
            return str(root.parent) if root.is_absolute() and root.name == ENTRIES else MOUNT_PATH
    return MOUNT_PATH


def _mount_path(text: str) -> str:
    place = absolute(text)
    path = PurePosixPath(place)
    for each in _NOT_OURS:
        if path.is_relative_to(each):
            raise InputError(
                f"{place} is below {each}, which a layer cannot add to without changing {each}"
                " itself",
                f"--mount-path {MOUNT_PATH}",
            )
    if any(part.startswith(".wh.") for part in path.parts):
        raise InputError(f"{place}: names that begin with .wh. remove files from an image")
    return place


def _check_fits(base: Base, own: str, wanted: Platform) -> None:
    found = f"{base.platform.os}/{base.platform.architecture}"
    if found != own:
        raise MismatchError(
            f"{base.name} is for {found}, and the cache was built for {own}",
            f"a base for {own}, or a cache that was built on {found}",
        )
    if found != f"{wanted.os}/{wanted.architecture}":
        raise InputError(f"{base.name} is one image, for {found}", f"--platform {found}")
    if IDENTITY_LABEL in base.labels:
        raise InputError(
            f"{base.name} has the cache {base.labels[IDENTITY_LABEL]} already",
            "append to the image that it was made from",
        )


def _conflict(base: Base, others: tuple[Replaced, ...]) -> InputError:
    lines = [f"{each.name} is {each.base!r}, and would be {each.ours!r}" for each in others]
    return InputError(
        "\n  ".join([f"{base.name} sets what the cache needs otherwise:", *lines]),
        "--override-env, if nothing in the image needs the old values",
    )


def _foreign(base: Base, cache: Source, variables: tuple[Variable, ...]) -> dict[str, str]:
    built_with = cache.manifest.toolchain.environment
    ours = {each.name for each in variables}
    return {
        name: value
        for name, value in base.environment.items()
        if name.startswith(_KEYS_PREFIX) and name not in ours and built_with.get(name) != value
    }


def _addition(cache: Source, place: str, variables: tuple[Variable, ...]) -> tuple[str, Addition]:
    """Return what a first start still does, in words, and what the base gets."""
    plan = parse_manifest(cache.files[PLAN].decode(), PLAN)
    told = first_start(plan, cache.manifest.selection, len(cache.manifest.unbound))
    tree = CacheTree(manifest=cache.manifest, files=cache.files, compiled_size=0, first_start=told)
    epoch = source_date_epoch()
    tar = tar_of(rooted(cache.files, f"{place}/{ENTRIES}"), epoch, below=place.lstrip("/"))
    return told, Addition(
        layer=compress(tar),
        diff_id=digest_of(tar),
        environment=variables,
        labels=_labels(tree, place),
        created_by=f"prewarm append {cache.identity} at {place}",
        epoch=epoch,
    )


def _labels(tree: CacheTree, place: str) -> dict[str, str]:
    """Return our labels alone: those of others say that the whole image is a cache."""
    return {
        name: value for name, value in labels(tree, place).items() if name.startswith(f"{LABEL}.")
    }
