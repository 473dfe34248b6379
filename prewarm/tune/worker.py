"""The process that measures on a GPU: `python -m prewarm.tune.worker`, a Task on its stdin."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import IO

from prewarm.core.capture_file import read_capture
from prewarm.core.child import Refusal, answers_to_parent
from prewarm.core.errors import HostError, InputError, PrewarmError
from prewarm.device.planned import plan_environment, use_cache
from prewarm.tune.message import Message, Started, Task, decode_task, encode


def main() -> int:
    """Measure the task on stdin and write what is found, a line each, to the given descriptor."""
    with answers_to_parent() as pipe:
        task = decode_task(sys.stdin.buffer.read())
        try:
            _measure(task, pipe)
        except PrewarmError as error:
            _tell(pipe, Refusal.of(error))
    return 0


def _tell(pipe: IO[bytes], message: Message) -> None:
    pipe.write(encode(message) + b"\n")


def _measure(task: Task, pipe: IO[bytes]) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = task.gpu
    use_cache(task.cache_dir)
    plan_environment(task.toolchain)
    import torch

    from prewarm.device.ptxas import choose_ptxas
    from prewarm.device.sources import check_sources
    from prewarm.device.toolchain import read_toolchain
    from prewarm.tune.bench import Bench

    if not torch.cuda.is_available():
        raise HostError(f"CUDA does not show GPU {task.gpu} to torch", "nvidia-smi -L")
    choose_ptxas(task.toolchain.ptxas, task.target.arch)
    properties = torch.cuda.get_device_properties(0)
    toolchain = read_toolchain(task.target, task.toolchain.environment)
    _tell(pipe, Started(gpu=properties.name, uuid=str(properties.uuid), toolchain=toolchain))
    if properties.name != task.target.device_name:
        raise InputError(
            f"GPU {task.gpu} is a {properties.name}, the manifest is for {task.target.device_name}",
            "tune on the GPU that will serve, or plan for this one: prewarm show targets",
        )
    if not task.shares:
        return
    if task.rival is not None:
        from prewarm.tune.rival import compare

        steps = read_capture(Path(task.capture)).steps
        for message in compare(steps, task.shares, task.rival, task.seed):
            _tell(pipe, message)
        return
    capture = read_capture(Path(task.capture))
    check_sources({each.kernel: each.source for step in capture.steps for each in step.launches})
    bench = Bench(capture, task.shares, task.sizes, lambda message: _tell(pipe, message))
    gc.collect()
    gc.disable()  # a collection between two launches is a gap that a kernel would be blamed for
    for timed in bench.measure(task.schedule, task.seed, task.checked):
        _tell(pipe, timed)


if __name__ == "__main__":
    sys.exit(main())
