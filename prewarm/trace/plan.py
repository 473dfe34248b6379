"""`vllm serve` arguments -> Manifest, in a child process that plays the target GPU.

The child patches torch, Triton and vLLM for good, so nothing of it may happen here. It
writes one JSON document a line to a pipe of its own: progress, then the manifest or an error.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import IO

import msgspec

from prewarm.core import errors
from prewarm.core.errors import PrewarmError
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


class Failure(Record, kw_only=True, tag=True):
    """An error of prewarm, by the name of its class."""

    error: str
    message: str
    hint: str | None = None


class Planned(Record, kw_only=True, tag=True):
    """The answer."""

    manifest: Manifest


Message = Progress | Failure | Planned


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
    with tempfile.TemporaryFile() as log:
        reading, writing = os.pipe()
        with os.fdopen(reading, "rb") as pipe:
            child = subprocess.Popen(
                [sys.executable, "-m", "prewarm.trace.child", str(writing)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(writing,),
                start_new_session=True,
            )
            os.close(writing)
            try:
                assert child.stdin is not None
                with contextlib.suppress(BrokenPipeError), child.stdin as stdin:
                    stdin.write(msgspec.json.encode(request))
                manifest = _listen(pipe, progress)
                child.wait()
            finally:
                _end(child)
        if manifest is None:
            raise _died(child.returncode, log)
    return manifest


def _listen(pipe: IO[bytes], progress: Callable[[str], object]) -> Manifest | None:
    for line in pipe:
        message: Message = msgspec.json.decode(line, type=Message)
        match message:
            case Planned(manifest=manifest):
                return manifest
            case Failure():
                raise getattr(errors, message.error)(message.message, message.hint)
            case Progress(text=text):
                progress(text)
    return None


def _end(child: subprocess.Popen[bytes]) -> None:
    """Leave no process behind, whatever vLLM started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


_RAISED = re.compile(r"(?:\[rank0\]: )?([A-Za-z_.]+(?:Error|Exception)): (.*)")


def _died(code: int, log: IO[bytes]) -> Exception:
    if code == -signal.SIGKILL:
        return errors.HostError(
            "the tracing process was killed, most likely for want of memory",
            "give it 6 GiB of memory",
        )
    log.seek(0)
    said = log.read().decode("utf-8", "replace")
    raised = [f"{name}: {what}" for name, what in _RAISED.findall(said)]
    operator = re.search(r"Could not run '([^']+)' with arguments from the 'CPU' backend", said)
    if operator:
        return errors.UnsupportedError(
            f"this deployment calls {operator[1]}, which needs the GPU, before its GDN layers"
        )
    error = RuntimeError(raised[-1] if raised else f"the tracing process ended with {code}")
    error.add_note(said[-8000:])
    return error


def failure_of(error: PrewarmError) -> Failure:
    """Return `error` as the child sends it."""
    return Failure(error=type(error).__name__, message=error.message, hint=error.hint)
