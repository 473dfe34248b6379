"""How deep and how large a YAML text is, told before it is built: both may end the process."""

from __future__ import annotations

from collections.abc import Iterable

import yaml

from prewarm.core.errors import InputError

MOST_DEEP = 100
"""Collections within collections; the parser would use up the stack at some thousands."""
MOST_NODES = 1_000_000
"""Nodes when every alias is written out: a few lines of aliases can stand for billions."""


def check_bounds(events: Iterable[yaml.Event], where: str) -> None:
    """Raise InputError where the document of `events` is too deep or too large to be built."""
    extent = _Extent()
    for event in events:
        why = extent.add(event)
        if why is not None:
            at = "" if event.start_mark is None else f", at line {event.start_mark.line + 1}"
            raise InputError(f"{where} is not a document of prewarm's: {why}{at}")


class _Extent:
    """What has been read of a document so far."""

    def __init__(self) -> None:
        self._sizes = [0]
        self._anchors: list[str | None] = []
        self._known: dict[str | None, int] = {}

    def add(self, event: yaml.Event) -> str | None:
        """Take `event` in; return what is wrong with the document, None where nothing is yet."""
        if isinstance(event, yaml.CollectionStartEvent):
            self._sizes.append(1)
            self._anchors.append(event.anchor)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._ends(self._sizes.pop(), self._anchors.pop())
        elif isinstance(event, yaml.ScalarEvent):
            self._ends(1, event.anchor)
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in self._anchors:
                return f"*{event.anchor} stands within what it names"
            self._sizes[-1] += self._known.get(event.anchor, 1)
        if len(self._sizes) > MOST_DEEP:
            return f"more than {MOST_DEEP} levels"
        return f"more than {MOST_NODES} values" if self._sizes[-1] > MOST_NODES else None

    def _ends(self, size: int, anchor: str | None) -> None:
        if anchor is not None:
            self._known[anchor] = size
        self._sizes[-1] += size
