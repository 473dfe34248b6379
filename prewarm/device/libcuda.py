"""A stub of the CUDA driver library: CUDA builds of torch, vLLM and Triton load anywhere."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

from prewarm.core.errors import HostError
from prewarm.device.shared_library import shared_library

SONAME = "libcuda.so.1"


def stub_directory() -> Path:
    """Return the directory that holds the stub `libcuda.so.1`, built on the first call.

    Raises HostError without a C compiler, or where the user's cache cannot be written.
    """
    return shared_library("libcuda_stub.c", SONAME, "the stub of the CUDA driver").parent


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
