"""Random request streams, driven through vLLM's engine in this process and recorded."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from prewarm.core.manifest import Manifest
from prewarm.core.target import target_named
from prewarm.device.toolchain import read_toolchain
from prewarm.trace import vllm_seam
from prewarm.trace.agreement import check_toolchain, planned_model
from prewarm.trace.assemble import kernels_of
from prewarm.trace.check import Served, Streamed, StreamsRequest
from prewarm.trace.engine import Engine
from prewarm.trace.recorder import Recorder
from prewarm.trace.streams import Bounds, Client, Peer, Stream, streams


def drive_streams(request: StreamsRequest, progress: Callable[[str], object]) -> Streamed:
    """Return what the streams of `request` ask for, driven in this process, the target already.

    Raises what `prewarm.trace.check.serve_streams` raises.
    """
    manifest = request.manifest
    args = vllm_seam.parse_serve_args(manifest.deployment.serve_args)
    source = planned_model(manifest.deployment.model, request.model or args.model)
    served: list[Served] = []
    first = 0
    for blocks, count in _engines(manifest, request, args.num_gpu_blocks_override is not None):
        progress("starting vLLM's engine")
        recorder = Recorder()
        serving = Serving(Engine(args, source.directory, recorder, blocks), recorder)
        if not served:
            here = read_toolchain(target_named(manifest.deployment.target))
            check_toolchain(manifest.toolchain, here)
        drawn = streams(serving.bounds, request.seed, request.steps)
        for number, stream in enumerate(islice(drawn, first, first + count), start=first):
            recorder.via = f"stream {number}"
            serving.serve(stream, request.steps)
            progress(f"stream {number}: {len(recorder.found)} launches")
        served.append(serving.served(count))
        first += count
    return Streamed(engines=tuple(served))


def _engines(
    manifest: Manifest, request: StreamsRequest, pinned: bool
) -> Iterator[tuple[int | None, int]]:
    """Yield a number of GPU blocks, None for the deployment's own, and how many streams it has."""
    if pinned or request.streams < 2:
        yield None, request.streams
        return
    other = request.streams // 2
    yield None, request.streams - other
    yield _other_blocks(manifest.trace.gpu_blocks[0], request.seed), other


def _other_blocks(blocks: int, seed: int) -> int:
    """Return what a GPU with less free memory has; divisible by 16 where `blocks` is not."""
    source = random.Random(seed)  # noqa: S311 (reproducible, not secret)
    fewer = source.randint(blocks * 7 // 8, blocks - 1)
    return fewer - fewer % 16 + (0 if blocks % 16 else 1 + source.randrange(15))


class Serving:
    """An engine that serves streams."""

    def __init__(self, engine: Engine, recorder: Recorder) -> None:
        self._engine = engine
        self._core = engine.core
        self._recorder = recorder
        self._steps = self._requests = self._preemptions = self._aborts = 0
        vllm_seam.BATCH.prefix_hits = 0

    @property
    def bounds(self) -> Bounds:
        """What this deployment admits."""
        config = self._engine.config
        budget = vllm_seam.budget(config)
        groups = self._core.scheduler.kv_cache_config.kv_cache_groups
        blocks = {group.kv_cache_spec.block_size for group in groups}
        blocks -= {block for block in blocks if block >= budget.model_length}  # one state for all
        return Bounds(
            tokens=budget.tokens,
            sequences=budget.sequences,
            model_length=budget.model_length,
            blocks=tuple(sorted(blocks)) or (config.cache_config.block_size,),
            graphs=self._graphs,
            draft_tokens=budget.draft_tokens,
            data_parallel=config.parallel_config.data_parallel_size > 1,
        )

    @property
    def _graphs(self) -> tuple[int, ...]:
        """The batch sizes that CUDA graphs were captured for, in order."""
        return tuple(sorted(self._engine.config.compilation_config.cudagraph_capture_sizes or ()))

    def served(self, count: int) -> Served:
        """Return what was asked for in the `count` streams so far, and by what."""
        return Served(
            gpu_blocks=self._engine.gpu_blocks,
            streams=count,
            steps=self._steps,
            requests=self._requests,
            preemptions=self._preemptions,
            prefix_hits=vllm_seam.BATCH.prefix_hits,
            aborts=self._aborts,
            calls=self._recorder.calls,
            kernels=kernels_of(self._recorder.found.values()),
        )

    def serve(self, stream: Stream, steps: int) -> None:
        """Serve `stream` for at most `steps` steps; what is left then is aborted."""
        vllm_seam.ACCEPTED.pattern = stream.accepted
        arriving = list(stream.clients)
        leaving: list[tuple[int, str]] = []
        known: list[Any] = []
        with self._recorder.recording(), vllm_seam.free_blocks(self._core, stream.free):
            for step in range(steps):
                while arriving and arriving[0].arrives <= step:
                    client = arriving.pop(0)
                    known.append(self._add(client))
                    if client.leaves is not None:
                        leaving.append((client.leaves, known[-1].request_id))
                self._abort(name for when, name in leaving if when == step)
                if not (arriving or self._core.scheduler.has_requests()):
                    break
                self._step(stream.peers[step % len(stream.peers)] if stream.peers else None)
            self._abort(request.request_id for request in known)
            while self._core.scheduler.has_requests():
                self._step(None)
        self._preemptions += sum(request.num_preemptions for request in known)

    def _add(self, client: Client) -> Any:
        self._requests += 1
        vocabulary = self._engine.config.model_config.get_vocab_size()
        own = 100 + self._requests % (vocabulary - 100)
        tokens = [1 + client.family] * client.prefix + [own] * (client.prompt - client.prefix)
        name = f"client-{self._requests}"
        request = vllm_seam.request(self._core, name, tokens, client.output)
        self._core.add_request(request)
        return request

    def _abort(self, names: Iterable[str]) -> None:
        """Abort those of `names` that are not answered yet, one by one: see `Driven`."""
        for name in names:
            if name in self._core.scheduler.requests:
                self._aborts += 1
                self._core.abort_requests([name])

    def _step(self, peer: Peer | None) -> None:
        self._steps += 1
        vllm_seam.PEERS.tokens, vllm_seam.PEERS.graph = self._peers(peer)
        if self._core.scheduler.has_requests():
            _, executed = self._core.step_fn()
            self._core.post_step(executed)
        elif peer is not None:
            vllm_seam.worker_of(self._core).execute_dummy_batch()
        vllm_seam.PEERS.tokens = vllm_seam.PEERS.graph = None

    def _peers(self, peer: Peer | None) -> tuple[int | None, str | None]:
        """Return tokens as padded by `peer`, and the kind of CUDA graph that it proposes."""
        if peer is None or peer.does == "alike":
            return None, None
        padded = next((size for size in self._graphs if size >= peer.tokens), None)
        if padded is None:
            return peer.tokens, "none"
        mode = self._engine.config.compilation_config.cudagraph_mode
        if peer.does == "decode":
            return padded, None
        return padded, "piecewise" if mode.mixed_mode().name == "PIECEWISE" else "none"
