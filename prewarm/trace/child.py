"""The child process of `plan`: it becomes the target GPU, traces, and writes to its pipe."""

from __future__ import annotations

import gc
import os
import sys
from typing import IO

import msgspec

from prewarm.core.child import Refusal, answers_to_parent
from prewarm.core.errors import PrewarmError
from prewarm.device.libcuda import load_stub
from prewarm.trace.environment import Watch
from prewarm.trace.plan import Message, Planned, Progress, Request


def main() -> int:
    """Answer the request on standard input through the pipe named on the command line."""
    watch = Watch()
    with answers_to_parent() as pipe:
        request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
        try:
            answer: Message = _answer(request, watch, pipe)
        except PrewarmError as error:
            answer = Refusal.of(error)
        _send(pipe, answer)
    sys.stdout.flush()
    os._exit(0)  # vLLM's threads and queues have nothing left to say


def _answer(request: Request, watch: Watch, pipe: IO[bytes]) -> Planned:
    gc.disable()  # vLLM collects several times over a heap that lives to the end anyway
    gc.collect = lambda generation=2: 0  # type: ignore[assignment]
    load_stub()
    from prewarm.trace.become import become

    become(request.target)
    from prewarm.trace.trace import trace

    manifest = trace(request, watch, lambda text: _send(pipe, Progress(text=text)))
    return Planned(manifest=manifest)


def _send(pipe: IO[bytes], message: Message) -> None:
    pipe.write(msgspec.json.encode(message) + b"\n")


if __name__ == "__main__":
    main()
