"""Asking a process that runs vLLM, and hearing what it tries meanwhile."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from typing import TypeVar

import msgspec

from prewarm.core.child import Child, Refusal, child
from prewarm.core.errors import HostError, UnsupportedError
from prewarm.core.record import Record

_CHILD = "prewarm.trace.child"


class Progress(Record, kw_only=True, tag=True):
    """Something was tried."""

    text: str


class Ended(Record, kw_only=True, tag=True):
    """A process that was to answer ended without."""

    code: int
    """Its exit status; minus the signal that ended it."""


Answer = TypeVar("Answer", bound=Record)


def ask(
    request: Record,
    kind: type[Answer],
    progress: Callable[[str], object],
    *,
    module: str = _CHILD,
    doing: str = "tracing",
) -> Answer:
    """Return what the child process `module` answers to `request`, a record of `kind`.

    `doing` is what it does, for errors. Raises the PrewarmError that ended the child, HostError
    when it was killed, RuntimeError with what it said as a note when it died otherwise.
    """
    with child(module, msgspec.json.encode(request)) as process:
        return hear(process, kind, progress, doing)


def hear(
    process: Child, kind: type[Answer], progress: Callable[[str], object], doing: str = "tracing"
) -> Answer:
    """Return the next answer of `process`, a record of `kind`; raises what `ask` raises."""
    for line in process.answers:
        message: Record = msgspec.json.decode(line, type=Progress | Refusal | Ended | kind)
        match message:
            case Progress():
                progress(message.text)
            case Refusal():
                raise message.error()
            case Ended():
                raise _died(message.code, process.last_words(), doing)
            case _:
                assert isinstance(message, kind)
                return message
    raise _died(process.wait(), process.last_words(), doing)


_RAISED = re.compile(r"(?:\[rank0\]: )?([A-Za-z_.]+(?:Error|Exception)): (.*)")


def _died(code: int, said: str, doing: str) -> Exception:
    if code == -signal.SIGKILL:
        return HostError(
            f"the {doing} process was killed, most likely for want of memory",
            "give it 6 GiB of memory",
        )
    raised = [f"{name}: {what}" for name, what in _RAISED.findall(said)]
    operator = re.search(r"Could not run '([^']+)' with arguments from the 'CPU' backend", said)
    if operator:
        return UnsupportedError(
            f"this deployment calls {operator[1]}, which needs the GPU, before its GDN layers"
        )
    error = RuntimeError(raised[-1] if raised else f"the {doing} process ended with {code}")
    error.add_note(said)
    return error
