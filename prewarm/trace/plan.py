"""`vllm serve` arguments -> Manifest, in a child process that plays the target GPU.

The child patches torch, Triton and vLLM for good, so nothing of it may happen here. It
writes one JSON document a line to a pipe of its own: progress, then the manifest or an error.
"""

from __future__ import annotations

import platform
import re
import signal
from collections.abc import Callable

import msgspec

from prewarm.core.child import Refusal, child
from prewarm.core.errors import HostError, UnsupportedError
from prewarm.core.manifest import Manifest
from prewarm.core.record import Record
from prewarm.core.target import Target, check_host


class Request(Record, kw_only=True):
    """What the child is asked for."""

    serve_args: tuple[str, ...]
    target: Target
    closure: int
    seed: int


class Progress(Record, kw_only=True, tag=True):
    """Something was tried."""

    text: str


class Planned(Record, kw_only=True, tag=True):
    """The answer."""

    manifest: Manifest


Message = Progress | Refusal | Planned


def plan(
    serve_args: tuple[str, ...],
    target: Target,
    *,
    closure: int = 50,
    seed: int = 0,
    progress: Callable[[str], object] = lambda text: None,
) -> Manifest:
    """Return the manifest of `vllm serve` with `serve_args` on `target`.

    `closure` is the number of random workloads in a row that must show nothing new before the
    manifest counts as complete; `progress` hears of every workload. Raises InputError for
    arguments or a model that vLLM refuses, UnsupportedError for a model without GDN layers,
    HostError without vLLM, without a C compiler or on another CPU architecture than the
    target's hosts, TryAgainError when the hub cannot be reached.
    """
    check_host(target, platform.machine())
    request = Request(serve_args=serve_args, target=target, closure=closure, seed=seed)
    with child("prewarm.trace.child", msgspec.json.encode(request)) as process:
        for line in process.answers:
            message: Message = msgspec.json.decode(line, type=Message)
            match message:
                case Planned(manifest=manifest):
                    return manifest
                case Refusal():
                    raise message.error()
                case Progress(text=text):
                    progress(text)
        raise _died(process.wait(), process.last_words())


_RAISED = re.compile(r"(?:\[rank0\]: )?([A-Za-z_.]+(?:Error|Exception)): (.*)")


def _died(code: int, said: str) -> Exception:
    if code == -signal.SIGKILL:
        return HostError(
            "the tracing process was killed, most likely for want of memory",
            "give it 6 GiB of memory",
        )
    raised = [f"{name}: {what}" for name, what in _RAISED.findall(said)]
    operator = re.search(r"Could not run '([^']+)' with arguments from the 'CPU' backend", said)
    if operator:
        return UnsupportedError(
            f"this deployment calls {operator[1]}, which needs the GPU, before its GDN layers"
        )
    error = RuntimeError(raised[-1] if raised else f"the tracing process ended with {code}")
    error.add_note(said)
    return error
