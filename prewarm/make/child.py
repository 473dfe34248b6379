"""The process that plays the target: `python -m prewarm.make.child PARENT FD`, a Job on its stdin.

Its world is patched (torch, Triton and the driver library answer for a GPU that is not there),
so it is always a process of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from prewarm.core.child import Refusal, answers_to_parent
from prewarm.core.errors import PrewarmError
from prewarm.core.target import target_named
from prewarm.device.libcuda import load_stub
from prewarm.device.planned import plan_environment, use_cache
from prewarm.make.message import Job, Message, decode_job, encode


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
    _set_environment(job)
    _set_stage(job)
    from prewarm.make import play

    plays = {
        "compile": play.compile_launches,
        "record": play.record_winners,
        "look_up": play.look_up_launches,
    }
    return plays[job.verb](job)


def _set_environment(job: Job) -> None:
    """Settle the environment before Triton reads it, which it does while it loads."""
    use_cache(job.cache_dir)
    if job.verb != "look_up":
        plan_environment(job.manifest.toolchain)


def _set_stage(job: Job) -> None:
    """Let the driver library and torch answer for the target, before vLLM asks them."""
    load_stub()
    from prewarm.device import virtual_torch

    virtual_torch.install(target_named(job.asked.deployment.target))


if __name__ == "__main__":
    sys.exit(main())
