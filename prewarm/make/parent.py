"""Starting the process that plays the target, listening to it, and leaving nothing of it behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import prewarm
from prewarm.core.errors import CompileError
from prewarm.make.message import Job, Message, Refusal, decode_message, encode

_TAIL = 3000


def run_job(job: Job) -> Iterator[Message]:
    """Yield the messages of a process that plays the target of `job` and does it.

    The process, its workers and its temporary files are gone when this ends, however it
    ends. Raises the PrewarmError that ended the process, or CompileError with its last
    words when it died.
    """
    with tempfile.TemporaryDirectory(prefix="prewarm-") as scratch:
        log = Path(scratch, "output.log")
        with _process(job, Path(scratch), log) as (process, stream):
            for line in stream:
                message = decode_message(line)
                if isinstance(message, Refusal):
                    raise message.error()
                yield message
            code = process.wait()
        if code:
            words = log.read_text(encoding="utf-8", errors="replace")[-_TAIL:]
            raise CompileError(f"the process that plays the target ended with {code}:\n{words}")


@contextlib.contextmanager
def _process(
    job: Job, scratch: Path, log: Path
) -> Iterator[tuple[subprocess.Popen[bytes], Iterator[bytes]]]:
    read, write = os.pipe()
    root = str(Path(prewarm.__file__).parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "TMPDIR": str(scratch), "PYTHONPATH": os.pathsep.join(paths)}
    with (
        log.open("wb") as output,
        Path(scratch, "job.json").open("w+b") as asked,
        os.fdopen(read, "rb") as stream,
    ):
        asked.write(encode(job))
        asked.seek(0)
        command = [sys.executable, "-P", "-m", "prewarm.make.child", str(os.getpid()), str(write)]
        process = subprocess.Popen(
            command,
            stdin=asked,
            stdout=output,
            stderr=output,
            env=environment,
            pass_fds=(write,),
            start_new_session=True,
        )
        os.close(write)
        try:
            yield process, stream
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
