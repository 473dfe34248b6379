"""The private names of vLLM's second model runner, of 0.32, and what is replaced in it.

Its kernels keep the state of requests on the GPU. They do not run here, so nothing may be read
back that they would have written: the sampler and the drafter answer from the workload alone.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

Accepts = Callable[[], int]
"""Returns how many draft tokens the next request accepts."""


def share_host_memory() -> None:
    """Let buffers that the GPU reads in the host's memory be that memory."""
    from vllm.v1.worker.gpu import buffer_utils

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

    @functools.wraps(indices)
    def compute_aligned_state_indices(*args: Any, **keywords: Any) -> torch.Tensor:
        with _OnGpu():
            found: torch.Tensor = indices(*args, **keywords)
        return found.zero_()  # the host indexes states with what a kernel would have written

    states.compute_aligned_state_indices = compute_aligned_state_indices


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
    qwen_triton_warmup(runner, worker.vllm_config.model_config)
    mamba_triton_warmup(runner)
    if worker.vllm_config.kernel_config.enable_jit_warmup:
        warmup_kernels(runner, worker.execute_model, worker.sample_tokens)


def replace_sampling(runner: Any, accepts: Accepts) -> None:
    """Let the runner sample token 0, as many as `accepts` says, and draft token 0."""
    from vllm.v1.worker.gpu.sample.output import SamplerOutput

    def sample(_: torch.Tensor, batch: Any, *__: Any) -> Any:
        like = {"dtype": torch.int32, "device": runner.device}
        drafted = batch.num_draft_tokens_per_req
        sampled = torch.zeros(batch.num_reqs, runner.decode_query_len, **like).long()
        counts = torch.ones(batch.num_reqs, **like)
        rejected = torch.zeros(batch.num_reqs, **like)
        for row in range(batch.num_reqs if drafted is not None else 0):
            accepted = min(int(drafted[row]), accepts())
            counts[row] = accepted + 1
            rejected[row] = int(drafted[row]) - accepted
        answer = SamplerOutput(
            sampled_token_ids=sampled,
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


def _drafter(runner: Any) -> Callable[..., torch.Tensor]:
    def propose(*args: Any, input_batch: Any = None, **_: Any) -> torch.Tensor:
        batch = args[0] if args else input_batch
        steps = runner.num_speculative_steps
        return torch.zeros(batch.num_reqs, steps, dtype=torch.int64, device=runner.device)

    return propose
