"""Documents on disk: strict YAML and JSON to and from records, errors with the field's path."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from prewarm.core.errors import InputError
from prewarm.core.files import write_atomic
from prewarm.core.yaml_bounds import check_bounds

T = TypeVar("T")


class _StrictLoader(yaml.CSafeLoader if hasattr(yaml, "CSafeLoader") else yaml.SafeLoader):  # type: ignore[misc]
    """YAML in which a key stands once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(
                    None, None, "a list or a mapping is no key", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return mapping


def read_text(path: Path, what: str) -> str:
    """Return the text of the file at `path`; `what` names it in the error.

    Raises InputError when it is not there, not readable or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"cannot read {what} {path}: {reason}") from error


def parse_yaml(text: str, kind: type[T], schema: str, where: str) -> T:
    """Return the record of type `kind` that the YAML `text` holds.

    Raises InputError with line or field when the text is not YAML, is of another
    schema, or holds a field that is missing, unknown or of another type.
    """
    return convert(load_yaml(text, where), kind, schema, where)


def load_yaml(text: str, where: str) -> object:
    """Return the plain data in the YAML `text`; raises InputError with the line."""
    try:
        check_bounds(yaml.parse(text, Loader=_StrictLoader), where)
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 (a subclass of the safe loader)
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise InputError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from error


def convert(plain: object, kind: type[T], schema: str, where: str) -> T:
    """Return `plain` data as a record of type `kind`; raises InputError naming the field."""
    found = plain.get("schema") if isinstance(plain, dict) else None
    if found != schema:
        raise InputError(f"{where}: expected a document of schema {schema}, found {found!r}")
    try:
        return msgspec.convert(plain, kind)
    except msgspec.ValidationError as error:
        raise InputError(f"{where}: {error}") from error


def parse_json(data: bytes, kind: type[T], schema: str, where: str) -> T:
    """Return the record of type `kind` that the JSON `data` holds; raises InputError."""
    try:
        plain = msgspec.json.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise InputError(f"{where} is not valid JSON: {error}") from error
    return convert(plain, kind, schema, where)


def write_text(path: Path, text: str) -> None:
    """Write `text` at `path` so that a reader sees the old file or the new one, never a part."""
    write_atomic(path, text.encode("utf-8"))
