"""The process that builds: `python -m prewarm.flashinfer.child PARENT FD`, a Job on its stdin.

FlashInfer settles directories and architectures while it is imported, so it is always a process
of its own.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from prewarm.core.child import Refusal, answers_to_parent
from prewarm.core.errors import PrewarmError
from prewarm.core.flashinfer import HOPPER
from prewarm.core.target import Target, target_named
from prewarm.flashinfer import flashinfer_seam
from prewarm.flashinfer.message import Job, Message, decode_job, encode
from prewarm.flashinfer.toolkit import Toolkit, find_toolkit


def main() -> int:
    """Do the job on stdin and write its messages, a line each, to the given descriptor."""
    with answers_to_parent() as stream:
        job = decode_job(sys.stdin.buffer.read())
        try:
            for message in _messages(job):
                stream.write(encode(message) + b"\n")
        except PrewarmError as error:
            stream.write(encode(Refusal.of(error)) + b"\n")
    return 0


def _messages(job: Job) -> Iterator[Message]:
    from prewarm.flashinfer import blackwell, hopper

    target = target_named(job.target)
    work = Path(tempfile.mkdtemp(prefix="flashinfer-"))
    if job.module == HOPPER:
        toolkit = find_toolkit(hopper.torch_cuda())
        _set_environment(work, target, toolkit)
        yield from hopper.build(job, target, toolkit, work)
    else:
        _set_environment(work, target, None)
        yield from blackwell.build(job, target, work)


def _set_environment(work: Path, target: Target, toolkit: Toolkit | None) -> None:
    major, minor = target.capability
    home = toolkit.home if toolkit else None
    for name, value in flashinfer_seam.environment(work, f"{major}.{minor}a", home).items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


if __name__ == "__main__":
    sys.exit(main())
