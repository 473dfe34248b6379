"""Prefill steps of a planned deployment, driven in this process and captured."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from prewarm.core.capture import Capture, Step
from prewarm.core.errors import InputError
from prewarm.core.manifest import Manifest
from prewarm.core.target import target_named
from prewarm.core.tunings import Size
from prewarm.device.toolchain import read_toolchain
from prewarm.trace import vllm_seam
from prewarm.trace.agreement import (
    Budget,
    check_kernels,
    check_keys,
    check_size,
    check_toolchain,
    planned_model,
)
from prewarm.trace.captor import Captor
from prewarm.trace.capture import CaptureRequest
from prewarm.trace.engine import Engine
from prewarm.trace.noise import Noise, in_unwritten_memory
from prewarm.trace.workloads import Arrival, Workload

_GROUPS = 16
"""More groups of layers than share the blocks of any model's KV cache."""
_DECAY = -1.0
"""Mean of what gates hold: a state then lasts for some ten tokens."""
_SPREAD = 0.5
"""Standard deviation of parameters."""


def capture_steps(request: CaptureRequest, progress: Callable[[str], object]) -> Capture:
    """Return the steps of `request`, captured in this process, which is the target already.

    Raises what `prewarm.trace.capture.capture` raises.
    """
    manifest = request.manifest
    args = vllm_seam.parse_serve_args(manifest.deployment.serve_args)
    source = planned_model(manifest.deployment.model, request.model or args.model)
    budget = vllm_seam.budget(vllm_seam.engine_config(args, source.directory, None))
    for size in request.sizes:
        check_size(size, budget)
    progress("starting vLLM's engine")
    captor = Captor(request.search)
    engine = Engine(args, source.directory, captor, _blocks(manifest, budget, request.sizes))
    check_toolchain(manifest.toolchain, read_toolchain(target_named(manifest.deployment.target)))
    noise = Noise()
    _draw_parameters(engine, noise)
    steps = []
    for size in request.sizes:
        step = _step(engine, captor, noise, size)
        check_kernels(manifest, captor.kernels.values())
        check_keys(manifest, step)
        steps.append(step)
        progress(f"{step.tokens} tokens over {step.sequences}: {len(step.launches)} launches")
    return Capture(
        manifest=manifest.digest, kernels=tuple(captor.kernels.values()), steps=tuple(steps)
    )


def _blocks(manifest: Manifest, budget: Budget, sizes: Iterable[Size]) -> int:
    """Return as few blocks of KV cache as will do: whoever replays a step allocates them.

    vLLM wants one for each sequence that a CUDA graph may hold, and enough for its longest
    request.
    """
    block = int(str(manifest.geometry["block_size"]))
    states = _GROUPS * (1 + budget.draft_tokens)
    longest = -(-budget.model_length // block) + states
    steps = (_GROUPS * (size.tokens // block) + states * size.sequences for size in sizes)
    return min(max(budget.sequences, longest, *steps) + 1, manifest.trace.gpu_blocks[0])


def _draw_parameters(engine: Engine, noise: Noise) -> None:
    """Give what GDN layers compute with values of a moderate scale."""
    for name, values in vllm_seam.own_parameters(engine.config):
        noise.fill(values, _DECAY if name in vllm_seam.GATES else 0.0, _SPREAD)


def _step(engine: Engine, captor: Captor, noise: Noise, size: Size) -> Step:
    """Return the first step of requests of `size` that reaches an autotuned kernel."""
    each, more = divmod(size.tokens, size.sequences)
    prompts = [each + 1] * more + [each] * (size.sequences - more)
    arrivals = tuple(Arrival(prompt=prompt, output=1) for prompt in prompts)
    captor.begin()
    with in_unwritten_memory(noise):
        engine.drive_until(captor.reached, Workload(kind="prefill", arrivals=arrivals))
    step = captor.step
    if step is None:
        raise InputError(
            f"{size.tokens} tokens over {size.sequences} sequences launch no autotuned kernel",
            "leave the size out: sequences of one token are not prefilled",
        )
    as_asked = (step.tokens, step.sequences) == (size.tokens, size.sequences)
    return step if as_asked else msgspec.structs.replace(step, asked=size)
