"""The process that serves: `python -m prewarm.prove.child`, a Request on its standard input."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from typing import IO

import msgspec

from prewarm.core.child import Refusal, answers_to_parent
from prewarm.core.errors import HostError, PrewarmError
from prewarm.core.record import Record
from prewarm.core.target import Target
from prewarm.prove.message import STEADY, Lap, Request, Served
from prewarm.trace.parent import Progress


def main() -> int:
    """Answer the request on standard input through the pipe named on the command line."""
    with answers_to_parent() as pipe:
        request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
        for name in request.without:
            os.environ.pop(name, None)
        os.environ.update(request.environment)
        try:
            answer: Record = _serve(request, pipe)
        except PrewarmError as error:
            answer = Refusal.of(error)
        _send(pipe, answer)
    sys.stdout.flush()
    os._exit(0)  # vLLM's threads and queues have nothing left to say


def _serve(request: Request, pipe: IO[bytes]) -> Served:
    began = time.monotonic()
    if request.plays is not None:
        _play(request.plays)
    from prewarm.serve.plugin import register

    register()
    import torch

    if not torch.cuda.is_available():
        raise HostError("CUDA shows torch no GPU here", "run prewarm prove where the GPU is")
    from prewarm.prove.engines import engine_of
    from prewarm.trace.workloads import Arrival, Workload, boundary_workloads, random_workloads

    engine = engine_of(request)
    start_up = time.monotonic() - began
    _send(pipe, Progress(text=f"ready after {start_up:.1f} s"))

    def workloads() -> Iterator[Workload]:
        prompt = min(request.prompt, engine.limits.model_length - 1)
        steady = Workload(kind=STEADY, arrivals=(Arrival(prompt=prompt, output=1),))
        yield from [steady] * request.repeats
        yield from boundary_workloads(engine.limits)
        source = random_workloads(engine.limits, request.seed)
        yield from (next(source) for _ in range(request.random_workloads))

    laps = []
    for workload in workloads():
        torch.cuda.synchronize()
        at = time.monotonic()
        engine.drive(workload)
        torch.cuda.synchronize()
        tokens = sum(arrival.prompt for arrival in workload.arrivals)
        laps.append(Lap(kind=workload.kind, tokens=tokens, seconds=time.monotonic() - at))
        _send(pipe, Progress(text=workload.kind))
    return Served(gpu=torch.cuda.get_device_name(0), start_up=start_up, laps=tuple(laps))


def _play(target: Target) -> None:
    from prewarm.device.libcuda import load_stub

    load_stub()
    from prewarm.trace.become import become

    become(target)


def _send(pipe: IO[bytes], message: Record) -> None:
    pipe.write(msgspec.json.encode(message) + b"\n")


if __name__ == "__main__":
    sys.exit(main())
