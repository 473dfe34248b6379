"""vLLM's GDN prefill of 128 tokens, with its real kernels, on a GPU that is not there."""

import importlib
from pathlib import Path

from prewarm.core.target import target_named
from prewarm.device.libcuda import load_stub


def play(target_name: str, *, launchers: bool = False) -> Path:
    """Play the target in this process, for good; return the directory of the stub libcuda."""
    target = target_named(target_name)
    stub = load_stub()
    importlib.import_module("prewarm.device.virtual_torch").install(target)
    seam = importlib.import_module("prewarm.device.triton_seam")
    seam.activate_virtual_driver(target, launchers=launchers)
    return stub


def prefill(value_heads: int = 64) -> None:
    """Do what a GDN layer does in one step, after its convolution."""
    import torch
    from vllm.model_executor.layers.fla.ops.chunk import chunk_gated_delta_rule
    from vllm.model_executor.layers.fla.ops.index import (
        prepare_chunk_indices,
        prepare_chunk_offsets,
    )
    from vllm.model_executor.layers.fla.ops.l2norm import l2norm_fwd

    tokens, heads, dim = 128, 16, 128
    q, k = (torch.zeros(1, tokens, heads, dim, dtype=torch.bfloat16) for _ in range(2))
    v = torch.zeros(1, tokens, value_heads, dim, dtype=torch.bfloat16)
    g = torch.zeros(1, tokens, value_heads)
    beta = torch.zeros(1, tokens, value_heads, dtype=torch.bfloat16)
    cu_seqlens = torch.tensor([0, tokens], dtype=torch.int32)
    l2norm_fwd(q)
    chunk_gated_delta_rule(
        q,
        k,
        v,
        g,
        beta,
        initial_state=torch.zeros(1, value_heads, dim, dim, dtype=torch.bfloat16),
        output_final_state=True,
        cu_seqlens=cu_seqlens,
        chunk_indices=prepare_chunk_indices(cu_seqlens, 64),
        chunk_offsets=prepare_chunk_offsets(cu_seqlens, 64),
    )
