"""The private names of vLLM's second model runner, of 0.31 on, and what is replaced in it.

Its kernels keep the state of requests on the GPU. They do not run here, so nothing may be read
back that they would have written: the sampler and the drafter answer from the workload alone.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

Accepts = Callable[[], int]
"""Returns how many draft tokens the next request accepts."""


def share_host_memory() -> None:
    """Let buffers that the GPU reads in the host's memory be that memory."""
    from vllm.utils import torch_utils
    from vllm.v1.worker.gpu import buffer_utils

    # torch lifts the mode that pins nothing inside operators; 0.32 asks a function, 0.31 did not.
    torch_utils.PIN_MEMORY = False
    torch_utils.is_pin_memory_available = lambda: False
    buffer_utils.get_accelerator_view_from_cpu_tensor = lambda tensor: tensor


class _OnGpu(TorchFunctionMode):
    """Tensors say that they are on the GPU."""

    def __torch_function__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function == torch.Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
            return True
        return function(*args, **(kwargs or {}))


def answer_as_on_gpu() -> None:
    """Let what asks a tensor for its device hear that it is on the GPU."""
    from vllm.v1.worker import mamba_utils

    states = mamba_utils.MambaSpecDecodeGPUContext
    indices = states.compute_aligned_state_indices
    answered = _as_on_gpu(indices)

    @functools.wraps(indices)
    def compute_aligned_state_indices(*args: Any, **keywords: Any) -> torch.Tensor:
        found: torch.Tensor = answered(*args, **keywords)
        return found.zero_()  # the host indexes states with what a kernel would have written

    states.compute_aligned_state_indices = compute_aligned_state_indices


_MOVES = ("gather_initial_states", "scatter_states")
"""What a layer's module imports to read and write states, and what insists on the GPU."""


def move_states_as_on_gpu(layer: Any) -> None:
    """Let the functions that `layer` moves its states with hear that they are on the GPU."""
    module = sys.modules[type(layer).__module__]
    for name in _MOVES:
        move = getattr(module, name, None)
        if move is not None and not hasattr(move, "__wrapped__"):
            setattr(module, name, _as_on_gpu(move))


def _as_on_gpu(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def answered(*args: Any, **keywords: Any) -> Any:
        with _OnGpu():
            return function(*args, **keywords)

    return answered


def agree_with_peers(agreed: Callable[[torch.Tensor, int], None]) -> None:
    """Let `agreed(rows, own)` fill in the columns of the data-parallel ranks that are not there."""
    from vllm.distributed.parallel_state import get_dp_group
    from vllm.v1.worker.gpu import dp_utils

    def all_reduce(rows: torch.Tensor, **_: Any) -> None:
        agreed(rows, get_dp_group().rank_in_group)

    dp_utils.dist = types.SimpleNamespace(all_reduce=all_reduce)


def profile(runner: Any) -> None:
    """Run one step of the most tokens without attention, as memory is profiled."""
    runner._dummy_run(runner.max_num_tokens, skip_attn=True, is_profile=True)


def warm_up(worker: Any) -> None:
    """Run the warm-ups of Triton kernels that vLLM runs before capture."""
    from vllm.model_executor.warmup.mamba_triton_warmup import mamba_triton_warmup
    from vllm.model_executor.warmup.qwen_triton_warmup import qwen_triton_warmup
    from vllm.v1.worker.gpu.warmup import warmup_kernels

    runner = worker.model_runner
    if worker.vllm_config.kernel_config.enable_jit_warmup:
        runner.jit_warmup_registry.warmup()
    qwen_triton_warmup(runner, worker.vllm_config.model_config)
    mamba_triton_warmup(runner)
    if worker.vllm_config.kernel_config.enable_jit_warmup:
        warmup_kernels(runner, worker.execute_model, worker.sample_tokens)


def replace_sampling(runner: Any, accepts: Accepts) -> None:
    """Let the runner sample token 0, as many as `accepts` says, and draft token 0."""
    from vllm.v1.worker.gpu.input_batch import get_num_sampled_and_rejected
    from vllm.v1.worker.gpu.sample.output import SamplerOutput

    def sample(_: torch.Tensor, batch: Any, *__: Any) -> Any:
        like = {"dtype": torch.int32, "device": runner.device}
        speculates = batch.num_draft_tokens > 0 and runner.rejection_sampler is not None
        width = runner.num_speculative_steps + 1 if speculates else 1
        counts, rejected = torch.ones(batch.num_reqs, **like), torch.zeros(batch.num_reqs, **like)
        get_num_sampled_and_rejected(
            counts.clone(),
            batch.seq_lens,
            batch.cu_num_logits,
            batch.idx_mapping,
            runner.req_states.prefill_len.gpu,
        )
        for row in range(batch.num_reqs):
            drafted = int(batch.num_draft_tokens_per_req[row]) if speculates else 0
            if _is_inside_its_prompt(batch, row):
                counts[row] = 0
            elif drafted:
                accepted = min(drafted, accepts())
                counts[row] = accepted + 1
                rejected[row] = drafted - accepted
        answer = SamplerOutput(
            sampled_token_ids=torch.zeros(batch.num_reqs, width, **like).long(),
            logprobs_tensors=None,
            num_nans=None,
            num_sampled=counts,
            num_rejected=rejected,
        )
        return answer, counts, rejected

    runner.sample = sample
    if runner.speculator is not None:
        runner.speculator.capture = lambda *_, **__: None
        runner.speculator.propose = _drafter(runner)


def _is_inside_its_prompt(batch: Any, row: int) -> bool:
    """Return whether the step leaves tokens of the prompt for the next, so that none is sampled."""
    done = batch.num_computed_prefill_tokens_np[row] + batch.num_scheduled_tokens[row]
    return bool(done < batch.prefill_len_np[row])


def _drafter(runner: Any) -> Callable[..., torch.Tensor]:
    def propose(*args: Any, input_batch: Any = None, **_: Any) -> torch.Tensor:
        batch = args[0] if args else input_batch
        steps = runner.num_speculative_steps
        return torch.zeros(batch.num_reqs, steps, dtype=torch.int64, device=runner.device)

    return propose
