"""Options of `vllm serve`: those that change no launch, and combinations that vLLM refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prewarm.core.errors import HostError, InputError, UnsupportedError
from prewarm.core.manifest import Manifest
from prewarm.core.manifest_yaml import read_manifest
from prewarm.core.target import target_named
from prewarm.trace.plan import Planner

CONFIGS = "model-configs"
SMALL = f"{CONFIGS}/Qwen3.5-0.8B"
EXPERTS = f"{CONFIGS}/Qwen3.5-35B-A3B"
TRITON = ("--gdn-prefill-backend", "triton")
PINNED = (*TRITON, "--num-gpu-blocks-override", "3000")
MTP = ("--speculative-config", '{"method":"mtp","num_speculative_tokens":2}')
WHOLE = ("--no-enable-chunked-prefill",)
NIXL = ("--kv-transfer-config", '{"kv_connector":"NixlConnector","kv_role":"kv_both"}')

Plan = Callable[..., Manifest]
Planned = Callable[..., Path]


@pytest.fixture(autouse=True)
def _in_the_checkout(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)


@pytest.fixture(scope="module")
def plan() -> Iterator[Plan]:
    """Return a function that plans for an H200, all in one process that imported vLLM once."""
    with Planner() as planner:
        yield lambda *args: planner.plan(args, target_named("h200"), closure=0)


@pytest.mark.parametrize(
    "options",
    [
        ("--no-async-scheduling",),
        ("--language-model-only",),
        ("--enable-lora",),
        ("--max-model-len", "131072"),
        ("--reasoning-parser", "qwen3"),
        ("--enable-sleep-mode",),
    ],
    ids=lambda options: options[0],
)
def test_an_option_that_launches_nothing_changes_nothing(
    planned: Planned, plan: Plan, options: tuple[str, ...]
) -> None:
    """Kernels, what vLLM decided and what is unbound are those of the deployment without it."""
    without = read_manifest(planned("h200", SMALL, *PINNED))
    given = plan(SMALL, *PINNED, *options)

    assert given.kernels == without.kernels
    assert given.geometry == without.geometry
    assert given.unbound == without.unbound


def test_experts_that_are_exchanged_by_a_library_make_steps_small(plan: Plan) -> None:
    """DeepEP's low latency bounds a step, which is read; the library itself need not be here."""
    ways = ("-dp", "2", "--enable-expert-parallel", "--all2all-backend", "deepep_low_latency")

    assert plan(EXPERTS, *PINNED, *ways).geometry["max_num_batched_tokens"] == 256


@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        (SMALL, ("--block-size", "100"), "No valid attention backend found .*block_size not"),
        (SMALL, ("-tp", "3"), r"attention heads \(8\) must be divisible by .* size \(3\)"),
        (SMALL, ("--max-num-seqs", "64", "--max-num-batched-tokens", "32"), r"\(32\) must be gr"),
        (SMALL, (*WHOLE, "--max-num-batched-tokens", "2048"), r"is smaller than max_model_len"),
        (SMALL, ("--dtype", "float32"), "ChunkGatedDeltaRuleFunction does not support float32"),
        (SMALL, ("--max-model-len", "99999999"), r"max_model_len \(99999999\) is greater than"),
        (SMALL, ("--max-num-seqs", "0"), "max_num_seqs Input should be greater than or equal to"),
        (SMALL, ("--mamba-block-size", "100"), "can only be set with --enable-prefix-caching"),
        (SMALL, ("--kv-offloading-size", "4"), "need --enable-prefix-caching to align block sizes"),
        (SMALL, ("--kv-cache-memory-bytes", "1000000"), "larger than the available KV cache mem"),
        (SMALL, ("--enable-expert-parallel",), "Number of experts in the model must be greater"),
        (SMALL, ("--cudagraph-capture-sizes", "0"), "ZeroDivisionError: integer division or mod"),
        (f"{CONFIGS}/Olmo-Hybrid-7B", MTP, "Unsupported speculative method: 'mtp'"),
    ],
    ids=lambda given: given[0] if isinstance(given, tuple) else "",
)
def test_a_combination_that_vllm_refuses_is_refused_in_its_words(
    plan: Plan, model: str, options: tuple[str, ...], reason: str
) -> None:
    """In one line, as bad input."""
    with pytest.raises(InputError, match=rf"^vLLM refuses this deployment: .*{reason}") as refused:
        plan(model, *TRITON, *options)

    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "options",
    [
        ("--kv-cache-dtype", "float32"),
        ("--dtype", "float64"),
        ("--mamba-cache-mode", "some"),
        ("--mamba-ssm-cache-dtype", "fp8"),
    ],
    ids=lambda options: options[0],
)
def test_a_value_that_vllm_does_not_know_is_refused_with_those_it_knows(
    plan: Plan, options: tuple[str, ...]
) -> None:
    """By vLLM's own parser."""
    name, value = options
    said = rf"^vllm serve: error: argument {name}: invalid choice: '{value}' \(choose from '"

    with pytest.raises(InputError, match=said):
        plan(SMALL, *options)


def test_a_library_that_is_not_here_is_named(plan: Plan) -> None:
    """Exit 4: the image that will serve may have it, as it has NIXL."""
    with pytest.raises(HostError, match="NIXL is not available"):
        plan(SMALL, *TRITON, *NIXL)


def test_two_batches_at_a_time_are_unsupported(plan: Plan) -> None:
    """Exit 3, and the option by name."""
    ways = ("-dp", "2", "--enable-expert-parallel", "--enable-dbo")
    backend = ("--all2all-backend", "deepep_low_latency")

    with pytest.raises(UnsupportedError, match="--enable-dbo cannot be traced"):
        plan(EXPERTS, *TRITON, *ways, *backend)
