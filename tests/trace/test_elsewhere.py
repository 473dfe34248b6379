"""What a plan says of GDN prefill that is FlashInfer's, traced with vLLM's own layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from prewarm.core.flashinfer import BLACKWELL, HOPPER, PrefillCall, instances_of
from prewarm.core.manifest_yaml import read_manifest

Planned = Callable[..., Path]

CALL = PrefillCall(
    dtype="bf16",
    state_dtype="fp32",
    query_heads=16,
    value_heads=16,
    head_dim=128,
    gate=True,
    beta=True,
    initial_state=True,
    final_state=True,
    checkpoints=False,
)
"""vLLM hands over a state in any case, zeroes where a sequence begins, and wants no checkpoints."""


@pytest.mark.parametrize(
    ("target", "options", "module", "instance"),
    [
        ("h200", ("--max-num-batched-tokens", "512"), HOPPER, "bf16_g0b1a1i1c0"),
        ("b200", (), BLACKWELL, "bf16_fp32_q16v16d128_i1f1c0"),
    ],
)
def test_the_plan_names_the_one_instance_that_vllm_calls(  # noqa: PLR0917
    planned: Planned,
    model_configs: Path,
    target: str,
    options: tuple[str, ...],
    module: str,
    instance: str,
) -> None:
    """Start-up, prefills, chunks, prefixes and mixed batches call it in one way only."""
    model = str(model_configs / "Qwen3.5-0.8B") if options else "model-configs/Qwen3.5-0.8B"
    (elsewhere,) = read_manifest(planned(target, model, *options)).elsewhere

    assert elsewhere.name == module
    assert elsewhere.calls == (CALL,)
    assert elsewhere.instances == (instance,) == instances_of(module, (CALL,))
    assert elsewhere.present.startswith("nothing prebuilt")


def test_the_cold_cost_on_hopper_is_that_of_all_instances(
    planned: Planned, model_configs: Path
) -> None:
    model = str(model_configs / "Qwen3.5-0.8B")
    (elsewhere,) = read_manifest(
        planned("h200", model, "--max-num-batched-tokens", "512")
    ).elsewhere

    assert "64 CUDA instances" in elsewhere.cold
    assert "97 core-minutes" in elsewhere.cold
    assert "1 asked for here: about 2 core-minutes" in elsewhere.cold
