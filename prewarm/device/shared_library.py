"""Small C libraries of prewarm's own, built on this machine once and kept."""

from __future__ import annotations

import os
import platform
import tempfile
from importlib import resources
from pathlib import Path

from prewarm.core.digest import digest_of
from prewarm.core.files import host_errors, write_atomic
from prewarm.device.compiler import run_compiler

_FLAGS = ("-shared", "-fPIC", "-O1", "-w", "-Wl,--build-id=none", "-s")


def user_cache() -> Path:
    """Return prewarm's directory for files of this user that can be made again."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base, "prewarm")


def shared_library(source: str, soname: str, what: str, *more_flags: str) -> Path:
    """Return the library `soname`, made of the C file `source` beside this module.

    It is built on the first call; `what` names it in errors. Raises HostError without a C
    compiler, or where the user's cache cannot be written.
    """
    text = resources.files("prewarm.device").joinpath(source).read_bytes()
    flags = (*_FLAGS, f"-Wl,-soname,{soname}", *more_flags)
    identity = digest_of(b"\0".join([text, platform.machine().encode(), repr(flags).encode()]))
    name = f"{soname.partition('.')[0]}-{identity.removeprefix('sha256:')[:16]}"
    library = user_cache() / name / soname
    if not library.is_file():
        write_atomic(library, _build(text, source, flags, what), mode=0o755)
    return library


def _build(text: bytes, source: str, flags: tuple[str, ...], what: str) -> bytes:
    with host_errors(f"build {what}"), tempfile.TemporaryDirectory() as scratch:
        Path(scratch, source).write_bytes(text)
        library = Path(scratch, "made.so")
        run_compiler([*flags, "-o", library.name, source], what, Path(scratch))
        return library.read_bytes()
