"""Install: a cache image becomes a directory that Triton finds its kernels in.

Whatever happens on the way (a kill, a full disk, a second installer), the directory serves
what it served before or the new cache whole: files go to a stage beside the versions, the
stage becomes a version in one rename, and the link that Triton follows changes in one more.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from prewarm.core.cache import ENTRIES, FLASHINFER, FLASHINFER_PYTHON
from prewarm.core.errors import HostError, InputError, MismatchError
from prewarm.core.files import host_errors, locked
from prewarm.core.finding import UNKNOWN
from prewarm.core.record import Record
from prewarm.core.toolchain import Toolchain
from prewarm.ship.host import check_host, decision
from prewarm.ship.receipt import (
    BESIDE,
    LINK,
    LOCK,
    RECEIPT,
    VERSIONS,
    Receipt,
    current_version,
    is_installed,
    read_receipt,
    render_receipt,
)
from prewarm.ship.source import Source, open_source
from prewarm.ship.tree import rooted
from prewarm.ship.verify import verify_directory

_DIRECTORY, _FILE = 0o775, 0o664
"""Modes with which a serving process in the same group can store what it has to compile."""

_MOUNT_POINT = {"lost+found"}
"""What a directory may hold that is empty to its owner."""

_NOTHING = "0" * 16
"""The version that holds no entries."""


class Installed(Record, kw_only=True):
    """What an install did."""

    state: Literal["installed", "already installed", "does not fit"]
    identity: str
    directory: str
    """What TRITON_CACHE_DIR must name. Where nothing fits it may not exist."""
    python: str | None = None
    """What PYTHONPATH must begin with; None where the cache has nothing of FlashInfer."""
    toolchain: Toolchain
    tuned: bool
    launches: int
    decision: tuple[str, ...]
    """What was held against this host, a line each."""


def install(
    source: Path, into: Path, *, on_mismatch: Literal["fail", "warn"] = "fail"
) -> Installed:
    """Install the cache in the layout or mounted image `source` into the directory `into`.

    Writes nothing where the same cache is there already and sound. A cache for another CPU
    raises MismatchError, or with `on_mismatch="warn"` nothing is installed and the result says
    so. Raises InputError where `into` holds something else, IntegrityError where `source` is
    not sound or a link in `into` leads elsewhere, and HostError where `into` cannot be written;
    then `into` serves what it served before.
    """
    cache = open_source(source)
    directory = _absolute(into)
    trace = decision(cache.manifest.toolchain, cache.manifest.target_arch)
    for finding in check_host(cache.manifest.toolchain):
        if on_mismatch == "warn":
            return _result("does not fit", cache, directory, trace)
        raise MismatchError("\n  ".join([str(finding), *trace]), finding.fix)
    with host_errors(f"install into {directory}"):
        _refuse_foreign(directory)
        if cache.manifest.host_modules or cache.manifest.flashinfer:
            _refuse_noexec(directory)
        directory.mkdir(parents=True, exist_ok=True)
        with locked(directory / LOCK):
            return _result(_install(cache, directory), cache, directory, trace)


def serve_nothing(into: Path) -> None:
    """Make the directory `into` one that serves an empty cache, unless it serves one already.

    Triton would otherwise make a directory where the next install puts its link. Raises
    InputError where `into` holds something else, IntegrityError where a link in it leads
    elsewhere, and HostError where it cannot be written.
    """
    directory = _absolute(into)
    with host_errors(f"write {directory}"):
        _refuse_foreign(directory)
        directory.mkdir(parents=True, exist_ok=True)
        with locked(directory / LOCK):
            if current_version(directory) is not None:
                return
            versions = directory / VERSIONS
            for path in (versions, versions / _NOTHING, versions / _NOTHING / ENTRIES):
                _make_directory(path)
            _link(directory, LINK, f"{VERSIONS}/{_NOTHING}/{ENTRIES}")


def _install(cache: Source, directory: Path) -> Literal["installed", "already installed"]:
    """Bring `directory` to `cache`; called by the one who holds the lock."""
    current = current_version(directory)
    versions = directory / VERSIONS
    _make_directory(versions)
    if current is not None and _serves(directory, current, cache.identity):
        _prune(versions, current)
        return "already installed"
    _prune(versions, current)
    name = _free_name(versions, cache.identity)
    root = f"{directory}/{LINK}"
    receipt = Receipt(identity=cache.identity, root=root, image=cache.image)
    with _stage(versions) as stage:
        _write_tree(stage, rooted(cache.files, root))
        _write(f"{stage}/{RECEIPT}", render_receipt(receipt))
        _sync(stage)
        os.rename(stage, versions / name)
    if cache.manifest.flashinfer is not None:
        _link(directory, FLASHINFER, BESIDE)
    _link(directory, LINK, f"{VERSIONS}/{name}/{ENTRIES}")
    _prune(versions, name)
    return "installed"


def _absolute(into: Path) -> Path:
    # Not `resolve`: group files must hold the path by which the serving process will come.
    directory = os.path.abspath(into)
    try:
        directory.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"the name of {directory!r} is not UTF-8") from error
    return Path(directory)


def _refuse_foreign(directory: Path) -> None:
    """Raise InputError where `directory` holds what no install put there."""
    if not os.path.lexists(directory):
        return
    if not directory.is_dir():
        raise InputError(f"{directory} is not a directory", "choose another one with --into")
    foreign = sorted(set(os.listdir(directory)) - _MOUNT_POINT)
    # Asked last: another installer may have begun in the meantime, and begins with the lock.
    if foreign and not is_installed(directory):
        raise InputError(
            f"{directory} is not empty and not from `prewarm install`: it holds {foreign[0]!r}",
            "choose an empty or new directory with --into",
        )


def _refuse_noexec(directory: Path) -> None:
    """Raise HostError where no host module could be loaded from `directory`, made or to be made."""
    there = next(path for path in (directory, *directory.parents) if os.path.lexists(path))
    if os.statvfs(there).f_flag & os.ST_NOEXEC:
        raise HostError(
            f"cannot install into {directory}: its file system is mounted noexec, and Triton could"
            " not load host modules from there",
            "mount it without noexec, or choose another directory with --into",
        )


def _serves(directory: Path, version: str, identity: str) -> bool:
    """Return whether `directory` serves the cache `identity`, sound.

    All of it is read again: after a power cut, files may be shorter than their receipt says.
    """
    receipt = read_receipt(directory / VERSIONS / version)
    if receipt is None or (receipt.identity, receipt.root) != (identity, f"{directory}/{LINK}"):
        return False
    return all(finding.code == UNKNOWN for finding in verify_directory(directory))


def _free_name(versions: Path, identity: str) -> str:
    """Return a name for a version of `identity` that no other version has.

    A damaged version keeps its name until the link has left it.
    """
    plain = identity.partition(":")[2][:16]
    names = itertools.chain([plain], (f"{plain}-{number}" for number in itertools.count(2)))
    return next(name for name in names if not os.path.lexists(versions / name))


@contextlib.contextmanager
def _stage(versions: Path) -> Iterator[str]:
    """Yield a new directory below `versions` that is gone afterwards, unless it was renamed."""
    stage = tempfile.mkdtemp(prefix=".stage-", dir=versions)
    try:
        _open_to_group(stage)
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _write_tree(stage: str, files: Mapping[str, bytes]) -> None:
    made = {""}
    for path in sorted(files):
        above = path.rpartition("/")[0]
        if above not in made:
            parts = above.split("/")
            for depth in range(1, len(parts) + 1):
                parent = "/".join(parts[:depth])
                if parent not in made:
                    os.mkdir(f"{stage}/{parent}", _DIRECTORY)
                    _open_to_group(f"{stage}/{parent}")
                    made.add(parent)
        _write(f"{stage}/{path}", files[path])


def _write(path: str, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE)
    try:
        os.fchmod(handle, _FILE)
        left = memoryview(data)
        while left:
            left = left[os.write(handle, left) :]
    finally:
        os.close(handle)


def _make_directory(path: Path) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, _DIRECTORY)
        _open_to_group(path)


def _open_to_group(path: str | Path) -> None:
    # Bits are added, never set: a volume's set-group-ID bit must stay on what Triton adds to.
    os.chmod(path, os.stat(path).st_mode & 0o7777 | _DIRECTORY)


def _sync(stage: str) -> None:
    """Write the receipt through, so that a machine that goes down knows what it had."""
    for path in (f"{stage}/{RECEIPT}", stage):
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _link(directory: Path, name: str, target: str) -> None:
    """Make the link `name` of `directory` lead to `target`, from one moment to the next."""
    new = directory / VERSIONS / ".link"
    new.unlink(missing_ok=True)
    os.symlink(target, new)
    os.replace(new, directory / name)


def _prune(versions: Path, keep: str | None) -> None:
    """Remove stages of killed installs, and every version but the one called `keep`.

    What cannot be removed stays: NFS keeps the directory of a file that a process still serves
    from. It is in nobody's way, and the next install tries again.
    """
    for path in versions.iterdir():
        if path.name == keep:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


def _result(
    state: Literal["installed", "already installed", "does not fit"],
    cache: Source,
    directory: Path,
    trace: tuple[str, ...],
) -> Installed:
    return Installed(
        state=state,
        identity=cache.identity,
        directory=f"{directory}/{LINK}",
        python=f"{directory}/{FLASHINFER_PYTHON}" if cache.manifest.flashinfer else None,
        toolchain=cache.manifest.toolchain,
        tuned=cache.manifest.tuned,
        launches=len(cache.manifest.launches),
        decision=trace,
    )
