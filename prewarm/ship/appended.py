"""The image that is a base with a cache on top: its manifest and its config, as bytes.

All that the base says stays, whatever maker and family it is of; nothing here reads or writes.
"""

from __future__ import annotations

from typing import Any

from prewarm.core.digest import canonical_json, digest_of
from prewarm.core.record import Record
from prewarm.ship.base import Base
from prewarm.ship.environment import Variable
from prewarm.ship.image import Descriptor, timestamp
from prewarm.ship.layer import DOCKER_GZIP, GZIP
from prewarm.ship.manifests import DOCKER_MANIFEST_TYPE

BASE_NAME = "org.opencontainers.image.base.name"
BASE_DIGEST = "org.opencontainers.image.base.digest"


class Addition(Record, kw_only=True):
    """What a base gets."""

    layer: bytes
    """Compressed."""
    diff_id: str
    environment: tuple[Variable, ...]
    labels: dict[str, str]
    created_by: str
    """For the history."""
    epoch: int
    """When, in seconds; 0 leaves it at the time of the base."""


class Replaced(Record, kw_only=True):
    """A variable that the base has with another value."""

    name: str
    base: str
    ours: str


class AppendedImage(Record, kw_only=True):
    """The image, as bytes, but for the layers of the base."""

    manifest: bytes
    media_type: str
    config: bytes
    layer: bytes
    """The one of the cache."""
    config_descriptor: Descriptor
    layer_descriptor: Descriptor

    @property
    def descriptor(self) -> Descriptor:
        """What points to it."""
        return Descriptor(
            media_type=self.media_type, digest=digest_of(self.manifest), size=len(self.manifest)
        )


def replaced(base: Base, variables: tuple[Variable, ...]) -> tuple[Replaced, ...]:
    """Return which of `variables` the base has with another value."""
    there = base.environment
    return tuple(
        Replaced(name=each.name, base=there[each.name], ours=each.value)
        for each in variables
        if not each.prepended and there.get(each.name, each.value) != each.value
    )


def appended(base: Base, addition: Addition) -> AppendedImage:
    """Return `base` with `addition` on top, the same bytes for equal ones."""
    is_docker = base.stored.media_type == DOCKER_MANIFEST_TYPE
    origin = {BASE_DIGEST: base.stored.digest}
    if base.reference is not None:
        origin[BASE_NAME] = base.reference
    config = canonical_json(_config(base, addition, origin))
    config_descriptor = Descriptor(
        media_type=base.manifest["config"]["mediaType"], digest=digest_of(config), size=len(config)
    )
    layer = Descriptor(
        media_type=DOCKER_GZIP if is_docker else GZIP,
        digest=digest_of(addition.layer),
        size=len(addition.layer),
    )
    manifest = {
        **base.manifest,
        "mediaType": base.stored.media_type,
        "config": _plain(config_descriptor),
        "layers": [*base.manifest["layers"], _plain(layer)],
    }
    # A base may be attached to something; what is made of it is not.
    manifest.pop("subject", None)
    if not is_docker:
        manifest["annotations"] = _without_origin(base.manifest.get("annotations")) | origin
    return AppendedImage(
        manifest=canonical_json(manifest),
        media_type=base.stored.media_type,
        config=config,
        layer=addition.layer,
        config_descriptor=config_descriptor,
        layer_descriptor=layer,
    )


def _config(base: Base, addition: Addition, origin: dict[str, str]) -> dict[str, Any]:
    config, execution = base.config, base.config.get("config") or {}
    created = config.get("created") or timestamp(0)
    if addition.epoch:
        created = timestamp(addition.epoch)
    history = config.get("history") or []
    if history:
        # Without a history it stays so: entries and layers must be as many.
        history = [*history, {"created": created, "created_by": addition.created_by}]
    return {
        **config,
        "created": created,
        "config": {
            **execution,
            "Env": _environment(execution.get("Env") or [], addition.environment),
            "Labels": _without_origin(execution.get("Labels")) | addition.labels | origin,
        },
        "rootfs": {
            **config["rootfs"],
            "diff_ids": [*config["rootfs"]["diff_ids"], addition.diff_id],
        },
        **({"history": history} if history else {}),
    }


def _environment(lines: list[str], variables: tuple[Variable, ...]) -> list[str]:
    """Return `lines` with `variables`, those that are there in their places."""
    there = {name: value for name, _, value in (line.partition("=") for line in lines)}
    ours = {each.name: each.within(there) for each in variables}
    return [f"{name}={value}" for name, value in (there | ours).items()]


def _without_origin(words: dict[str, str] | None) -> dict[str, str]:
    """Return labels or annotations without those that name what the base itself was made from."""
    return {
        name: value for name, value in (words or {}).items() if name not in (BASE_NAME, BASE_DIGEST)
    }


def _plain(descriptor: Descriptor) -> dict[str, Any]:
    return {
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest,
        "size": descriptor.size,
    }
