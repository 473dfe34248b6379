"""FlashInfer's GDN prefill while tracing: memory of its results' shapes, and its calls kept.

vLLM's layer imports the function from `flashinfer.gdn_prefill` when it first prefills.
"""

from __future__ import annotations

import sys
import types
from typing import Any

import torch

from prewarm.core.flashinfer import PrefillCall

FOUND: set[PrefillCall] = set()
"""How it was called so far in this process."""

_DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


def answer_for_flashinfer() -> None:
    """Let FlashInfer's GDN prefill keep how it is called in `FOUND`, and compile nothing."""
    module = types.ModuleType("flashinfer.gdn_prefill")
    module.chunk_gated_delta_rule = _chunk_gated_delta_rule  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module


def _chunk_gated_delta_rule(  # noqa: PLR0917 (the signature is FlashInfer's)
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor | None = None,
    beta: torch.Tensor | None = None,
    scale: float | None = None,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    checkpoint_every_n_tokens: int = 0,
    **_: Any,
) -> Any:
    heads, dim = max(q.shape[1], v.shape[1]), q.shape[2]
    state = torch.float32 if initial_state is None else initial_state.dtype
    FOUND.add(
        PrefillCall(
            dtype=_DTYPES.get(q.dtype, str(q.dtype)),
            state_dtype=_DTYPES.get(state, str(state)),
            query_heads=q.shape[1],
            value_heads=v.shape[1],
            head_dim=dim,
            gate=g is not None,
            beta=beta is not None,
            initial_state=initial_state is not None,
            final_state=output_final_state,
            checkpoints=checkpoint_every_n_tokens > 0,
        )
    )
    output = torch.empty_like(v)
    if not output_final_state:
        return output
    if initial_state is not None:
        return output, torch.empty_like(initial_state)
    return output, torch.empty(1, heads, dim, dim, dtype=torch.float32, device=q.device)
