"""A shard: what one part of a fleet build left behind, and its index.

A *shard directory* is whole by itself::

    prewarm-shard.json       Shard: written last, so a shard without it is not finished
    plans/NAME.yaml          the manifest of every deployment of the fleet
    cache/GROUP/<KEY>/…      Triton's entries and host modules of this part
    records/NAME/<KEY>/…     Triton's autotune records of one deployment
    flashinfer/NAME/…        one library of FlashInfer, as `compile --flashinfer` leaves it
"""

from __future__ import annotations

import msgspec

from prewarm.core.cache import AutotuneRecord, HostModule
from prewarm.core.digest import canonical_json
from prewarm.core.fleet import Part
from prewarm.core.record import Record
from prewarm.core.selection import Selection

SHARD_SCHEMA = "prewarm/shard/v1"
SHARD_NAME = "prewarm-shard.json"
PLANS = "plans"
CACHES = "cache"
RECORDS = "records"
LIBRARIES = "flashinfer"


class ShardDeployment(Record, kw_only=True):
    """A deployment of the fleet that this is a shard of."""

    name: str
    manifest: str
    """Digest of the manifest."""
    selection: Selection | None = None
    flashinfer: bool = False


class ShardLaunch(Record, kw_only=True):
    """A launch that this shard compiled."""

    identity: str
    launch: str
    """Digest of the launch."""
    kernel: str
    group: str
    arch: int
    """Triton's number of the architecture: 100."""
    key: str
    host_modules: tuple[HostModule, ...]


class ShardRecord(Record, kw_only=True):
    """An autotune record that this shard wrote."""

    deployment: str
    record: AutotuneRecord


class ShardEntry(Record, kw_only=True):
    """One directory that Triton named by a key, or one library, and what is shipped of it."""

    place: str
    """Relative to the shard directory: `cache/GROUP`, `records/NAME` or `flashinfer/NAME`."""
    key: str
    """Triton's, or the path of a library's file."""
    holds: str
    """What it is, for people: a kernel, a host module, the record of a kernel, a library."""
    digest: str
    """Of what is shipped of it, which names no directory of the machine that made it."""


class Shard(Record, kw_only=True):
    """The index of a shard directory."""

    schema: str = SHARD_SCHEMA
    part: Part
    libc: str
    """C library that host modules are linked to."""
    vllm: str
    deployments: tuple[ShardDeployment, ...]
    """All of the fleet."""
    launches: tuple[ShardLaunch, ...]
    """Those of this part."""
    records: tuple[ShardRecord, ...]
    tuned: tuple[str, ...]
    """Deployments whose records are here, be they none."""
    libraries: tuple[str, ...] = ()
    """Names of FlashInfer's libraries that are here."""
    entries: tuple[ShardEntry, ...]


def shard_document(shard: Shard) -> bytes:
    """Return `shard` as canonical JSON with its schema, as it stands in its file."""
    return canonical_json({"schema": shard.schema, **msgspec.to_builtins(shard)})
