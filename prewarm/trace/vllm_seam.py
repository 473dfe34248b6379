"""Every private name of vLLM that prewarm uses, for vLLM 0.18 to 0.32.

What differs between releases stands in `vllm_releases`, what the second model runner needs in
`vllm_second_runner`.

The engine is vLLM's own: its argument parser, configuration, KV cache layout, scheduler,
worker, model runner and metadata builders. Replaced are only the platform (the GPU is not
there), the process group, the weights, what linear layers compute, and the sampler.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import importlib
import inspect
import io
import itertools
import os
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from typing import Any

import torch
import vllm.platforms
from torch.overrides import TorchFunctionMode
from vllm.platforms.cuda import NonNvmlCudaPlatform
from vllm.platforms.interface import DeviceCapability

from prewarm.core.errors import HostError, InputError, UnsupportedError
from prewarm.core.target import Target
from prewarm.device import triton_seam
from prewarm.trace import vllm_second_runner as second_runner
from prewarm.trace.agreement import Budget
from prewarm.trace.refused import words_of, words_of_parser
from prewarm.trace.unread import UnreadTables
from prewarm.trace.vllm_releases import release_of

RELEASE = release_of(metadata.version("vllm"))
LOAD_FORMAT = "prewarm-no-weights"
WORKER = "prewarm.trace.vllm_seam.VirtualWorker"
LAYER_WORKER = "prewarm.trace.vllm_seam.LayerWorker"
"""On a real GPU: a worker whose model is its GDN layers, without weights."""
COMMUNICATOR = "prewarm.trace.vllm_seam.VirtualCommunicator"
GATES = ("A_log", "dt_bias")
"""Parameters of GDN layers that decide how fast a state decays."""

_LIBRARY = torch.library.Library("_C", "IMPL")
"""Keeps our registrations of vLLM's CUDA-only operators alive."""


def install_platform(target: Target) -> None:
    """Make vLLM's platform the `target`; call it before any other module of vLLM is imported."""

    class VirtualPlatform(NonNvmlCudaPlatform):  # type: ignore[misc]
        """CUDA as vLLM sees it, with operators registered where the tensors are."""

        dispatch_key = "CPU"

        @classmethod
        def get_device_capability(cls, device_id: int = 0) -> DeviceCapability:
            return DeviceCapability(*target.capability)

        @classmethod
        def get_device_name(cls, device_id: int = 0) -> str:
            return target.device_name

        @classmethod
        def get_device_total_memory(cls, device_id: int = 0) -> int:
            return target.memory

        @classmethod
        def is_fully_connected(cls, physical_device_ids: list[int]) -> bool:
            return True

        @classmethod
        def get_device_communicator_cls(cls) -> str:
            return COMMUNICATOR

    vllm.platforms._current_platform = VirtualPlatform()
    _LIBRARY.impl("weak_ref_tensor", lambda tensor: tensor, "CPU")
    _LIBRARY.impl("fused_gdn_decode_post_conv_mtp", lambda *_: None, "CPU")


_OF_EVERY_DEPLOYMENT = (
    "vllm.v1.engine.core",
    "vllm.v1.worker.gpu_worker",
    "vllm.v1.worker.gpu_model_runner",
)
"""Modules that start-up imports whatever is served; no module that only some deployments import,
because importing one may choose another ptxas."""


def import_engine() -> None:
    """Import what vLLM imports for any deployment, after `install_platform`."""
    from vllm.model_executor.models import registry

    RELEASE.argument_parser()
    for name in _OF_EVERY_DEPLOYMENT:
        importlib.import_module(name)
    if hasattr(registry, "_run_in_subprocess"):
        # vLLM looks at a model in another process to keep CUDA out of this one, where none is.
        registry._run_in_subprocess = lambda look: look()


def parse_serve_args(serve_args: Sequence[str]) -> Namespace:
    """Return what `vllm serve` makes of `serve_args`, the model first.

    Raises InputError with vLLM's own message.
    """
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = RELEASE.argument_parser()(FlexibleArgumentParser(prog="vllm serve"))
    heard = io.StringIO()
    try:
        with contextlib.redirect_stderr(heard):
            args = parser.parse_args(list(serve_args))
    except SystemExit as error:
        raise InputError(words_of_parser(heard.getvalue()), "vllm serve --help") from error
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"vllm serve: {words_of(error)}", "vllm serve --help") from error
    args.model = getattr(args, "model_tag", None) or args.model
    return args


