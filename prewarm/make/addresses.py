"""Where programs lie in memory, which decides the bytes that some of them write.

ptxas 13.0 allots registers in an order that follows the addresses of its own objects: the same
PTX gives one of several equally good cubins, by chance, unless the addresses stay.
"""

from __future__ import annotations

import ctypes

_ADDR_NO_RANDOMIZE = 0x0040000
_ASK = 0xFFFFFFFF


def settle_addresses() -> bool:
    """Let every program that this process starts have the same addresses each time.

    Returns whether that could be done: a container's seccomp profile may forbid it.
    """
    personality = ctypes.CDLL(None).personality
    personality.argtypes = [ctypes.c_ulong]
    now = personality(_ASK)
    return now != -1 and personality(now | _ADDR_NO_RANDOMIZE) != -1
