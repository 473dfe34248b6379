"""Read a file that somebody else may have put there: no link, no fifo, no more than it may hold."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from prewarm.core.finding import ALTERED, MISSING, UNSAFE, Finding, UnsoundError

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def read_regular(path: Path, limit: int, name: str, fix: str) -> bytes:
    """Return the bytes of the regular file at `path`, of which it may have `limit`.

    Raises UnsoundError, about `name`, where there is none or it holds more.
    """

    def unsound(code: str, expected: str, found: str) -> UnsoundError:
        return UnsoundError(
            Finding(code=code, subject=name, expected=expected, found=found, fix=fix)
        )

    try:
        handle = os.open(path, _FLAGS)
    except FileNotFoundError as error:
        raise unsound(MISSING, "a file", "nothing") from error
    except OSError as error:
        raise unsound(UNSAFE, "a readable file", str(error.strerror)) from error
    with os.fdopen(handle, "rb") as stream:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise unsound(UNSAFE, "a regular file", "a special file")
        # It may grow while it is read; and of a sparse file nothing is read in vain.
        data = b"" if found.st_size > limit else stream.read(limit + 1)
    if max(found.st_size, len(data)) > limit:
        raise unsound(ALTERED, f"at most {limit} bytes", "more")
    return data
