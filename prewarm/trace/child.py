"""The child process of `plan`, `capture` and `check`: it becomes the GPU and writes to its pipe."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from importlib import metadata
from typing import IO

import msgspec

from prewarm.core.child import Refusal, answers_to_parent
from prewarm.core.errors import PrewarmError
from prewarm.core.record import Record
from prewarm.core.target import Target, target_named
from prewarm.device.libcuda import load_stub
from prewarm.device.planned import plan_environment
from prewarm.trace.capture import Captured, CaptureRequest
from prewarm.trace.check import StreamsRequest
from prewarm.trace.environment import Watch
from prewarm.trace.parent import Progress
from prewarm.trace.plan import Request

Asked = Request | CaptureRequest | StreamsRequest


def main() -> int:
    """Answer the request on standard input through the pipe named on the command line."""
    watch = leave_out_plugin()
    with answers_to_parent() as pipe:
        request = msgspec.json.decode(sys.stdin.buffer.read(), type=Asked)
        send(pipe, or_refusal(lambda: _answer(request, watch, pipe)))
    sys.stdout.flush()
    os._exit(0)  # vLLM's threads and queues have nothing left to say


def leave_out_plugin() -> Watch:
    """Watch the environment from here on, without our own plugin of vLLM: nothing is served."""
    os.environ["PREWARM"] = "0"
    return Watch()


def or_refusal(answer: Callable[[], Record]) -> Record:
    """Return what `answer` returns, or the refusal that carries why there is none."""
    try:
        return answer()
    except PrewarmError as error:
        return Refusal.of(error)
    except (ImportError, AttributeError) as error:
        return _refusal_of_release(error)


def _answer(request: Asked, watch: Watch, pipe: IO[bytes]) -> Record:
    def progress(text: str) -> None:
        send(pipe, Progress(text=text))

    if isinstance(request, Request):
        become_planner(request.target)
        return planned(request, watch, pipe)
    plan_environment(request.manifest.toolchain)
    _become(target_named(request.manifest.deployment.target))
    if isinstance(request, StreamsRequest):
        from prewarm.trace.stream_steps import drive_streams

        return drive_streams(request, progress)
    from prewarm.trace.steps import capture_steps

    return Captured(capture=capture_steps(request, progress))


def become_planner(target: Target) -> None:
    """Become `target`, with all of vLLM that every deployment needs; there is no way back."""
    _become(target)
    from prewarm.device.triton_seam import triton_key_digest
    from prewarm.trace import vllm_seam

    vllm_seam.import_engine()
    triton_key_digest()  # Triton keeps it for the process


def planned(request: Request, watch: Watch, pipe: IO[bytes]) -> Record:
    """Return the answer to `request`, traced in this process, which is the target already."""
    from prewarm.trace.trace import trace

    return trace(request, watch, lambda text: send(pipe, Progress(text=text)))


def _refusal_of_release(error: ImportError | AttributeError) -> Refusal:
    """Return the refusal of a vLLM that was never seen and lacks a name; else raise `error`."""
    from prewarm.trace.vllm_releases import not_found

    found = not_found(metadata.version("vllm"), error)
    if found is None:
        raise error
    return Refusal.of(found)


def _become(target: Target) -> None:
    gc.disable()  # vLLM collects several times over a heap that lives to the end anyway
    gc.collect = lambda generation=2: 0  # type: ignore[assignment]
    load_stub()
    from prewarm.trace.become import become

    become(target)


def send(pipe: IO[bytes], message: Record) -> None:
    """Write `message` for the parent."""
    pipe.write(msgspec.json.encode(message) + b"\n")


if __name__ == "__main__":
    main()