def engine_config(
    args: Namespace, model_directory: str, gpu_blocks: int | None, worker: str = WORKER
) -> Any:
    """Return the VllmConfig of `vllm serve` with `args`, its config read from `model_directory`.

    `gpu_blocks` overrides the number of GPU blocks; None leaves it to `args` or to vLLM.

    Raises InputError with vLLM's own reason for a combination that it refuses.
    """
    engine_args = _engine_args(args, model_directory)
    engine_args.load_format = LOAD_FORMAT
    engine_args.worker_cls = worker
    if gpu_blocks is not None:
        engine_args.num_gpu_blocks_override = gpu_blocks
    _register_loader()
    config = _served(engine_args)
    config.parallel_config.all2all_backend = "allgather_reducescatter"  # the one without a library
    return config


def dummy_engine_config(args: Namespace, model_directory: str) -> Any:
    """Return the VllmConfig of `vllm serve` with `args`, weights made up; raises as above."""
    engine_args = _engine_args(args, model_directory)
    engine_args.load_format = "dummy"
    return _served(engine_args)


def _engine_args(args: Namespace, model_directory: str) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs

    engine_args = _accepted(lambda: AsyncEngineArgs.from_cli_args(args))
    engine_args.model = model_directory
    engine_args.revision = None
    engine_args.tokenizer = None
    engine_args.skip_tokenizer_init = True
    engine_args.language_model_only = True
    engine_args.enable_sleep_mode = False  # its allocator asks the driver for memory
    _leave_out_reasoning(engine_args)
    return engine_args


def _leave_out_reasoning(engine_args: Any) -> None:
    """Forget how answers are parsed: it asks for the tokenizer and launches nothing."""
    engine_args.reasoning_parser = engine_args.structured_outputs_config.reasoning_parser = ""
    if hasattr(engine_args, "reasoning_config"):
        engine_args.reasoning_config = None


def _served(engine_args: Any) -> Any:
    from vllm.usage.usage_lib import UsageContext

    server = UsageContext.OPENAI_API_SERVER
    return _accepted(lambda: engine_args.create_engine_config(usage_context=server))


def _accepted(make: Callable[[], Any]) -> Any:
    """Return what `make` makes of arguments; raises InputError where vLLM refuses them."""
    try:
        return make()
    except (ValueError, NotImplementedError, AssertionError, TypeError, KeyError) as error:
        raise InputError(f"vLLM refuses this deployment: {words_of(error)}") from error


def budget(config: Any) -> Budget:
    """Return what a step of a deployment with the VllmConfig `config` may hold."""
    scheduler, speculation = config.scheduler_config, config.speculative_config
    return Budget(
        tokens=scheduler.max_num_batched_tokens,
        sequences=scheduler.max_num_seqs,
        model_length=config.model_config.max_model_len,
        draft_tokens=speculation.num_speculative_tokens if speculation else 0,
    )


def _register_loader() -> None:
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.torch_utils import set_default_torch_dtype

    class NoWeights(BaseModelLoader):  # type: ignore[misc]
        """A model whose parameters have their shapes, dtypes and no values."""

        def download_model(self, model_config: Any) -> None: ...

        def load_weights(self, model: Any, model_config: Any) -> None: ...

        def load_model(self, vllm_config: Any, model_config: Any, prefix: str = "") -> Any:
            with set_default_torch_dtype(model_config.dtype), UnreadTables():
                model = initialize_model(
                    vllm_config=vllm_config, model_config=model_config, prefix=prefix
                )
            return model.eval()

    register_model_loader(LOAD_FORMAT)(NoWeights)


def _executor_class() -> type[Any]:
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    class VirtualExecutor(UniProcExecutor):  # type: ignore[misc]
        """Rank 0 of the deployment, alone in this process."""

        supports_pp = True

        def _distributed_args(self) -> tuple[str, int, int]:
            return "fake://", 0, 0

    return VirtualExecutor


