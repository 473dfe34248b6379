"""Whether a cache fits the machine it is installed on, as far as that can be told here."""

from __future__ import annotations

import platform
import sys

from prewarm.core.finding import HOST, Finding
from prewarm.core.toolchain import Toolchain


def check_host(toolchain: Toolchain) -> tuple[Finding, ...]:
    """Return a finding where the cache's host modules cannot be loaded on this CPU."""
    machine = platform.machine()
    if machine == toolchain.machine:
        return ()
    finding = Finding(
        code=HOST,
        subject="CPU architecture",
        expected=toolchain.machine,
        found=machine,
        fix=f"prewarm build --target TARGET -- ARGS, on a machine whose `uname -m` is {machine}",
    )
    return (finding,)


def decision(toolchain: Toolchain, arch: int) -> tuple[str, ...]:
    """Return, a line each, what was held against this host and what was not."""
    machine, abi = platform.machine(), f"cpython-{sys.version_info.major}{sys.version_info.minor}"
    fits = "fits" if machine == toolchain.machine else "does not fit"
    serving = "the serving process may have another interpreter than this one"
    return (
        f"CPU architecture: built for {toolchain.machine}, this host is {machine}: {fits}",
        f"Python ABI: built for {toolchain.python_abi}, here {abi}: not decisive, {serving}",
        f"GPU: built for sm_{arch}: not checked here, `prewarm verify` recomputes the keys",
    )
