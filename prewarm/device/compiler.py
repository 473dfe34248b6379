"""The C compiler of this machine, as Triton would choose it."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from prewarm.core.errors import HostError

_INSTALL = "apt-get install gcc libc6-dev"


def c_compiler() -> str:
    """Return the C compiler that Triton would run: `CC`, else gcc, else clang.

    Raises HostError when there is none.
    """
    found = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if found is None:
        raise HostError("no C compiler on PATH: prewarm builds small host libraries", _INSTALL)
    return found


def run_compiler(arguments: Sequence[str], building: str, directory: Path) -> None:
    """Run the C compiler with `arguments` in `directory`; `building` names the product.

    Raises HostError with the compiler's own last words when it fails.
    """
    command = [c_compiler(), *arguments]
    try:
        done = subprocess.run(
            command, cwd=directory, capture_output=True, text=True, errors="replace", check=False
        )
    except OSError as error:
        raise HostError(f"cannot run {command[0]}: {error.strerror}", _INSTALL) from error
    if done.returncode:
        last = "\n".join(done.stderr.strip().splitlines()[-8:])
        missing_python = "Python.h" in done.stderr
        raise HostError(
            f"cannot build {building}:\n{last}\nthe command was: {shlex.join(command)}",
            "apt-get install python3-dev" if missing_python else _INSTALL,
        )
