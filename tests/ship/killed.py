"""Install or pack in a child that is killed at the Nth thing it does to the file system.

Reads lines of `install`, LAYOUT, DIR, N or `pack`, DIR with manifest and cache, LAYOUT, N with
tabs between; answers `killed`, or what was done, to each. The
kill is at Python's audit events, which come before the operation; a write has none, and a file
cut short looks to its reader as one that was only opened.
"""

import os
import signal
import sys
from pathlib import Path

from prewarm.core.manifest_yaml import read_manifest
from prewarm.ship.install import install
from prewarm.ship.pack import pack

CHANGES = {"open", "os.mkdir", "os.rename", "os.symlink", "os.remove", "os.rmdir", "os.chmod"}


def kill_at(number):
    left = [number]

    def audit(event, arguments):
        if event in CHANGES:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)


def run(verb, source, into):
    if verb == "install":
        return install(source, into).state
    return pack(read_manifest(source / "manifest.yaml"), source / "cache", into).manifest_digest


for line in sys.stdin:
    verb, source, into, number = line.rstrip("\n").split("\t")
    child = os.fork()
    if child == 0:
        kill_at(int(number))
        done = run(verb, Path(source), Path(into))
        os.write(1, f"{done}\n".encode())
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        os.write(1, b"killed\n")
    elif status != 0:
        raise SystemExit(f"the child ended with {status}")
