"""vLLM's own engine for one deployment on a virtual GPU, and workloads driven through it."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

from prewarm.core.manifest import GRAPH_CAPTURE, START_UP
from prewarm.trace import vllm_seam
from prewarm.trace.unread import unread_values
from prewarm.trace.workloads import Arrival, Limits, Workload

MOST_STEPS = 400
"""Scheduler steps, besides what its prompts fill, after which a workload is aborted."""


class Listener(Protocol):
    """Hears of launches; `via` names what is under way."""

    via: str

    def recording(self) -> AbstractContextManager[None]:
        """Take every launch of the process inside the block."""


class Driven:
    """An engine whose scheduler is fed with workloads; launches go to the recorder."""

    def __init__(self, core: Any, recorder: Listener) -> None:
        self._recorder = recorder
        self._requests = 0
        self.steps = 0
        self.core = core
        self.config = core.vllm_config

    @property
    def gpu_blocks(self) -> int:
        """Number of GPU blocks that the KV cache has."""
        return int(self.config.cache_config.num_gpu_blocks)

    @property
    def limits(self) -> Limits:
        """What bounds a step of this deployment."""
        budget, compilation = vllm_seam.budget(self.config), self.config.compilation_config
        graphs = compilation.cudagraph_mode.has_full_cudagraphs()
        sizes = tuple(sorted(compilation.cudagraph_capture_sizes or ())) if graphs else ()
        return Limits(
            tokens=budget.tokens,
            sequences=budget.sequences,
            model_length=budget.model_length,
            graph_size=sizes[-1] if sizes else 0,
            graph_sizes=sizes,
            block=max(
                g.kv_cache_spec.block_size
                for g in self.core.scheduler.kv_cache_config.kv_cache_groups
            ),
            data_parallel=self.config.parallel_config.data_parallel_size > 1,
            prefix_caching=bool(self.config.cache_config.enable_prefix_caching),
            draft_tokens=budget.draft_tokens,
        )

    def drive(self, workload: Workload) -> None:
        """Run `workload` through the scheduler until its last request ends."""
        self._recorder.via = workload.kind
        vllm_seam.PEERS.tokens = workload.peers_tokens
        vllm_seam.PEERS.graph = workload.peers_graph
        vllm_seam.ACCEPTED.pattern = workload.accepted
        waiting = sorted(workload.arrivals, key=lambda arrival: arrival.step)
        known: list[str] = []
        filled = sum(arrival.prompt for arrival in waiting) // self.limits.tokens
        with self._recorder.recording():
            if not waiting:
                vllm_seam.worker_of(self.core).execute_dummy_batch()
            for step in range(filled + MOST_STEPS):
                while waiting and waiting[0].step <= step:
                    known.append(self._add(waiting.pop(0)))
                if self.core.scheduler.has_unfinished_requests():
                    self._step()
                elif not waiting:
                    break
            self._abort(known)
        vllm_seam.PEERS.tokens = vllm_seam.PEERS.graph = None

    def drive_until(self, reached: Callable[[], bool], workload: Workload) -> None:
        """Run `workload`, whose requests all arrive at once, until `reached` after a step."""
        with self._recorder.recording():
            known = [self._add(arrival) for arrival in workload.arrivals]
            while self.core.scheduler.has_unfinished_requests():
                self._step()
                if reached():
                    break
            self._abort(known)

    def _abort(self, requests: list[str]) -> None:
        # One by one: vLLM frees the blocks of many in the order of a set of names, which
        # differs from process to process.
        for request in requests:
            self.core.abort_requests([request])
        while self.core.scheduler.has_requests():
            self._step()

    def _step(self) -> None:
        self.core.step_fn()
        self.core.post_step(True)
        self.steps += 1

    def _add(self, arrival: Arrival) -> str:
        self._requests += 1
        name = f"request-{self._requests}"
        vocabulary = self.config.model_config.get_vocab_size()
        own = self._requests % (vocabulary - 1) + 1
        tokens = [0] * arrival.prefix + [own] * (arrival.prompt - arrival.prefix)
        request = vllm_seam.request(self.core, name, tokens[: arrival.prompt], arrival.output)
        self.core.add_request(request)
        return name


class Engine(Driven):
    """One engine, started as `vllm serve` starts it on a GPU that is not there."""

    def __init__(
        self,
        args: Namespace,
        model_directory: str,
        recorder: Listener,
        gpu_blocks: int | None = None,
        stage: int = 0,
    ) -> None:
        """Start the engine; `gpu_blocks` overrides the number that vLLM would find.

        With pipeline parallelism it has the layers of `stage`.

        Raises InputError with vLLM's own reason, UnsupportedError without GDN layers.
        """
        config = vllm_seam.engine_config(args, model_directory, gpu_blocks)
        vllm_seam.STAGE.number = stage
        with recorder.recording(), torch.inference_mode():
            recorder.via = START_UP
            super().__init__(vllm_seam.engine_core(config), recorder)
            worker = vllm_seam.worker_of(self.core)
            vllm_seam.warm_up(worker)
            recorder.via = GRAPH_CAPTURE
            vllm_seam.capture(worker)

    def drive(self, workload: Workload) -> None:
        """Run `workload` as any `Driven` does, without the values that nobody reads."""
        with unread_values(lambda: vllm_seam.BATCH.in_layers):
            super().drive(workload)
