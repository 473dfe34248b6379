"""Gather a run in a child that is killed at the Nth thing it does to files or to the registry.

`killed_gather.py OUT SHARDS REPOSITORY`; reads lines of N, answers `killed` or the exit code.
"""

import os
import signal
import sys
from pathlib import Path

from prewarm.core.fleet import Part
from prewarm.gathering import IndexWanted, gather_run
from prewarm.output import Output

CHANGES = {"open", "os.mkdir", "os.rename", "os.link", "os.remove", "os.chmod", "http.client.send"}
out, shards, repository = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]


def kill_at(number):
    left = [number]

    def audit(event, arguments):
        reads = event == "open" and arguments[1] in ("r", "rb")
        if event in CHANGES and not reads:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)


for line in sys.stdin:
    child = os.fork()
    if child == 0:
        kill_at(int(line))
        told = Output(as_json=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        part = Part(number=1, of=shards)
        wanted = IndexWanted(tag="fleet", repository=repository)
        os._exit(gather_run(told, "a-job", part, out, mount_path=None, wanted=wanted))
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    told = "killed" if killed else os.waitstatus_to_exitcode(status)
    os.write(1, f"{told}\n".encode())
