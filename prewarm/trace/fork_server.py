"""Plans many deployments for one target: vLLM is imported once, and each has a fork of its own.

The process is forked before anything of a deployment is set up. What a fork then does to its
environment, to vLLM's globals or to itself ends with it, as it would in a process that was
started for it. Threads do not survive a fork. Those that importing vLLM starts wait for work
that no plan has, and torch is kept from starting any.
"""

from __future__ import annotations

import functools
import os
import sys
import traceback
from typing import IO

import msgspec

from prewarm.core.child import Refusal, answers_to_parent, die_with_parent
from prewarm.trace.child import become_planner, leave_out_plugin, or_refusal, planned, send
from prewarm.trace.environment import Watch
from prewarm.trace.parent import Ended
from prewarm.trace.plan import Request


def main() -> int:
    """Answer each line of standard input, a request, through the pipe on the command line."""
    watch = leave_out_plugin()
    ready = False
    with answers_to_parent() as pipe:
        for line in iter(sys.stdin.buffer.readline, b""):
            request = msgspec.json.decode(line, type=Request)
            if not ready:
                become = functools.partial(_become, request)
                if isinstance(refusal := or_refusal(become), Refusal):
                    send(pipe, refusal)
                    continue
                ready = True
            _fork(request, watch, pipe)
    return 0


def _become(request: Request) -> Request:
    become_planner(request.target)
    return request


def _fork(request: Request, watch: Watch, pipe: IO[bytes]) -> None:
    """Answer `request` in a process of its own, and wait for it."""
    server = os.getpid()
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        _answer(request, watch, pipe, server)
    _, status = os.waitpid(process, 0)
    if code := os.waitstatus_to_exitcode(status):
        send(pipe, Ended(code=code))


def _answer(request: Request, watch: Watch, pipe: IO[bytes], server: int) -> None:
    """Answer `request`; never return."""
    code = 1
    try:
        die_with_parent(server)
        send(pipe, or_refusal(lambda: planned(request, watch, pipe)))
        code = 0
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
