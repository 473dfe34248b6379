"""Two indexes of a cache: what `compile` made, and what an image holds.

A *cache tree* is what an image holds at its root and what `install` lays down::

    io.triton.cache/<KEY>/…             entries, the directory that TRITON_CACHE_DIR names
    io.triton.manifest/manifest.json    the index of Red Hat's MCV
    prewarm/manifest.json               CacheManifest: digest of every file, provenance
    prewarm/plan.yaml                   the manifest that was compiled
    flashinfer/…                        what was built of FlashInfer, where it was asked for
"""

from __future__ import annotations

import msgspec

from prewarm.core.digest import canonical_json
from prewarm.core.flashinfer import BuiltModule
from prewarm.core.manifest import Deployment
from prewarm.core.record import Record
from prewarm.core.selection import Selection
from prewarm.core.toolchain import Toolchain

COMPILED_SCHEMA = "prewarm/compiled/v1"
COMPILED_NAME = "prewarm-compiled.json"
CACHE_SCHEMA = "prewarm/cache/v1"

ENTRIES = "io.triton.cache"
MCV_INDEX = "io.triton.manifest/manifest.json"
CACHE_MANIFEST = "prewarm/manifest.json"
PLAN = "prewarm/plan.yaml"
FLASHINFER = "flashinfer"
FLASHINFER_PYTHON = "flashinfer/python"
"""What PYTHONPATH must begin with, relative to the tree or to where it was installed."""

PLACEHOLDER_ROOT = ".triton/cache"
"""Root of the paths in a group file that belongs to no directory yet (MCV's convention)."""


class CompiledLaunch(Record, kw_only=True):
    """A launch and the directory, named by its key, that Triton put it in."""

    launch: str
    """Digest of the launch."""
    kernel: str
    key: str


class HostModule(Record, kw_only=True):
    """An extension module that a launch needs on the host: a launcher, or `cuda_utils`."""

    name: str
    """`__triton_launcher` or `cuda_utils`."""
    key: str
    file: str


class AutotuneRecord(Record, kw_only=True):
    """A file that tells Triton's autotuner the winner of one tuning key."""

    kernel: str
    key: str
    file: str
    """`NAME.autotune.json`."""


class Compiled(Record, kw_only=True):
    """What is in a cache directory after `compile`, for the manifest that it was made from."""

    schema: str = COMPILED_SCHEMA
    manifest: str
    """Digest of the manifest."""
    arch: int
    """Triton's number of the architecture: 100."""
    toolchain: Toolchain
    launches: tuple[CompiledLaunch, ...]
    host_modules: tuple[HostModule, ...]
    selection: Selection | None = None
    """What tunings chose; None where every candidate was compiled."""
    autotune_records: tuple[AutotuneRecord, ...] = ()
    """One of each winner of the selection."""
    unbound: tuple[str, ...] = ()
    """Digests of launches left out because an argument is known only at deploy time."""


class CachedFile(Record, kw_only=True):
    """One file of a cache tree."""

    path: str
    """Relative to the tree."""
    digest: str
    """Of its bytes; of a relocatable file, of its bytes with paths under PLACEHOLDER_ROOT."""
    size: int
    """In bytes, as digested."""
    relocatable: bool = False
    """A group file: it holds absolute paths that follow the directory."""


class CacheManifest(Record, kw_only=True):
    """What an image holds: identity, provenance and the digest of every other file."""

    schema: str = CACHE_SCHEMA
    manifest: str
    """Digest of the manifest."""
    deployment: Deployment
    target_arch: int
    toolchain: Toolchain
    launches: tuple[CompiledLaunch, ...]
    host_modules: tuple[HostModule, ...]
    selection: Selection | None = None
    """What tunings chose; None where every candidate is there."""
    autotune_records: tuple[AutotuneRecord, ...] = ()
    """One of each winner of the selection."""
    unbound: tuple[str, ...] = ()
    """Digests of launches that the first start must still compile."""
    tuned: bool = False
    """Whether every tuning key has its record; without them the first GPU start benchmarks."""
    sources: dict[str, str] = {}
    """Kernel name to digest of its source key, for `verify`."""
    flashinfer: BuiltModule | None = None
    """What was built of FlashInfer; None where that was not packed."""
    files: tuple[CachedFile, ...]


def cache_document(record: Compiled | CacheManifest) -> bytes:
    """Return `record` as canonical JSON with its schema, as it stands in its file."""
    return canonical_json({"schema": record.schema, **msgspec.to_builtins(record)})