def _fake_process_group(world_size: int) -> None:
    """Join rank 0 of `world_size` ranks that are not there.

    With pipeline parallelism it takes requests as the first stage and samples as the last.
    """
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore
    from vllm.distributed import parallel_state
    from vllm.distributed.device_communicators.shm_broadcast import MessageQueue

    if dist.is_initialized():
        return
    dist.init_process_group(backend="fake", store=FakeStore(), rank=0, world_size=world_size)
    real = dist.new_group

    def new_group(ranks: Any = None, *_: Any, **__: Any) -> Any:
        return real(ranks, backend="fake")

    @contextlib.contextmanager
    def graph_capture(group: Any, context: Any = None) -> Any:
        context = context or parallel_state.GraphCaptureContext(torch.cuda.Stream())
        with torch.cuda.stream(context.stream):
            yield context

    dist.new_group = new_group  # type: ignore[assignment]
    parallel_state._node_count = lambda *_: 1
    MessageQueue.create_from_process_group = lambda *_, **__: None
    parallel_state.GroupCoordinator.graph_capture = graph_capture
    parallel_state.GroupCoordinator.is_last_rank = True


def engine_core(config: Any) -> Any:
    """Return vLLM's EngineCore of `config`, profiled, its KV cache laid out.

    Raises InputError with vLLM's own reason, UnsupportedError for a model without GDN layers.
    """
    from vllm.v1.engine.core import EngineCore

    if not config.model_config.is_hybrid:
        raise _no_gdn_layers(config)
    if config.parallel_config.enable_dbo:
        raise UnsupportedError(
            "--enable-dbo cannot be traced: it runs halves of batches in threads of their own",
            "plan and serve without --enable-dbo",
        )
    if _has_second_runner(config) and not RELEASE.second_runner_is_known:
        raise UnsupportedError(
            "vLLM would serve this with its second model runner, which prewarm cannot trace before"
            " vLLM 0.31",
            "VLLM_USE_V2_MODEL_RUNNER=0, here and in serving",
        )
    with _refusals():
        return EngineCore(config, _executor_class(), log_stats=False)


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Raise what vLLM refuses inside the block as InputError with its reason."""
    try:
        yield
    except (ValueError, NotImplementedError, ZeroDivisionError) as error:
        raise InputError(f"vLLM refuses this deployment: {words_of(error)}") from error
    except RuntimeError as error:
        if not str(error).endswith(" is not available"):
            raise
        raise HostError(
            f"vLLM needs a library that is not here: {words_of(error)}",
            "plan in the image that will serve, or: pip install what is missing",
        ) from error
    except AssertionError as error:
        # With words it is a check of the arguments, such as heads that ranks cannot share.
        if not str(error):
            raise
        raise InputError(f"vLLM refuses this deployment: {words_of(error)}") from error


def whole_engine(config: Any) -> Any:
    """Return vLLM's EngineCore of `config` with every worker of it, ready to serve.

    Raises InputError with vLLM's own reason.
    """
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.executor.abstract import Executor

    try:
        return EngineCore(config, Executor.get_class(config), log_stats=False)
    except (ValueError, NotImplementedError) as error:
        raise InputError(f"vLLM refuses this deployment: {words_of(error)}") from error


def _no_gdn_layers(config: Any) -> UnsupportedError:
    architecture = config.model_config.architecture
    return UnsupportedError(f"{architecture} has no gated delta net (GDN) layers to prewarm")


def worker_of(core: Any) -> Any:
    """Return the worker of rank 0."""
    return core.model_executor.driver_worker.worker


def warm_up(worker: Any) -> None:
    """Run vLLM's own warm-up of GDN and block-table kernels, where this release has one."""
    if _has_second_runner(worker.vllm_config):
        second_runner.warm_up(worker)
    else:
        RELEASE.warm_up(worker)


def capture(worker: Any) -> None:
    """Capture CUDA graphs as vLLM does, unless the deployment is eager."""
    if not worker.model_config.enforce_eager:
        worker.model_runner.capture_model()


def request(core: Any, name: str, tokens: list[int], output: int) -> Any:
    """Return a request for `output` tokens after the prompt `tokens`."""
    from vllm.sampling_params import SamplingParams
    from vllm.v1.request import Request

    return Request(
        request_id=name,
        prompt_token_ids=tokens,
        sampling_params=SamplingParams(max_tokens=output, ignore_eos=True),
        pooling_params=None,
        block_hasher=core.request_block_hasher,
    )


