"""The matrix as YAML: written by hand, read strictly."""

from __future__ import annotations

from pathlib import Path

from prewarm.core.document import parse_yaml, read_text
from prewarm.core.matrix import SCHEMA, Matrix, Wanted, deployments_of


def parse_matrix(text: str, where: str) -> tuple[Wanted, ...]:
    """Return the deployments of the matrix in the YAML `text`, in the order of their names.

    Raises InputError naming line or field.
    """
    return deployments_of(parse_yaml(text, Matrix, SCHEMA, where), where)


def read_matrix(path: Path) -> tuple[Wanted, ...]:
    """Return the deployments of the matrix in the file at `path`; raises InputError."""
    return parse_matrix(read_text(path, "the matrix"), str(path))
