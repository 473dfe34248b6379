"""Stands for the worker on a GPU, which cannot be had here: it answers from recorded times.

What goes wrong is asked for by files in the directory that the task calls its cache: `dies`
holds configs, one JSON a line, over which the worker kills itself; `silent` lists GPUs whose
worker dies before it holds its GPU; `flaky` lists GPUs whose first worker dies while it times;
`triton` holds the release of Triton that it runs with.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import msgspec

from prewarm.core.child import answers_to_parent
from prewarm.core.digest import canonical_json
from prewarm.core.toolchain import Toolchain
from prewarm.tune.message import (
    Checked,
    Compared,
    Loaded,
    Progress,
    Started,
    Task,
    TimedConfig,
    TimedKey,
    Trying,
    decode_task,
)

CUDA_ERROR = """\
Traceback (most recent call last):
  File "prewarm/tune/worker.py", line 81, in <module>
torch.AcceleratorError: CUDA error: an illegal memory access was encountered
CUDA kernel errors might be asynchronously reported at some other API call.
For debugging consider passing CUDA_LAUNCH_BLOCKING=1
Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.
"""


def main() -> None:
    with answers_to_parent() as pipe:
        task = decode_task(sys.stdin.buffer.read())

        def tell(message) -> None:
            pipe.write(msgspec.json.encode(message) + b"\n")

        if task.gpu in lines(task, "silent"):
            sys.exit("no such device")
        toolchain = toolchain_of(task)
        tell(Started(gpu=task.target.device_name, uuid=task.gpu, toolchain=toolchain))
        if task.rival is not None:
            tell_of_rival(tell)
            return
        for place, share in enumerate(task.shares):
            for number, config in enumerate(share.configs):
                if (place, number) in {(c.share, c.config) for c in task.checked}:
                    continue
                tell(Trying(share=place, config=number))
                if canonical_json(config).decode() in lines(task, "dies"):
                    sys.exit(CUDA_ERROR)
                tell(Checked(share=place, config=number, tokens=64, sequences=1))
                with Path(task.cache_dir, "checked").open("a") as log:
                    log.write(f"{share.kernel} {canonical_json(config).decode()}\n")
        tell(Progress(text="timing"))
        once = Path(task.cache_dir, f"flaked-{task.gpu}")
        if task.gpu in lines(task, "flaky") and not once.exists():
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        for place, share in enumerate(task.shares):
            sizes = range(len(task.sizes) or 1)
            times = [
                TimedConfig(
                    choosing=tuple((10.0 + n, 10.01 + n) for _ in sizes),
                    confirming=tuple((10.0 + n, 10.01 + n) for _ in sizes),
                )
                for n in range(len(share.configs))
            ]
            tell(TimedKey(share=place, configs=tuple(times)))


def toolchain_of(task: Task) -> Toolchain:
    other = lines(task, "triton")
    return msgspec.structs.replace(task.toolchain, triton=other[0]) if other else task.toolchain


def tell_of_rival(tell) -> None:
    tell(Loaded(seconds=0.07))
    times = {"winners": (20.0, 20.2), "references": (40.0, 40.0), "flashinfer": (10.0, 20.0)}
    for way, at_steps in times.items():
        for step, time in enumerate(at_steps):
            tell(Compared(step=step, way=way, rounds=(time,) * 3, host=100.0))


def lines(task: Task, name: str) -> list[str]:
    file = Path(task.cache_dir, name)
    return file.read_text().splitlines() if file.exists() else []


if __name__ == "__main__":
    main()