@contextlib.contextmanager
def free_blocks(core: Any, most: int | None) -> Iterator[None]:
    """Leave the scheduler at most so many free KV cache blocks, as if others held the rest."""
    pool = core.scheduler.kv_cache_manager.block_pool
    free = pool.get_num_free_blocks()
    held = pool.get_new_blocks(0 if most is None else max(0, free - most))
    try:
        yield
    finally:
        pool.free_blocks(held)


def prefill_backend(core: Any) -> str:
    """Return the backend that vLLM chose for GDN prefill: `triton`, `flashinfer`, `cutedsl`."""
    return RELEASE.prefill_backend(gdn_layers(core.vllm_config)[0])


def cache_directory(config: Any) -> str | None:
    """Return where a worker of `config` looks for Triton's entries, None where nobody names it.

    vLLM's graph compiler may name another directory for the whole process when its own cache is
    set up. That is done here, under a directory that is gone afterwards: call it at the very end.
    """
    from vllm.compilation.backends import CompilerManager
    from vllm.compilation.compiler_interface import is_compile_cache_enabled
    from vllm.config import CompilationMode

    compilation = config.compilation_config
    with tempfile.TemporaryDirectory() as scratch:
        if compilation.mode == CompilationMode.VLLM_COMPILE:
            disabled = not is_compile_cache_enabled(compilation.inductor_compile_config)
            compiler = CompilerManager(compilation)
            compiler.initialize_cache(os.path.join(scratch, "backbone"), disabled, "backbone")
        found = triton_seam.cache_directory()
    return found and found.replace(scratch, _compile_cache(compilation))


def _compile_cache(compilation: Any) -> str:
    """Return where vLLM's compiler of rank 0 keeps its cache; its hash is not known here."""
    import vllm.envs

    hashed = os.path.join(vllm.envs.VLLM_CACHE_ROOT, "torch_compile_cache", "HASH")
    return os.path.join(compilation.cache_dir or hashed, "rank_0_0")


def geometry(core: Any) -> dict[str, Any]:
    """Return what vLLM decided about the GDN layers, under names that a vLLM user knows."""
    config = core.vllm_config
    layers = gdn_layers(config)
    layer = layers[0]
    parallel, cache = config.parallel_config, config.cache_config
    facts: dict[str, Any] = {
        "architecture": config.model_config.architecture,
        "layer": type(layer).__name__,
        "gdn_layers": len(layers),
        "tensor_parallel": parallel.tensor_parallel_size,
        "data_parallel": parallel.data_parallel_size,
        "dtype": _dtype(config.model_config.dtype),
        "gdn_prefill_backend": prefill_backend(core),
        "kv_cache_dtype": str(cache.cache_dtype),
        "block_size": cache.block_size,
        "mamba_cache_mode": str(cache.mamba_cache_mode),
        "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
        "max_num_seqs": config.scheduler_config.max_num_seqs,
        "cudagraph_mode": config.compilation_config.cudagraph_mode.name,
    }
    if parallel.pipeline_parallel_size > 1:
        facts["pipeline_parallel"] = parallel.pipeline_parallel_size
    for name in ("num_k_heads", "num_v_heads"):
        if hasattr(layer, name):
            facts[f"{name}_per_rank"] = getattr(layer, name) // layer.tp_size
    for name, shape, dtype, state in zip(
        ("conv_state", "ssm_state"),
        layer.get_state_shape(),
        layer.get_state_dtype(),
        RELEASE.states(layer),
        strict=False,
    ):
        facts[name] = f"{_dtype(dtype)} {'x'.join(map(str, shape))}"
        facts[f"{name}_stride"] = state.stride(0)
    return facts


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclasses.dataclass
class Accepted:
    """How many draft tokens each request in turn has accepted."""

    pattern: tuple[int, ...] = ()

    def next(self, turn: int) -> int:
        """Return how many draft tokens are accepted in the `turn`-th decision."""
        return self.pattern[turn % len(self.pattern)] if self.pattern else 0


ACCEPTED = Accepted()


@dataclasses.dataclass
class Peers:
    """What the other data-parallel ranks run in this step; None where they do as this one does."""

    tokens: int | None = None
    graph: str | None = None


PEERS = Peers()


