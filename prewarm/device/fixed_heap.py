"""A heap at fixed addresses, for programs whose output follows where their own objects lie.

ptxas 13.0 is one: of the same PTX it makes one of two cubins, equally good, by chance. With this
heap it makes the same one in every run, whatever the stack limit, and in containers that forbid
turning off address randomization. The lengths of its arguments still move later objects.
"""

from __future__ import annotations

import os
import sys
import tempfile

from prewarm.device.shared_library import shared_library

_SONAME = "libfixedheap.so"


def settle_heaps() -> None:
    """Give every program that this process starts from here on a heap at fixed addresses.

    It holds while this process lives. Raises HostError without a C compiler.
    """
    library = shared_library("fixed_heap.c", _SONAME, "the fixed heap", "-fno-builtin")
    # By descriptor: the loader takes a space in a path for the end of it.
    handle = os.open(library, os.O_RDONLY | os.O_CLOEXEC)
    names = [f"/proc/{os.getpid()}/fd/{handle}", *filter(None, [os.environ.get("LD_PRELOAD")])]
    os.environ["LD_PRELOAD"] = os.pathsep.join(names)


def settle_temporary_names() -> None:
    """Let this process give temporary files names of one length, wherever TMPDIR is.

    Afterwards the working directory is the temporary one, here and in what is started here.
    """
    sys.path[:] = map(os.path.abspath, sys.path)
    os.chdir(tempfile.gettempdir())
    tempfile.tempdir = "/proc/self/cwd"
