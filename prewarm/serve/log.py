"""The plugin's lines in vLLM's log, and how a fault of its own stays one line there."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

LOG = logging.getLogger("vllm.prewarm")
"""A child of vLLM's logger, so that its lines appear where vLLM's do."""

_SAID: set[str] = set()


@contextlib.contextmanager
def feature(name: str) -> Iterator[None]:
    """Let serving go on without the feature `name` where the block fails; say so once."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  (the plugin must not break what it looks at)
        say_once(f"{name} is off: {type(error).__name__}: {error}")


def say_once(text: str) -> None:
    """Write `text` as a warning, unless this process has said it before."""
    if text not in _SAID:
        _SAID.add(text)
        LOG.warning("prewarm: %s", text)
