"""Environment variables that were read while tracing, as far as a manifest may hold them."""

from __future__ import annotations

import os
import re

_SUBJECTS = re.compile(r"(VLLM|TRITON|FLA|GDN|FLASHINFER|TORCHINDUCTOR|TORCH|CUDA|PTXAS)_")
_PRIVATE = re.compile(r"KEY|TOKEN|SECRET|PASS|CRED|HOST|PORT|_IP$|URL|DIR|ROOT|PATH|CACHE_DIR|HOME")


class Watch:
    """Notes which variables this process reads; `found` are those that a manifest names.

    Variables of other subjects, secrets, addresses and paths of the machine are never kept.
    """

    def __init__(self) -> None:
        self._given = dict(os.environ)
        self._read: set[str] = set()
        environ = type(os.environ)
        getitem = environ.__getitem__

        def noting(mapping: os._Environ[str], name: str) -> str:
            self._read.add(name)
            return getitem(mapping, name)

        environ.__getitem__ = noting  # type: ignore[method-assign, assignment]

    @property
    def found(self) -> dict[str, str]:
        """Variables that were set when the process started and read since, with their values."""
        return {
            name: self._given[name]
            for name in sorted(self._read & self._given.keys())
            if _SUBJECTS.match(name) and not _PRIVATE.search(name) and "/" not in self._given[name]
        }
