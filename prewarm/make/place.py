"""Does the process that serves look into the directory of a cache, and may it add to it?"""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

from prewarm.core.finding import OTHER_DIRECTORY, READ_ONLY, Finding
from prewarm.core.toolchain import UNSET

OVERLAY = "prewarm.serve.overlay:"
"""Begins the name of the cache manager that reads an installed cache before Triton's directory."""
_PLUGIN = "PREWARM_CACHE={} where prewarm is installed beside vLLM"


def not_read(entries: Path, directory: str | None, overlaid: Path | None) -> Iterator[Finding]:
    """Yield a finding where serving looks for entries in another directory than `entries`.

    `directory` is what TRITON_CACHE_DIR comes to once vLLM has set up its compiler, None where
    nobody names one; `overlaid` the installed cache that prewarm's overlay reads before it.
    """
    if overlaid is not None:
        if not same(overlaid, entries):
            yield _elsewhere("PREWARM_CACHE", entries, str(overlaid), f"PREWARM_CACHE={entries}")
    elif directory is None:
        found = f"{UNSET}: Triton's own directory, or the one that Inductor names"
        yield _elsewhere("TRITON_CACHE_DIR", entries, found, f"export TRITON_CACHE_DIR={entries}")
    elif not same(Path(directory), entries):
        yield _named(entries, directory)


def _named(entries: Path, directory: str) -> Finding:
    given = os.environ.get("TRITON_CACHE_DIR")
    if given and same(Path(given), entries):
        found = f"{directory}, to which vLLM's compiler moves it"
        fix = f"unset VLLM_USE_STANDALONE_COMPILE; or {_PLUGIN.format(entries)}"
        return _elsewhere("TRITON_CACHE_DIR", entries, found, fix)
    return _elsewhere("TRITON_CACHE_DIR", entries, directory, f"export TRITON_CACHE_DIR={entries}")


def _elsewhere(subject: str, entries: Path, found: str, fix: str) -> Finding:
    return Finding(
        code=OTHER_DIRECTORY, subject=subject, expected=str(entries), found=found, fix=fix
    )


def same(one: Path, other: Path) -> bool:
    """Return whether two paths lead to one place."""
    return os.path.realpath(one) == os.path.realpath(other)


def not_writable(entries: Path, *, writes: bool) -> Iterator[Finding]:
    """Yield a finding where this user cannot add to `entries`.

    A note, unless serving `writes`, which then raises at the first launch that is no hit.
    """
    if os.access(entries, os.W_OK | os.X_OK, effective_ids=True):
        return
    yield Finding(
        code=READ_ONLY,
        subject=str(entries),
        expected=f"a directory that {user(os.geteuid())} may write",
        found=described(entries),
        fix=f"{_PLUGIN.format(entries)}: its overlay keeps what is compiled elsewhere; or"
        f" prewarm install as {user(os.geteuid())}",
        note=not writes,
    )


def described(entries: Path) -> str:
    """Return whose directory it is, with its mode, and whether its file system is read-only."""
    about = os.stat(entries)
    mounted = ", on a read-only file system" * bool(os.statvfs(entries).f_flag & os.ST_RDONLY)
    return f"one of {user(about.st_uid)}, mode {stat.S_IMODE(about.st_mode):o}{mounted}"


def user(number: int) -> str:
    """Return a user by number, and by name where there is one."""
    try:
        return f"{pwd.getpwuid(number).pw_name} (uid {number})"
    except KeyError:
        return f"uid {number}"
