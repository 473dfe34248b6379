"""Manifests and indexes of a registry: read with limits and digests checked, written, listed."""

from __future__ import annotations

import re
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlencode

import msgspec

from prewarm.core.digest import DIGEST, digest_of
from prewarm.core.errors import InputError, IntegrityError, RegistryError
from prewarm.core.record import Record
from prewarm.ship.image import INDEX_TYPE, MANIFEST_TYPE, Descriptor
from prewarm.ship.registry import Repository

DOCKER_MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
DOCKER_LIST_TYPE = "application/vnd.docker.distribution.manifest.list.v2+json"
MANIFEST_TYPES = (MANIFEST_TYPE, DOCKER_MANIFEST_TYPE)
INDEX_TYPES = (INDEX_TYPE, DOCKER_LIST_TYPE)

MANIFEST_SIZE = 4 << 20
"""Bytes that a manifest may have; registries take no more."""
_TAGS_SIZE = 8 << 20
_MOST_PAGES = 1000
_ACCEPT = ", ".join((*MANIFEST_TYPES, *INDEX_TYPES))

T = TypeVar("T")


class Platform(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an image of an index runs on."""

    architecture: str = ""
    os: str = ""
    variant: str = ""


class Entry(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """An entry of an index: a descriptor with what to choose by."""

    media_type: str
    digest: str
    size: int
    platform: Platform | None = None
    annotations: dict[str, str] | None = None
    artifact_type: str | None = None

    @property
    def descriptor(self) -> Descriptor:
        """The entry as the descriptor of a manifest."""
        return Descriptor(media_type=self.media_type, digest=self.digest, size=self.size)


class Index(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """An OCI index, or a Docker manifest list."""

    schema_version: int
    media_type: str = ""
    manifests: tuple[Entry, ...] = ()
    annotations: dict[str, str] | None = None
    artifact_type: str | None = None


class RemoteManifest(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A manifest as others may write it: OCI or Docker, of an image or an artifact."""

    schema_version: int
    media_type: str = ""
    config: Descriptor
    layers: tuple[Descriptor, ...] = ()
    annotations: dict[str, str] | None = None
    artifact_type: str | None = None
    subject: Descriptor | None = None


class Stored(Record, kw_only=True):
    """A manifest or an index as the registry holds it, byte for byte."""

    digest: str
    media_type: str
    data: bytes

    @property
    def is_index(self) -> bool:
        """Whether it names images and is none."""
        return self.media_type in INDEX_TYPES

    @property
    def descriptor(self) -> Descriptor:
        """What points to it."""
        return Descriptor(media_type=self.media_type, digest=self.digest, size=len(self.data))

    def manifest(self) -> RemoteManifest:
        """Return it as a manifest; raises RegistryError where it is none."""
        return decode(self.data, RemoteManifest, f"the manifest {self.digest}")

    def index(self) -> Index:
        """Return it as an index; raises RegistryError where it is none."""
        return decode(self.data, Index, f"the index {self.digest}")


class _Named(msgspec.Struct, frozen=True, rename="camel"):
    media_type: str = ""
    manifests: Any = None


class _Tags(msgspec.Struct, frozen=True):
    tags: tuple[str, ...] | None = None


class UnreadableError(RegistryError):
    """What a registry sent is not what it should be, or of a kind that prewarm cannot read."""


def decode(data: bytes, kind: type[T], what: str) -> T:
    """Return the `kind` that the JSON `data` from a registry holds; raises UnreadableError."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise UnreadableError(f"{what} is not what it should be: {error}") from error


def get_manifest(repository: Repository, wanted: str | None = None) -> Stored:
    """Return the manifest or index of the tag or digest `wanted`, by default the reference's.

    Raises NotThereError (a RegistryError) where there is none, IntegrityError where it is not
    what its digest says, RegistryError where it is none that prewarm can read, or TryAgainError.
    """
    wanted = wanted or repository.reference.wanted
    doing = f"read the manifest {repository.reference.name} {wanted}"
    transport = repository.transport
    call = repository.call("GET", f"manifests/{wanted}", doing, headers={"Accept": _ACCEPT})

    def attempt() -> tuple[bytes, str, str]:
        with transport.once(call) as response:
            told = response.headers.get("Docker-Content-Digest", "")
            kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
            return transport.read(response, MANIFEST_SIZE, doing), kind, told

    data, kind, told = transport.patiently(attempt)
    digest = digest_of(data)
    for expected in (wanted, told):
        if DIGEST.fullmatch(expected) and digest != expected:
            raise IntegrityError(f"{doing}: expected {expected}, found {digest}")
    return Stored(digest=digest, media_type=_media_type(data, kind, doing), data=data)


def _media_type(data: bytes, kind: str, doing: str) -> str:
    """Return the media type; manifests may leave it to the header, and proxies spoil headers."""
    named = decode(data, _Named, f"what came to {doing}")
    known = (*MANIFEST_TYPES, *INDEX_TYPES)
    if named.media_type and kind in known and named.media_type != kind:
        raise UnreadableError(f"{doing}: sent as {kind}, and says that it is {named.media_type!r}")
    found = named.media_type or kind
    if found not in known:
        raise UnreadableError(
            f"{doing}: it is {found[:80]!r}, which is no image and no index that prewarm can read"
        )
    if (found in INDEX_TYPES) != (named.manifests is not None):
        raise UnreadableError(f"{doing}: it is sent as {found} and holds something else")
    return found


def manifest_digest(repository: Repository, wanted: str) -> str | None:
    """Return the digest that the registry says `wanted` has now, None where there is nothing."""
    doing = f"look for the manifest {repository.reference.name} {wanted}"
    call = repository.call(
        "HEAD", f"manifests/{wanted}", doing, expect=(200, 404), headers={"Accept": _ACCEPT}
    )
    with repository.transport.send(call) as response:
        digest = response.headers.get("Docker-Content-Digest", "")
        return digest if response.status_code == 200 and DIGEST.fullmatch(digest) else None


def put_manifest(
    repository: Repository,
    data: bytes,
    media_type: str,
    tag: str | None = None,
    *,
    replaces: str | None = None,
) -> dict[str, str]:
    """Write the manifest or index `data` as `tag`, without one by its digest.

    Returns the answer's headers, their names in lower case. With `replaces`, the digest that the
    tag is to have until now, raises PreconditionError where it has another and the registry
    knows conditions. Raises RegistryError or TryAgainError.
    """
    if len(data) > MANIFEST_SIZE:
        raise InputError(f"a manifest of {len(data)} bytes: registries take {MANIFEST_SIZE}")
    digest = digest_of(data)
    headers = {"Content-Type": media_type}
    if replaces is not None:
        headers["If-Match"] = f'"{replaces}"'
    call = repository.call(
        "PUT",
        f"manifests/{tag or digest}",
        f"write the manifest {repository.reference.name} {tag or digest}",
        expect=(201, 412),
        headers=headers,
        body=lambda: data,
    )
    with repository.transport.send(call) as response:
        if response.status_code == 412:
            raise PreconditionError(f"{repository.reference.name}:{tag} was changed by another")
        told = response.headers.get("Docker-Content-Digest", digest)
        if told != digest:
            raise IntegrityError(
                f"{repository.reference.name} took {digest} and says that it is {told[:80]!r}"
            )
        return {name.lower(): value for name, value in response.headers.items()}


class PreconditionError(RegistryError):
    """A tag is not any more what it was when it was read."""


def tags(repository: Repository) -> tuple[str, ...]:
    """Return every tag, in order; raises RegistryError or TryAgainError."""
    doing = f"list the tags of {repository.reference.name}"
    found: set[str] = set()
    path = "tags/list?n=1000"
    transport = repository.transport
    for _ in range(_MOST_PAGES):
        with transport.send(repository.call("GET", path, doing)) as response:
            body = transport.read(response, _TAGS_SIZE, doing)
            link = response.headers.get("Link", "")
        page = decode(body, _Tags, "the list of tags").tags or ()
        new = {tag for tag in page if _TAG.fullmatch(tag)} - found
        found |= new
        last = _last(link)
        if last is None or not new:
            return tuple(sorted(found))
        path = "tags/list?" + urlencode({"n": 1000, "last": last})
    raise RegistryError(f"cannot {doing}: there is no end of them")


_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


def _last(link: str) -> str | None:
    """Return where the next page begins.

    Taken out of the link and put into a URL of ours: a link may lead elsewhere.
    """
    found = re.match(r"\s*<([^>]{1,4096})>\s*;[^,]*\brel=\"?next\"?", link)
    query = found[1].partition("?")[2] if found else ""
    last = parse_qs(query).get("last")
    return last[0] if last else None


def select_platform(index: Index, os: str, architecture: str, variant: str | None = None) -> Entry:
    """Return the image of `index` for a platform; raises InputError naming those that it has."""
    fitting = [
        entry
        for entry in index.manifests
        if entry.media_type in MANIFEST_TYPES
        and entry.platform is not None
        and (entry.platform.os, entry.platform.architecture) == (os, architecture)
        and (variant is None or entry.platform.variant in ("", variant))
    ]
    if fitting:
        return fitting[0]
    there = sorted(
        f"{entry.platform.os}/{entry.platform.architecture}"
        for entry in index.manifests
        if entry.platform is not None and entry.platform.os != "unknown"
    )
    raise InputError(
        f"the index has no image for {os}/{architecture}; it has {', '.join(there) or 'none'}"
    )
