"""Every private name of vLLM that prewarm touches where it serves; seen with 0.18 and 0.25."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, Protocol

from prewarm.serve.log import feature

_INSPECTION = "vllm.model_executor.models.registry"
"""What vLLM runs, as a program, only to look at a model's class."""


def is_inspection() -> bool:
    """Return whether this process is one that will never launch a kernel."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec is not None and spec.name == _INSPECTION


class Stages(Protocol):
    """Hears how far a worker has come; none of its methods raises."""

    def made(self, rank: int) -> None:
        """Hear that there is a worker."""

    def loaded(self) -> None:
        """Hear that its model, and every kernel's module with it, is there."""

    def sized(self, gpu_blocks: int) -> None:
        """Hear that its KV cache is laid out."""

    def warming_up(self) -> None:
        """Hear that it is about to compile and warm up."""

    def ready(self) -> None:
        """Hear that it will serve."""


def follow_workers(stages: Stages) -> None:
    """Tell `stages` of every worker that this process makes; once a process.

    Raises ImportError or AttributeError where this vLLM makes workers in another way.
    """
    from vllm.v1.worker.worker_base import WorkerBase

    make = WorkerBase.__init__

    @functools.wraps(make)
    def made(worker: Any, *args: Any, **keywords: Any) -> None:
        make(worker, *args, **keywords)
        with feature("following this worker"):
            stages.made(_rank(worker))
            _follow(worker, stages)

    WorkerBase.__init__ = made


def _rank(worker: Any) -> int:
    """Return the rank of `worker` among those of all data-parallel engines."""
    parallel = worker.parallel_config
    return int(getattr(parallel, "data_parallel_rank", 0) * parallel.world_size + worker.rank)


def _follow(worker: Any, stages: Stages) -> None:
    # On the instance: whichever class overrides the methods, these are the ones that are called.
    def sized(kv_cache_config: Any) -> None:
        stages.sized(int(kv_cache_config.num_blocks))

    _wrap(worker, "load_model", after=lambda *_: stages.loaded())
    _wrap(worker, "initialize_from_config", after=sized)
    _wrap(
        worker,
        "compile_or_warm_up_model",
        before=stages.warming_up,
        after=lambda *_: stages.ready(),
    )


def _wrap(
    worker: Any,
    name: str,
    *,
    before: Callable[[], None] = lambda: None,
    after: Callable[..., None],
) -> None:
    method = getattr(worker, name)

    @functools.wraps(method)
    def followed(*args: Any, **keywords: Any) -> Any:
        before()
        result = method(*args, **keywords)
        with feature(f"following {name}"):
            after(*args, **keywords)
        return result

    setattr(worker, name, followed)
