"""The record in a directory that `prewarm compile --flashinfer` filled."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from prewarm.core.document import parse_json
from prewarm.core.errors import InputError
from prewarm.core.files import host_errors
from prewarm.core.flashinfer import RECORD_NAME, SCHEMA, BuiltModule


def read_built(directory: Path) -> BuiltModule:
    """Return the record in `directory`; raises InputError where there is none, HostError."""
    file = directory / RECORD_NAME
    with host_errors(f"read {file}"):
        try:
            data = file.read_bytes()
        except FileNotFoundError as error:
            raise InputError(
                f"{directory} holds no {RECORD_NAME}: nothing of FlashInfer was built there",
                f"prewarm compile MANIFEST --cache-dir CACHE --flashinfer {directory}",
            ) from error
    return parse_json(data, BuiltModule, SCHEMA, str(file))


def built_document(built: BuiltModule) -> str:
    """Return `built` as it stands in its file."""
    plain = {"schema": built.schema, **msgspec.to_builtins(built)}
    return json.dumps(plain, indent=1) + "\n"
