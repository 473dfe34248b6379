"""YAML that is made for review: block style above, one line for each thing that is compared."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from prewarm.core.record import Record


class Layout(Record, kw_only=True):
    """What stays on one line whatever it holds, by the field's name."""

    whole: frozenset[str] = frozenset()
    """Fields."""
    whole_items: frozenset[str] = frozenset()
    """Collections: each of their items."""


class _Dumper(yaml.SafeDumper):
    """Plain scalars, no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def yaml_text(header: str, plain: dict[str, Any], layout: Layout) -> str:
    """Return `header` and the YAML of `plain`, the same bytes for the same content in one order."""
    return header + "\n".join(_lines(plain, layout, "", whole_items=False)) + "\n"


def _flow(value: object) -> str:
    if isinstance(value, tuple):
        value = list(value)
    text = yaml.dump(
        value,
        Dumper=_Dumper,
        default_flow_style=True,
        width=2**30,
        sort_keys=False,
        allow_unicode=True,
    )
    return text.removesuffix("\n").removesuffix("\n...")


def _is_flat(value: object) -> bool:
    items = value.values() if isinstance(value, dict) else value
    return not any(isinstance(item, dict | list | tuple) for item in items)  # type: ignore[attr-defined]


def _lines(value: Any, layout: Layout, indent: str, *, whole_items: bool) -> Iterator[str]:
    """Yield the block lines of a non-empty dict or sequence, its flat items in flow style."""
    pairs = value.items() if isinstance(value, dict) else [(None, item) for item in value]
    for key, item in pairs:
        lead = f"{indent}- " if key is None else f"{indent}{_flow(key)}:"
        is_scalar = not isinstance(item, dict | list | tuple)
        is_whole = whole_items or key in layout.whole
        is_top_level = indent == "" and isinstance(item, dict)
        if is_scalar or not item or is_whole or (_is_flat(item) and not is_top_level):
            yield f"{lead}{'' if key is None else ' '}{_flow(item)}"
        elif key is None:
            first, *rest = _lines(item, layout, indent + "  ", whole_items=False)
            yield lead + first.lstrip()
            yield from rest
        else:
            yield lead
            deeper = indent + "  " if isinstance(item, dict) else indent
            yield from _lines(item, layout, deeper, whole_items=key in layout.whole_items)
