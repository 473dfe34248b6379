"""The cache overlay: Triton reads the installed cache first and writes beside it.

What the installed cache has is used and never touched. What it lacks, or has damaged, is
compiled as without it, and kept where Triton would have kept it; where nothing can be kept
there, in a temporary directory, because Triton reads back what it has just stored. Nothing
that is wrong with a cache ends a launch: it is said once in the log.

A process with the plugin calls `use_overlay`. Without it, the environment is enough:
`TRITON_CACHE_MANAGER=prewarm.serve.overlay:OverlayCache` and `PREWARM_CACHE=DIR`.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import json
import os
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from prewarm.serve import layers, settings
from prewarm.serve.layers import GROUP_PREFIX, Baked, DamagedError, Layer
from prewarm.serve.log import LOG

MANAGER = f"{__name__}:OverlayCache"
"""What TRITON_CACHE_MANAGER must say in a process without the plugin."""

INSTALLED, WRITTEN = "installed", "written"

Found = TypeVar("Found", str, dict[str, str])


class Faults:
    """What was wrong with a cache: how often each thing, and each said once in the log."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    @property
    def counts(self) -> Mapping[str, int]:
        """What was said, to how often it happened."""
        return dict(self._counts)

    def tell(self, kind: str, message: str) -> None:
        """Count one of a `kind`, and log `message` if it is the first."""
        with self._lock:
            self._counts[kind] += 1
            is_first = self._counts[kind] == 1
        if is_first:
            LOG.warning("prewarm: %s", message)


class Overlay:
    """The layers that Triton in this process reads and writes."""

    def __init__(self, baked: Path | None, writable: Path | None) -> None:
        self.faults = Faults()
        self.hits: Counter[str] = Counter()
        """Files and groups that were found, by `installed` and `written`."""
        self._temporary = _Temporary()
        self._layers: dict[str, Layer] = {}
        self._is_baked: dict[str, bool] = {}
        self._baked = None if baked is None else Baked(os.path.abspath(baked), _is_record)
        self._written = self._choose(writable)
        self._baked_layer()

    @property
    def baked(self) -> Path | None:
        """The installed cache, None where none was named."""
        return None if self._baked is None else Path(self._baked.directory)

    @property
    def writable(self) -> Path:
        """Where what is compiled goes, as long as nobody moves Triton's own directory."""
        return Path(self._written)

    def entry(self, key: str) -> Entry:
        """Return the entry `key` of all layers."""
        return Entry(self, key)

    def layers(self) -> Iterator[tuple[str, Layer]]:
        """Yield what is read, in order, each with its name in `hits`."""
        baked = self._baked_layer()
        if baked is not None:
            yield INSTALLED, baked
        for root in self._roots():
            layer = self._layers.get(root)
            if layer is None:
                layer = self._layers[root] = Layer(root, _is_record)
            yield WRITTEN, layer

    def places(self) -> Iterator[str]:
        """Yield the directories to write to, from the best to the last resort.

        Raises OSError where not even a temporary directory can be made.
        """
        roots = tuple(self._roots())
        yield from roots
        if self._temporary.path not in roots:
            yield self._temporary.made()

    def damaged(self, kind: str, layer: Layer, error: DamagedError) -> None:
        """Say that an entry of `layer` is not used, and why."""
        if kind == WRITTEN:
            self.faults.tell(
                f"damaged {layer.root}",
                f"an entry in {layer.root} cannot be used ({error}): such entries are compiled"
                " again",
            )
        else:
            self.faults.tell(
                f"damaged {self.baked}",
                f"an entry of the installed cache {self.baked} cannot be used ({error}): such"
                f" entries are compiled again, into {self._written};"
                f" `prewarm verify {self.baked}` lists them",
            )

    def moved(self, place: str, error: OSError, to: str) -> None:
        """Say that nothing can be written to `place`, and where it goes instead."""
        until = " until this process ends" if to == self._temporary.path else ""
        self.faults.tell(
            f"cannot write {place}",
            f"cannot write to {place} ({error.strerror or error}): what is compiled is kept in"
            f" {to}{until}",
        )

    def _baked_layer(self) -> Layer | None:
        if self._baked is None:
            self.faults.tell("no cache", f"{settings.CACHE} is not set: no installed cache is read")
            return None
        try:
            return self._baked.layer()
        except OSError as error:
            self.faults.tell(
                f"cannot read {self.baked}",
                f"cannot read the installed cache {self.baked} ({error.strerror or error}):"
                f" what is not in {self._written} is compiled",
            )
            return None

    def _roots(self) -> Iterator[str]:
        """Yield the directories that are read and written, the best first.

        Triton's own comes first wherever it is, because Inductor seeks its kernels there by path.
        """
        own = _own_directory()
        if own and own != self._written and not self._leads_to_baked(own):
            yield own
        yield self._written
        temporary = self._temporary.path
        if temporary is not None and temporary not in {own, self._written}:
            yield temporary

    def _leads_to_baked(self, directory: str) -> bool:
        """Return whether `directory` is in the installed cache, by whatever way."""
        if self._baked is None:
            return False
        found = self._is_baked.get(directory)
        if found is None:
            baked, real = os.path.realpath(self._baked.directory), os.path.realpath(directory)
            found = self._is_baked[directory] = os.path.commonpath([baked, real]) == baked
        return found

    def _choose(self, writable: Path | None) -> str:
        """Return where what is compiled goes, and let Triton's own directory be there."""
        own = _own_directory()
        if writable is None and own and not self._leads_to_baked(own):
            return own
        chosen = _user_directory() if writable is None else os.path.abspath(writable)
        try:
            _make_writable(chosen)
        except OSError as error:
            refused = chosen
            with contextlib.suppress(OSError):
                chosen = self._temporary.made()
            self.moved(refused, error, chosen)
        # Inductor writes there too, and not through a cache manager.
        os.environ[settings.TRITON_CACHE] = chosen
        return chosen


