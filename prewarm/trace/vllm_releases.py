"""What differs between releases of vLLM, as far as `vllm_seam` asks for it; it stands here alone.

A release that changed something has an entry that says what, and keeps the rest of the one
before. Whatever has one name in every release, or can be asked in one way, needs no entry.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

from prewarm.core.errors import UnsupportedError


@dataclasses.dataclass(frozen=True)
class Release:
    """The ways of one release of vLLM and of those after it, up to the next entry."""

    since: tuple[int, int]
    argument_parser: Callable[[], Callable[[Any], Any]]
    """Returns the function that puts the options of `vllm serve` on a parser."""
    uses_second_runner: Callable[[Any], bool]
    """Whether a deployment with this VllmConfig is served by the second model runner."""
    second_runner_is_known: bool
    """Whether prewarm can trace that runner."""
    warm_up: Callable[[Any], None]
    """Runs the worker's own warm-up of Triton kernels between memory profiling and capture."""
    start_up_answer: Callable[[], Any]
    """What a worker's `compile_or_warm_up_model` returns when it took no time."""
    states: Callable[[Any], Sequence[torch.Tensor]]
    """The convolution's and the recurrence's state of a GDN layer, for all cache lines."""
    prefill_backend: Callable[[Any], str]
    """What a GDN layer prefills with: `triton`, `flashinfer`, `cutedsl`."""


# --- 0.18 ---------------------------------------------------------------------------------


def _parser_of_openai_server() -> Callable[[Any], Any]:
    from vllm.entrypoints.openai.cli_args import make_arg_parser

    return make_arg_parser  # type: ignore[no-any-return]


def _second_runner_by_environment(_: Any) -> bool:
    from vllm import envs

    return bool(envs.VLLM_USE_V2_MODEL_RUNNER)


def _no_warm_up(_: Any) -> None:
    """Do nothing: GDN kernels are warmed up while memory is profiled, or not at all."""


def _states_of_first_engine(layer: Any) -> Sequence[torch.Tensor]:
    return layer.kv_cache[0]


def _backend_of_operator(layer: Any) -> str:
    operator = getattr(layer, "chunk_gated_delta_rule", None)
    if operator is None or operator._forward_method == operator.forward_native:
        return "triton"
    return "flashinfer"


_0_18 = Release(
    since=(0, 18),
    argument_parser=_parser_of_openai_server,
    uses_second_runner=_second_runner_by_environment,
    second_runner_is_known=False,
    warm_up=_no_warm_up,
    start_up_answer=float,
    states=_states_of_first_engine,
    prefill_backend=_backend_of_operator,
)


# --- 0.19 ---------------------------------------------------------------------------------


def _states(layer: Any) -> Sequence[torch.Tensor]:
    return layer.kv_cache


_0_19 = dataclasses.replace(_0_18, since=(0, 19), states=_states)


# --- 0.20 ---------------------------------------------------------------------------------


def _no_compilation_times() -> Any:
    from vllm.v1.worker.worker_base import CompilationTimes

    return CompilationTimes(language_model=0.0, encoder=0.0)


_0_20 = dataclasses.replace(_0_19, since=(0, 20), start_up_answer=_no_compilation_times)


# --- 0.22 ---------------------------------------------------------------------------------


def _second_runner_by_config(config: Any) -> bool:
    return bool(config.use_v2_model_runner)


def _backend_of_layer(layer: Any) -> str:
    return str(getattr(layer, "gdn_prefill_backend", "triton"))


_0_22 = dataclasses.replace(
    _0_20,
    since=(0, 22),
    uses_second_runner=_second_runner_by_config,
    prefill_backend=_backend_of_layer,
)


# --- 0.25 ---------------------------------------------------------------------------------


def _warm_up_block_tables_and_qwen(worker: Any) -> None:
    from vllm.model_executor.warmup.qwen_triton_warmup import qwen_triton_warmup
    from vllm.model_executor.warmup.v1_block_table_warmup import warm_v1_block_table_kernels

    runner = worker.model_runner
    warm_v1_block_table_kernels(runner.device, runner.max_num_tokens)
    qwen_triton_warmup(runner, worker.vllm_config.model_config)


_0_25 = dataclasses.replace(_0_22, since=(0, 25), warm_up=_warm_up_block_tables_and_qwen)


# --- 0.28 ---------------------------------------------------------------------------------


def _warm_up_blocks_and_qwen(worker: Any) -> None:
    from vllm.model_executor.warmup.qwen_triton_warmup import qwen_triton_warmup
    from vllm.model_executor.warmup.v1_block_table_warmup import warm_v1_block_table_kernels

    runner = worker.model_runner
    warm_v1_block_table_kernels(runner)
    zeroer = getattr(runner, "_kv_block_zeroer", None)
    if zeroer is not None:
        zeroer.warmup(runner.kv_cache_config.num_blocks)
    qwen_triton_warmup(runner, worker.vllm_config.model_config)


_0_28 = dataclasses.replace(_0_25, since=(0, 28), warm_up=_warm_up_blocks_and_qwen)


# --- 0.31 ---------------------------------------------------------------------------------


def _parser_of_launchers() -> Callable[[Any], Any]:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser

    return make_arg_parser  # type: ignore[no-any-return]


_0_31 = dataclasses.replace(
    _0_28,
    since=(0, 31),
    argument_parser=_parser_of_launchers,
    second_runner_is_known=True,
)


# --- all ----------------------------------------------------------------------------------

RELEASES = (_0_18, _0_19, _0_20, _0_22, _0_25, _0_28, _0_31)
"""Oldest first."""

SEEN = ("0.18.1", "0.19.1", "0.20.2", "0.22.1", "0.25.1", "0.28.0", "0.31.0", "0.32.0")
"""Versions that were traced; any other is tried."""


def not_found(version: str, error: ImportError | AttributeError) -> UnsupportedError | None:
    """Return what to say of a name that vLLM `version` lacks, None where it was seen to work."""
    if version.partition("+")[0] in SEEN:
        return None
    return UnsupportedError(
        f"vLLM {version} lacks a name that prewarm needs: {error}",
        f"prewarm was seen to work with vLLM {', '.join(SEEN)}",
    )


def release_of(version: str) -> Release:
    """Return the ways of the vLLM whose version is `version`; newer ones have the newest.

    Raises UnsupportedError for one that is older than all of them.
    """
    major, minor = (int(part) for part in re.findall(r"\d+", version)[:2])
    found = [release for release in RELEASES if release.since <= (major, minor)]
    if not found:
        oldest = ".".join(map(str, RELEASES[0].since))
        raise UnsupportedError(
            f"vLLM {version} cannot be traced: prewarm knows vLLM from {oldest} on",
            "pip install 'prewarm[vllm]'",
        )
    return found[-1]
