"""A stub of the CUDA driver library: CUDA builds of torch, vLLM and Triton load anywhere."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import tempfile
from importlib import resources
from pathlib import Path

from prewarm.core.digest import digest_of
from prewarm.core.errors import HostError
from prewarm.core.files import host_errors, write_atomic
from prewarm.device.compiler import run_compiler

SONAME = "libcuda.so.1"
_FLAGS = ("-shared", "-fPIC", "-O1", "-w", f"-Wl,-soname,{SONAME}", "-Wl,--build-id=none", "-s")


def user_cache() -> Path:
    """Return prewarm's directory for files of this user that can be made again."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base, "prewarm")


def stub_directory() -> Path:
    """Return the directory that holds the stub `libcuda.so.1`, built on the first call.

    Raises HostError without a C compiler, or where the user's cache cannot be written.
    """
    source = resources.files("prewarm.device").joinpath("libcuda_stub.c").read_bytes()
    identity = digest_of(b"\0".join([source, platform.machine().encode(), repr(_FLAGS).encode()]))
    directory = user_cache() / f"libcuda-{identity.removeprefix('sha256:')[:16]}"
    library = directory / SONAME
    if not library.is_file():
        write_atomic(library, _build(source), mode=0o755)
    return directory


def _build(source: bytes) -> bytes:
    with host_errors("build the driver stub"), tempfile.TemporaryDirectory() as scratch:
        text, library = Path(scratch, "libcuda_stub.c"), Path(scratch, SONAME)
        text.write_bytes(source)
        arguments = [*_FLAGS, "-o", library.name, text.name]
        run_compiler(arguments, "the stub of the CUDA driver", Path(scratch))
        return library.read_bytes()


@functools.cache
def load_stub() -> Path:
    """Load the stub for the whole process, before torch or vLLM, and return its directory.

    Every later `libcuda.so.1` in this process is then this one, on a machine with a driver
    too: only a child process that plays a virtual GPU may call it. Raises HostError.
    """
    directory = stub_directory()
    try:
        ctypes.CDLL(str(directory / SONAME), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise HostError(
            f"cannot load {directory / SONAME}: {error}", f"rm -r {directory}"
        ) from error
    return directory