@dataclasses.dataclass
class Stage:
    """The stage of the pipeline whose layers the worker has."""

    number: int = 0


STAGE = Stage()


def further_stages(config: Any) -> tuple[int, ...]:
    """Return a stage for each mix of layers that the first stage of the pipeline has not."""
    parallel = copy.copy(config.parallel_config)
    mixes: dict[object, int] = {}
    for stage in range(parallel.pipeline_parallel_size):
        parallel.rank = stage * parallel.tensor_parallel_size
        mixes.setdefault(_mix_of_layers(config.model_config, parallel, stage), stage)
    return tuple(mixes.values())[1:]


def _mix_of_layers(model: Any, parallel: Any, stage: int) -> object:
    try:
        attention = model.get_num_layers_by_block_type(parallel, "attention")
    except ValueError:  # a config that does not list the kinds of its layers
        return f"stage {stage}"
    return attention, model.get_num_layers(parallel)


@dataclasses.dataclass
class Batch:
    """What the model runner executes now."""

    tokens: int = 0
    sequences: int = 0
    in_layers: bool = False
    """Whether a GDN layer runs."""
    prefix_hits: int = 0
    """Requests so far that began with tokens of the prefix cache."""


BATCH = Batch()


def _agree_with_peers() -> None:
    """Answer data-parallel agreement for the ranks that are not there."""
    from vllm.config import CUDAGraphMode
    from vllm.v1.worker import dp_utils

    def run_all_reduce(
        should_ubatch: bool,
        orig_num_tokens_per_ubatch: int,
        padded_num_tokens_per_ubatch: int,
        cudagraph_mode: int,
        parallel_config: Any,
    ) -> torch.Tensor:
        def column(own: int, peers: int | None) -> torch.Tensor:
            values = torch.full(
                (parallel_config.data_parallel_size,), own if peers is None else peers
            )
            values[parallel_config.data_parallel_rank] = own
            return values.to(torch.int32)

        graph = None if PEERS.graph is None else CUDAGraphMode[PEERS.graph.upper()].value
        return torch.stack(
            [
                column(orig_num_tokens_per_ubatch, PEERS.tokens),
                column(padded_num_tokens_per_ubatch, PEERS.tokens),
                column(int(should_ubatch), None),
                column(int(cudagraph_mode), graph),
            ]
        )

    dp_utils._run_ar = run_all_reduce


def _fill_in_peers(rows: torch.Tensor, own: int) -> None:
    """Answer the second runner's data-parallel agreement for the ranks that are not there.

    Rows are tokens, CUDA graph mode and what else a rank reports; columns are ranks.
    """
    from vllm.config import CUDAGraphMode

    mine = rows[:, own].clone()
    rows[:] = mine[:, None]
    if PEERS.tokens is not None:
        rows[0] = PEERS.tokens
    if PEERS.graph is not None:
        rows[1] = CUDAGraphMode[PEERS.graph.upper()].value
    rows[:, own] = mine


def _has_second_runner(config: Any) -> bool:
    return RELEASE.uses_second_runner(config)


def __getattr__(name: str) -> Any:
    """Build the virtual classes on first use: their bases only load under the virtual platform."""
    made = {
        "VirtualWorker": _worker_class,
        "LayerWorker": _layer_worker_class,
        "VirtualCommunicator": _communicator_class,
    }.get(name)
    if made is None:
        raise AttributeError(name)
    globals()[name] = made()
    return globals()[name]


