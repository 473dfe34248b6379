"""A process of its own for a patched world: started, listened to, and never left behind.

It is asked on its standard input, once or a line at a time, and answers with one JSON document a
line through a pipe, so that whatever else it prints is nobody's answer.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from prewarm.core import errors
from prewarm.core.errors import PrewarmError
from prewarm.core.record import Record

_PR_SET_PDEATHSIG = 1
_LAST_WORDS = 8000


class Refusal(Record, kw_only=True, tag="refusal"):
    """The PrewarmError that ended the process."""

    kind: str
    message: str
    hint: str | None

    @classmethod
    def of(cls, error: PrewarmError) -> Refusal:
        """Return the message that carries `error`."""
        return cls(kind=type(error).__name__, message=error.message, hint=error.hint)

    def error(self) -> PrewarmError:
        """Return the error that this message carries."""
        kind: type[PrewarmError] = getattr(errors, self.kind)
        return kind(self.message, self.hint)


@dataclasses.dataclass(frozen=True)
class Child:
    """A running process."""

    answers: IO[bytes]
    """What it writes to its pipe; iterate it by lines."""
    process: subprocess.Popen[bytes]
    log: Path

    def ask(self, request: bytes) -> None:
        """Send it one more line, where it was started without a request.

        A process that is gone hears nothing; its answers then end.
        """
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(request + b"\n")
            self.process.stdin.flush()

    def wait(self) -> int:
        """Return its exit status; minus the signal that ended it."""
        return self.process.wait()

    def last_words(self) -> str:
        """Return the end of what it printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-_LAST_WORDS:]


@contextlib.contextmanager
def child(module: str, request: bytes | None) -> Iterator[Child]:
    """Yield a process that runs `module` with `request` on its standard input.

    Without one the process is asked later, as often as one likes: `Child.ask`.

    The process, its own children and its temporary files are gone when the block is left,
    however it is left. `module` calls `answers_to_parent` first.
    """
    root = str(Path(__file__).parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    read, write = os.pipe()
    with (
        os.fdopen(read, "rb") as answers,
        tempfile.TemporaryDirectory(prefix="prewarm-") as scratch,
    ):
        asked, log = Path(scratch, "request.json"), Path(scratch, "output.log")
        asked.write_bytes(request or b"")
        with asked.open("rb") as stdin, log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(os.getpid()), str(write)],
                stdin=subprocess.PIPE if request is None else stdin,
                stdout=output,
                stderr=output,
                env={
                    **os.environ,
                    "PREWARM": "0",  # our own vLLM plugin has nothing to look after there
                    "PYTHONPATH": os.pathsep.join(paths),
                    "TMPDIR": scratch,
                },
                pass_fds=(write,),
                start_new_session=True,
            )
        os.close(write)
        try:
            yield Child(answers, process, log)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if process.stdin is not None:
                process.stdin.close()


def answers_to_parent() -> IO[bytes]:
    """Return the pipe to the parent, which this process from now on dies with."""
    parent, descriptor = int(sys.argv[1]), int(sys.argv[2])
    die_with_parent(parent)
    return os.fdopen(descriptor, "wb", buffering=0)


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process when its parent, process `parent`, is gone."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