class Entry:
    """One entry of the cache, as long as one lookup and one compile take."""

    def __init__(self, overlay: Overlay, key: str) -> None:
        self._overlay = overlay
        self._key = key
        self._places: Iterator[str] = iter(())
        self._place: str | None = None
        self._stored: dict[str, bytes | str] = {}

    def file(self, name: str) -> str | None:
        """Return the path of the file `name`, None where no layer has it."""
        return self._first(lambda layer: layer.file(self._key, name))

    def group(self, name: str) -> dict[str, str] | None:
        """Return the paths of the group whose metadata is `name`, None where no layer has it."""
        return self._first(lambda layer: layer.group(self._key, name))

    def _first(self, look: Callable[[Layer], Found | None]) -> Found | None:
        for kind, layer in self._overlay.layers():
            try:
                found = look(layer)
            except DamagedError as error:
                self._overlay.damaged(kind, layer, error)
                continue
            if found is not None:
                self._overlay.hits[kind] += 1
                return found
        return None

    def store(self, name: str, data: bytes | str) -> str:
        """Keep `data` as the file `name` and return its path.

        Raises OSError where not even a temporary directory takes it.
        """
        self._stored[name] = data
        if self._place is None:
            self._places = self._overlay.places()
            self._place = next(self._places)
        refused: dict[str, OSError] = {}
        while True:
            try:
                path = layers.store(f"{self._place}/{self._key}", name, data)
            except OSError as error:
                following = next(self._places, None)
                if following is None:
                    raise
                refused[self._place], self._place = error, following
                continue
            for place, why in refused.items():
                self._overlay.moved(place, why, self._place)
            return path

    def store_group(self, name: str, group: dict[str, str]) -> str:
        """Keep the paths of `group` as that of the metadata `name`; raises OSError as `store`.

        A file that was cleared away since it was stored is stored again, and `group` changed:
        Triton reads all of them next.
        """
        for each, path in group.items():
            if each in self._stored and not os.path.exists(path):
                group[each] = self.store(each, self._stored[each])
        return self.store(GROUP_PREFIX + name, json.dumps({"child_paths": group}))


class _Temporary:
    """A directory that is gone when this process ends, made when it is needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.path: str | None = None

    def made(self) -> str:
        """Return its path; raises OSError where it cannot be made."""
        with self._lock:
            if self.path is None:
                self.path = tempfile.mkdtemp(prefix="prewarm-")
                atexit.register(_remove, self.path, os.getpid())
            return self.path


def use_overlay(baked: Path, writable: Path | None = None) -> Overlay:
    """Let Triton in this process read the installed cache `baked` first; return the layers.

    `baked` is what `prewarm install --into` was given, or the entries in it. What is compiled
    goes to `writable`, by default to Triton's own directory, or to the user's cache directory
    where that is `baked` itself; with `writable`, TRITON_CACHE_DIR is set to it. Works whatever
    TRITON_CACHE_DIR says later. Raises nothing: what is wrong with a directory is logged, and
    in `faults`.
    """
    from prewarm.serve import triton_seam

    overlay = Overlay(baked, writable)
    triton_seam.set_cache_manager(triton_seam.cache_manager_of(overlay))
    return overlay


@functools.cache
def _manager_of_environment() -> Any:
    """Return the cache manager for the directories that the environment names."""
    from prewarm.serve import triton_seam

    baked, writable = os.environ.get(settings.CACHE), os.environ.get(settings.OVERLAY)
    overlay = Overlay(Path(baked) if baked else None, Path(writable) if writable else None)
    return triton_seam.cache_manager_of(overlay)


def __getattr__(name: str) -> Any:
    # Triton takes the class by this name. It must derive from Triton's, which only then is there.
    if name == MANAGER.partition(":")[2]:
        return _manager_of_environment()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _own_directory() -> str:
    from prewarm.serve import triton_seam

    return triton_seam.own_directory()


def _is_record(data: bytes) -> bool:
    from prewarm.serve import triton_seam

    return triton_seam.is_autotune_record(data)


def _user_directory() -> str:
    """Return where this user's caches go; a user without a home keeps the `~`."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(caches, "prewarm", "overlay")


def _make_writable(directory: str) -> None:
    """Make `directory` where it is not; raises OSError where it cannot be written."""
    if not os.path.isabs(directory):
        raise OSError(None, "this user has no home directory")
    os.makedirs(directory, exist_ok=True)
    if not os.access(directory, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _remove(directory: str, pid: int) -> None:
    """Remove what process `pid` made; its forks leave it alone."""
    if os.getpid() == pid:
        shutil.rmtree(directory, ignore_errors=True)