def _communicator_class() -> type[Any]:
    from vllm.distributed.device_communicators.base_device_communicator import (
        All2AllManagerBase,
        DeviceCommunicatorBase,
    )

    class NoExperts(All2AllManagerBase):  # type: ignore[misc]
        """Stands for the exchange between experts that do not compute."""

        def __init__(self) -> None:
            self.support_fault_tolerance = False

    class VirtualCommunicator(DeviceCommunicatorBase):  # type: ignore[misc]
        """Communicates with ranks that are not there."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.all2all_manager = NoExperts()

        def prepare_communication_buffer_for_model(self, model: Any) -> None: ...

    return VirtualCommunicator


def _worker_class() -> type[Any]:
    from vllm.config import CUDAGraphMode
    from vllm.distributed import parallel_state
    from vllm.v1.worker.gpu_worker import Worker

    class VirtualWorker(Worker):  # type: ignore[misc]
        """vLLM's GPU worker on a GPU that is not there."""

        def init_device(self) -> None:
            _fake_process_group(self.parallel_config.world_size_across_dp)
            if _has_second_runner(self.vllm_config):
                second_runner.share_host_memory()
                second_runner.answer_as_on_gpu()
                second_runner.agree_with_peers(_fill_in_peers)
            else:
                _agree_with_peers()
            super().init_device()

        def load_model(self, **keywords: Any) -> None:
            parallel_state.get_pp_group().rank_in_group = STAGE.number
            super().load_model(**keywords)
            _replace_compute(self.model_runner)

        @torch.inference_mode()
        def determine_available_memory(self) -> int:
            runner = self.model_runner
            if _has_second_runner(self.vllm_config):
                second_runner.profile(runner)
            else:
                runner._dummy_run(runner.max_num_tokens, is_profile=True)
            graphs = self.vllm_config.compilation_config.cudagraph_mode != CUDAGraphMode.NONE
            if graphs and not self.cache_config.kv_cache_memory_bytes:
                runner.profile_cudagraph_memory()
            return int(self.cache_config.kv_cache_memory_bytes or self.requested_memory)

        def execute_model(self, scheduler_output: Any) -> Any:
            BATCH.tokens = scheduler_output.total_num_scheduled_tokens
            BATCH.sequences = len(scheduler_output.num_scheduled_tokens)
            BATCH.prefix_hits += sum(
                new.num_computed_tokens > 0 for new in scheduler_output.scheduled_new_reqs
            )
            return super().execute_model(scheduler_output)

        def compile_or_warm_up_model(self) -> Any:
            return RELEASE.start_up_answer()

    return VirtualWorker


