"""Asking the process that plays the target."""

from __future__ import annotations

from collections.abc import Iterator

from prewarm.core.child import Refusal, child
from prewarm.core.errors import CompileError
from prewarm.make.message import Job, Message, decode_message, encode


def run_job(job: Job) -> Iterator[Message]:
    """Yield the messages of a process that plays the target of `job` and does it.

    The process, its workers and its temporary files are gone when this ends, however it
    ends. Raises the PrewarmError that ended the process, or CompileError with its last
    words when it died.
    """
    with child("prewarm.make.child", encode(job)) as process:
        for line in process.answers:
            message = decode_message(line)
            if isinstance(message, Refusal):
                raise message.error()
            yield message
        code = process.wait()
        if code:
            words = process.last_words()
            raise CompileError(f"the process that plays the target ended with {code}:\n{words}")
