"""Work spread over forked processes: imports are paid once, a crash costs one task."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TypeVar, cast

from prewarm.core.child import die_with_parent

T = TypeVar("T")
R = TypeVar("R")


def run_forked(
    tasks: Sequence[T], work: Callable[[T], R], jobs: int, crashed: Callable[[T, str], R]
) -> Iterator[R]:
    """Yield `work(task)` for every task as it is done, from up to `jobs` forked processes.

    Tasks start in their order. A process that dies costs its own task, for which
    `crashed(task, how)` is yielded, and is replaced.
    """
    gc.freeze()
    waiting = deque(range(len(tasks)))
    busy: dict[Connection, tuple[BaseProcess, int]] = {}
    context = multiprocessing.get_context("fork")

    def start() -> None:
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_serve, args=(theirs, tasks, work, os.getpid()), daemon=True
        )
        process.start()
        theirs.close()
        feed(ours, process)

    def feed(pipe: Connection, process: BaseProcess) -> None:
        if waiting:
            index = waiting.popleft()
            pipe.send(index)
            busy[pipe] = (process, index)
        else:
            pipe.send(None)
            pipe.close()
            process.join()

    for _ in range(min(jobs, len(tasks))):
        start()
    while busy:
        for pipe in cast("list[Connection]", wait(list(busy))):
            process, index = busy.pop(pipe)
            try:
                result: R = pipe.recv()
            except EOFError:
                process.join()
                result = crashed(tasks[index], _how(process.exitcode))
                if waiting:
                    start()
            else:
                feed(pipe, process)
            yield result


def _serve(pipe: Connection, tasks: Sequence[T], work: Callable[[T], R], parent: int) -> None:
    die_with_parent(parent)
    while (index := pipe.recv()) is not None:
        pipe.send(work(tasks[index]))


def _how(exit_code: int | None) -> str:
    if exit_code is None or exit_code >= 0:
        return f"its process ended with exit code {exit_code}"
    name = signal.Signals(-exit_code).name
    hint = "; was the machine out of memory?" if name == "SIGKILL" else ""
    return f"its process was killed by {name}{hint}"
