"""Every private name of FlashInfer that the plugin uses: how it takes a library, and its builds."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

_SETTLES_DIRECTORIES = "flashinfer.jit.env"


class Taken(NamedTuple):
    """A library that FlashInfer took into this process."""

    module: str
    prebuilt: bool
    """Whether it was there; otherwise ninja and nvcc were asked to build it."""
    seconds: float


def has_settled() -> bool:
    """Return whether FlashInfer has looked for prebuilt libraries in this process already."""
    return _SETTLES_DIRECTORIES in sys.modules


def hear_libraries(hear: Callable[[Taken], None]) -> None:
    """Call `hear` after each library that FlashInfer takes from now on; imports FlashInfer.

    In place of whoever heard them before: a process may load more than one model. Nothing is
    heard where FlashInfer is not installed.
    """
    if find_spec("flashinfer") is None:
        return
    from flashinfer.jit.core import JitSpec

    theirs = getattr(JitSpec.build_and_load, "__wrapped__", JitSpec.build_and_load)

    @functools.wraps(theirs)
    def build_and_load(spec: Any, *arguments: Any, **keywords: Any) -> Any:
        prebuilt, began = spec.is_aot, time.monotonic()
        library = theirs(spec, *arguments, **keywords)
        hear(Taken(module=spec.name, prebuilt=prebuilt, seconds=time.monotonic() - began))
        return library

    JitSpec.build_and_load = build_and_load
