"""The installed cache as the serving process sees it: each part is read when first asked for."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path

from prewarm.core.asked import Asked, asked_of
from prewarm.core.cache import CACHE_MANIFEST, CACHE_SCHEMA, PLAN, CacheManifest
from prewarm.core.document import parse_json
from prewarm.core.errors import InputError
from prewarm.core.manifest import Launch, Manifest
from prewarm.core.manifest_yaml import read_manifest
from prewarm.core.selection import selected_launches

Known = tuple[Launch, Asked]


class InstalledCache:
    """A cache that prewarm installed, or an image's cache tree."""

    def __init__(self, entries: Path) -> None:
        self.entries = entries
        """What TRITON_CACHE_DIR may name."""

    @functools.cached_property
    def _tree(self) -> Path:
        return Path(os.path.realpath(self.entries)).parent

    @functools.cached_property
    def index(self) -> CacheManifest:
        """What the cache holds; raises InputError where that cannot be read."""
        path = self._tree / CACHE_MANIFEST
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        return parse_json(data, CacheManifest, CACHE_SCHEMA, str(path))

    @functools.cached_property
    def plan(self) -> Manifest:
        """The manifest that the cache was made from; raises InputError."""
        return read_manifest(self._tree / PLAN)

    @functools.cached_property
    def kernels(self) -> frozenset[str]:
        """The kernels that were planned, as `module:function`; raises InputError."""
        return frozenset(self.index.sources) | {each.kernel for each in self.index.launches}

    @functools.cached_property
    def libraries(self) -> frozenset[str]:
        """The modules of FlashInfer that are in the cache, by name; raises InputError."""
        built = self.index.flashinfer
        return frozenset(each.module for each in built.libraries) if built else frozenset()

    @functools.cached_property
    def keys(self) -> dict[str, str]:
        """The digest of each launch in the cache to the key of its entry; raises InputError."""
        return {each.launch: each.key for each in self.index.launches}

    @functools.cached_property
    def launches(self) -> tuple[Launch, ...]:
        """The launches that are in the cache, and those that are unbound; raises InputError."""
        here = {*self.keys, *self.index.unbound}
        every = selected_launches(self.plan, self.index.selection)
        return tuple(launch for launch in every if launch.digest in here)

    @functools.cached_property
    def _by_kernel(self) -> dict[str, list[Known]]:
        found: dict[str, list[Known]] = {}
        for launch in self.launches:
            found.setdefault(launch.kernel, []).append((launch, asked_of(launch)))
        return found

    def known(self, kernel: str) -> Sequence[Known]:
        """Return the launches of `kernel` with what they ask for; raises InputError."""
        return self._by_kernel.get(kernel, [])

    def add(self, launch: Launch) -> None:
        """Know a launch that was compiled into the overlay; raises InputError."""
        self._by_kernel.setdefault(launch.kernel, []).append((launch, asked_of(launch)))

    @property
    def directory(self) -> Path:
        """What a person knows it by: the directory given to `prewarm install --into`."""
        return self.entries.parent
