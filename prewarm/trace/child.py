"""The child process of `plan` and `capture`: it becomes the target GPU and writes to its pipe."""

from __future__ import annotations

import gc
import os
import sys
from typing import IO

import msgspec

from prewarm.core.child import Refusal, answers_to_parent
from prewarm.core.errors import PrewarmError
from prewarm.core.record import Record
from prewarm.core.target import Target, target_named
from prewarm.device.libcuda import load_stub
from prewarm.device.planned import plan_environment
from prewarm.trace.capture import Captured, CaptureRequest
from prewarm.trace.environment import Watch
from prewarm.trace.parent import Progress
from prewarm.trace.plan import Request


def main() -> int:
    """Answer the request on standard input through the pipe named on the command line."""
    # Where prewarm is installed, vLLM would load its plugin: here nothing is served.
    os.environ["PREWARM"] = "0"
    watch = Watch()
    with answers_to_parent() as pipe:
        request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request | CaptureRequest)
        try:
            answer = _answer(request, watch, pipe)
        except PrewarmError as error:
            answer = Refusal.of(error)
        _send(pipe, answer)
    sys.stdout.flush()
    os._exit(0)  # vLLM's threads and queues have nothing left to say


def _answer(request: Request | CaptureRequest, watch: Watch, pipe: IO[bytes]) -> Record:
    def progress(text: str) -> None:
        _send(pipe, Progress(text=text))

    if isinstance(request, Request):
        _become(request.target)
        from prewarm.trace.trace import trace

        return trace(request, watch, progress)
    plan_environment(request.manifest.toolchain)
    _become(target_named(request.manifest.deployment.target))
    from prewarm.trace.steps import capture_steps

    return Captured(capture=capture_steps(request, progress))


def _become(target: Target) -> None:
    gc.disable()  # vLLM collects several times over a heap that lives to the end anyway
    gc.collect = lambda generation=2: 0  # type: ignore[assignment]
    load_stub()
    from prewarm.trace.become import become

    become(target)


def _send(pipe: IO[bytes], message: Record) -> None:
    pipe.write(msgspec.json.encode(message) + b"\n")


if __name__ == "__main__":
    main()
