"""Captured steps in a file, so that they can be captured where there is no GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from prewarm.core.capture import SCHEMA, Capture
from prewarm.core.document import parse_json
from prewarm.core.errors import InputError
from prewarm.core.files import host_errors, write_atomic
from prewarm.core.manifest import Manifest
from prewarm.core.tunings import Size


def write_capture(path: Path, capture: Capture) -> None:
    """Write `capture` at `path` as JSON, whole or not at all; raises HostError."""
    document = {"schema": capture.schema, **msgspec.to_builtins(capture)}
    with host_errors(f"write the captured steps {path}"):
        write_atomic(path, msgspec.json.encode(document))


def read_capture(path: Path) -> Capture:
    """Return the captured steps in the file at `path`; raises InputError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the captured steps {path}: {error.strerror}") from error
    return parse_json(data, Capture, SCHEMA, str(path))


def check_capture(capture: Capture, manifest: Manifest, sizes: Sequence[Size], where: str) -> None:
    """Raise InputError where `capture` is not of `manifest` at `sizes`; `where` names its file."""
    hint = f"rm {where}, and let prewarm tune capture it again"
    if capture.manifest != manifest.digest:
        raise InputError(f"{where} was captured for the manifest {capture.manifest}", hint)
    sizes_held = (step.asked or step for step in capture.steps)
    held = [(size.tokens, size.sequences) for size in sizes_held]
    wanted = [(size.tokens, size.sequences) for size in sizes]
    if held != wanted:
        text = ", ".join(f"{tokens}x{sequences}" for tokens, sequences in held)
        raise InputError(f"{where} holds other sizes: {text}", hint)
