"""Objects under the digest of all that they are made of, so that none is made twice."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from prewarm.core.digest import canonical_json, digest_of
from prewarm.core.errors import CompileError
from prewarm.core.files import host_errors

_LAST_LINES = 12


def object_file(
    directory: Path, source: Path, command: Sequence[str], versions: Sequence[str]
) -> Path:
    """Return where the object of `source` by `command` is kept in `directory`.

    `versions` are those of the compiler and of the packages whose headers it reads.
    """
    identity = digest_of(
        canonical_json([source.read_text("utf-8"), [*command], [*versions], os.uname().machine])
    )
    return directory / f"{source.stem}-{identity.removeprefix('sha256:')[:24]}.o"


def make_object(file: Path, source: Path, command: Sequence[str]) -> None:
    """Compile `source` into `file`, whole or not at all; raises CompileError."""
    run_whole([*command, "-c", str(source)], file, source.stem)


def run_whole(command: Sequence[str], file: Path, what: str) -> None:
    """Run `command -o FILE`; `file` is there whole afterwards, or CompileError is raised."""
    with host_errors(f"write {file}"):
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_name(f".{os.getpid()}-{file.name}")
        try:
            done = subprocess.run(
                [*command, "-o", str(draft)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                check=False,
            )
            if done.returncode:
                raise CompileError(f"{what}: {_last_words(done.returncode, done.stdout)}")
            os.replace(draft, file)
        finally:
            draft.unlink(missing_ok=True)


def _last_words(code: int, said: str) -> str:
    lines = said.strip().splitlines()[-_LAST_LINES:]
    if "Killed" in said or code < 0:
        lines.append("the compiler was killed: was the machine out of memory? try fewer jobs: -j 1")
    return "\n".join(lines) or f"the compiler ended with {code}"