def _layer_worker_class() -> type[Any]:
    virtual = _worker_class()

    class LayerWorker(virtual):  # type: ignore[misc, valid-type]
        """vLLM's GPU worker on a real GPU, whose model is its GDN layers without weights."""

        def load_model(self, **keywords: Any) -> None:
            super().load_model(**keywords)
            for layer in _distinct(gdn_layers(self.vllm_config)):
                layer.to(self.model_runner.device)

        @torch.inference_mode()
        def determine_available_memory(self) -> int:
            wanted = super().determine_available_memory()
            free, total = torch.cuda.mem_get_info()
            return int(min(wanted, free - total // 20))

        def compile_or_warm_up_model(self) -> Any:
            warm_up(self)
            capture(self)
            return super().compile_or_warm_up_model()

    return LayerWorker


_GPUS_OF_THE_OTHERS = 1024
"""More than any deployment has on one host."""


def stand_alone() -> None:
    """Let a worker of a deployment of many GPUs run alone on a real one.

    Its collectives come to nothing. Call it before the engine's config is made.
    """
    platform = type(vllm.platforms.current_platform)
    platform.get_device_communicator_cls = classmethod(lambda _: COMMUNICATOR)
    platform.device_count = classmethod(lambda _: _GPUS_OF_THE_OTHERS)


def gdn_layers(vllm_config: Any) -> list[Any]:
    """Return the layers of the model that hold gated delta net (or KDA) states."""
    from vllm.model_executor.layers.mamba.abstract import MambaBase
    from vllm.v1.attention.backends.gdn_attn import GDNAttentionBackend

    layers = vllm_config.compilation_config.static_forward_context.values()
    return [
        layer
        for layer in layers
        if isinstance(layer, MambaBase) and layer.get_attn_backend() is GDNAttentionBackend
    ]


def own_parameters(vllm_config: Any) -> list[tuple[str, torch.Tensor]]:
    """Return names and values of what GDN layers compute with outside linear layers.

    That is gates, norms and convolutions, which vLLM keeps as linear layers whose weight is no
    matrix; of one layer of each geometry.
    """
    from vllm.model_executor.layers.linear import LinearBase

    return [
        (name, parameter.data)
        for layer in _distinct(gdn_layers(vllm_config))
        for module in layer.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.is_floating_point()
        and not (isinstance(module, LinearBase) and parameter.ndim == 2)
    ]


def _leave_out_other_attention(runner: Any) -> None:
    """Build metadata for GDN layers only: that of other attention runs operators of the GPU."""
    from vllm.v1.attention.backends.gdn_attn import GDNAttentionMetadataBuilder

    for group in itertools.chain.from_iterable(runner.attn_groups):
        for builder in group.metadata_builders:
            if not isinstance(builder, GDNAttentionMetadataBuilder):
                for name in (
                    "build",
                    "build_for_cudagraph_capture",
                    "build_for_drafting",
                    "update_block_table",
                ):
                    setattr(builder, name, lambda *_, **__: None)


def _distinct(layers: Sequence[Any]) -> list[Any]:
    """Return one layer of each geometry."""
    by_geometry = {
        (type(layer), tuple(layer.get_state_shape()), tuple(layer.get_state_dtype())): layer
        for layer in reversed(layers)
    }
    return list(reversed(by_geometry.values()))


def _replace_compute(runner: Any) -> None:
    """Leave of the model's computation what its GDN layers do, and of that the Triton launches."""
    layers = gdn_layers(runner.vllm_config)
    if not layers and STAGE.number == 0:
        raise _no_gdn_layers(runner.vllm_config)
    if any(RELEASE.prefill_backend(layer) == "cutedsl" for layer in layers):
        raise UnsupportedError(
            "--gdn-prefill-backend cutedsl cannot be traced", "--gdn-prefill-backend triton"
        )
    distinct = _distinct(layers)
    for layer in distinct:
        _replace_arithmetic(layer)
        second_runner.move_states_as_on_gpu(layer)
    model = runner.get_model()
    hidden_size = runner.model_config.get_hidden_size()
    vocabulary = runner.model_config.get_vocab_size()
    compiled = _has_graph_of_any_batch(runner.vllm_config.compilation_config)

    def forward(input_ids: Any = None, positions: Any = None, *_: Any, **kwargs: Any) -> Any:
        embeds = kwargs.get("inputs_embeds")
        tokens = (input_ids if embeds is None else embeds).shape[0]
        hidden_states = torch.empty(tokens, hidden_size, dtype=runner.dtype, device=runner.device)
        BATCH.in_layers = True
        with _InductorLayout() if compiled else contextlib.nullcontext():
            for layer in distinct:
                _call_layer(layer, hidden_states, positions)
        BATCH.in_layers = False
        return hidden_states

    def compute_logits(hidden_states: torch.Tensor, *_: Any) -> torch.Tensor:
        return hidden_states.new_empty(hidden_states.shape[0], vocabulary)

    lay_out = runner.initialize_kv_cache

    def initialize_kv_cache(*args: Any, **keywords: Any) -> None:
        lay_out(*args, **keywords)
        _leave_out_other_attention(runner)

    runner.initialize_kv_cache = initialize_kv_cache
    model.forward = forward
    model.compute_logits = compute_logits
    if _has_second_runner(runner.vllm_config):
        turn = itertools.count()
        second_runner.replace_sampling(runner, lambda: ACCEPTED.next(next(turn)))
        return
    runner._sample = _sampler(runner)
    drafter: Any = getattr(runner, "drafter", None)
    if hasattr(drafter, "prepare_next_token_ids_padded"):  # others draft on the host, by themselves
        drafter.dummy_run = lambda *_, **__: None
        runner.propose_draft_token_ids = _drafter(runner)


def _sampler(runner: Any) -> Any:
    """Return a sampler that accepts as many draft tokens as the workload says."""
    from vllm.v1.outputs import SamplerOutput

    turn = itertools.count()
    like = {"dtype": torch.int32, "device": runner.device}

    def sample(logits: torch.Tensor, spec_decode_metadata: Any) -> Any:
        runner.input_batch.update_async_output_token_ids()
        requests = runner.input_batch.num_reqs
        if spec_decode_metadata is None:
            tokens = torch.zeros(requests, 1, **like)
        else:
            width = spec_decode_metadata.max_spec_len + 1
            tokens = torch.full((requests, width), -1, **like)
            for row, drafted in zip(tokens, spec_decode_metadata.num_draft_tokens, strict=True):
                row[: min(drafted, ACCEPTED.next(next(turn))) + 1] = 0
        return SamplerOutput(sampled_token_ids=tokens, logprobs_tensors=None)

    return sample


def _drafter(runner: Any) -> Any:
    """Return a drafter that always proposes token 0."""
    like = {"dtype": torch.int32, "device": runner.device}

    prepare = _next_tokens(runner)

    def propose(*step: Any) -> torch.Tensor:
        sampled_token_ids, common_attn_metadata = step[1], step[7]
        requests = runner.input_batch.num_reqs
        if isinstance(sampled_token_ids, torch.Tensor):
            given = {
                "common_attn_metadata": common_attn_metadata,
                "sampled_token_ids": sampled_token_ids,
                "requests": runner.requests,
                "gpu_input_batch": runner.input_batch,
                "discard_request_mask": runner.discard_request_mask.gpu,
            }
            wanted = inspect.signature(prepare).parameters  # 0.18 wants the metadata too
            known = {name: value for name, value in given.items() if name in wanted}
            runner._copy_valid_sampled_token_count(*prepare(**known))
        return torch.zeros(requests, runner.num_spec_tokens, **like)

    return propose


def _next_tokens(runner: Any) -> Any:
    """Return how a drafter finds the tokens to go on from: its launches, and what they answer.

    vLLM asks the drafter itself where a request is too near the end of the model for drafts.
    """
    real = runner.drafter.prepare_next_token_ids_padded
    like = {"dtype": torch.int32, "device": runner.device}

    @functools.wraps(real)
    def prepare(*args: Any, **keywords: Any) -> tuple[torch.Tensor, torch.Tensor]:
        given = inspect.signature(real).bind(*args, **keywords).arguments
        real(*args, **keywords)
        requests = runner.input_batch.num_reqs
        counts = (given["sampled_token_ids"][:requests] >= 0).sum(dim=1, dtype=torch.int32)
        return torch.zeros(requests, **like), counts

    runner.drafter.prepare_next_token_ids_padded = prepare
    return prepare


def _has_graph_of_any_batch(compilation: Any) -> bool:
    """Return whether torch.compile's Inductor writes the layers, once for every batch size."""
    from vllm.config import CompilationMode

    return (
        compilation.mode == CompilationMode.VLLM_COMPILE
        and compilation.backend in ("", "inductor")
        and 1 not in (compilation.compile_sizes or ())
    )


class _InductorLayout(TorchFunctionMode):
    """Tensors as Inductor hands them to the operators that it calls.

    To one graph for every batch size, one row of a wider tensor is not contiguous: it copies,
    where torch sees that there is one row only. Inside operators torch decides again.
    """

    def __torch_function__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function is torch.Tensor.contiguous and 1 in result.shape:
            return result.clone(memory_format=torch.contiguous_format)
        return result


def _call_layer(layer: Any, hidden_states: torch.Tensor, positions: Any) -> None:
    given = {
        "hidden_states": hidden_states,
        "output": torch.empty_like(hidden_states),
        "positions": positions,
    }
    wanted = inspect.signature(layer.forward).parameters
    with _refusals():
        layer.forward(**{name: given[name] for name in wanted if name in given})


def _without_adapter(layer: Any, x: torch.Tensor, bias: Any = None) -> torch.Tensor:
    """Return what a linear layer with a LoRA adapter has without it."""
    return layer.quant_method.apply(layer, x, bias)  # type: ignore[no-any-return]


def _replace_arithmetic(layer: Any) -> None:
    """Make linear layers, and a norm that is no kernel, return memory of their result's shape."""
    from vllm.model_executor.layers.layernorm import RMSNormGated
    from vllm.model_executor.layers.linear import LinearBase

    class Shapes:
        """A linear method that knows its shapes only."""

        def __init__(self, features: int) -> None:
            self.features = features

        def apply(self, layer: Any, x: torch.Tensor, bias: Any = None) -> torch.Tensor:
            return x.new_empty(*x.shape[:-1], self.features)

    for module in layer.modules():
        if isinstance(module, LinearBase):
            features = getattr(module, "output_size_per_partition", module.output_size)
            module.quant_method = Shapes(features)
        elif isinstance(getattr(module, "base_layer", None), LinearBase):
            module.apply = functools.partial(_without_adapter, module.base_layer)
        elif isinstance(module, RMSNormGated) and module._forward_method == module.forward_native:
            module._forward_method = lambda x, *_, **__: torch.empty_like(x)
