"""Files that are whole or absent, and paths that stay under their root."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from prewarm.core.errors import HostError, IntegrityError


def host_error(error: OSError, doing: str) -> HostError:
    """Return the HostError that tells a user what `error` means for what was being done."""
    hints = {
        errno.ENOSPC: "free some space on that file system, then run the same command again",
        errno.EDQUOT: "free some of the quota, then run the same command again",
        errno.EACCES: "run as a user who may write there, or choose another directory",
        errno.EPERM: "run as a user who may write there, or choose another directory",
        errno.EROFS: "choose a directory on a writable file system",
        errno.EBUSY: "run the same command again when nothing else uses that directory",
        errno.ENOTEMPTY: "run the same command again when nothing else uses that directory",
        errno.ESTALE: "mount that file system again, then run the same command again",
        errno.EXDEV: "choose a directory that lies whole on one file system",
        errno.EIO: "see what the kernel says of that file system, or choose another directory",
    }
    hint = hints.get(error.errno or 0)
    return HostError(f"cannot {doing}: {error.strerror or error}", hint)


@contextlib.contextmanager
def host_errors(doing: str) -> Iterator[None]:
    """Turn an OSError inside the block into the HostError of `doing`."""
    try:
        yield
    except OSError as error:
        raise host_error(error, doing) from error


def write_atomic(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write `data` at `path`: whole, synced and renamed into place.

    Raises HostError, and then leaves what was at `path` before.
    """
    with host_errors(f"write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:64]}.")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(temporary, mode)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


def relative_path(name: str, where: str) -> PurePosixPath:
    """Return `name` as a relative POSIX path that cannot leave the root it is joined to.

    Raises IntegrityError for an absolute path, a `..`, an empty part, a NUL or a backslash.
    """
    parts = name.split("/")
    if not name or "\0" in name or "\\" in name or any(part in ("", ".", "..") for part in parts):
        raise IntegrityError(f"{where}: the path {name!r} leaves its root or is not a plain path")
    return PurePosixPath(name)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file at `path`, waiting for whoever holds it."""
    with host_errors(f"lock {path}"):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o664)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
