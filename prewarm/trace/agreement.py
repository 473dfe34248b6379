"""What captured steps must share with their manifest: model, toolchain, sizes, kernels and keys."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from prewarm.core.capture import Step, TunedKernel
from prewarm.core.errors import InputError
from prewarm.core.manifest import Manifest, Model
from prewarm.core.record import Record
from prewarm.core.selection import tuning_id
from prewarm.core.toolchain import Toolchain
from prewarm.core.tunings import Size
from prewarm.trace.model_source import ModelSource, resolve_model

_PLAN_AGAIN = "plan again with this vLLM: prewarm plan …"


class Budget(Record, kw_only=True):
    """What one step of a deployment may hold."""

    tokens: int
    sequences: int
    model_length: int
    """Most tokens of a prompt and its answer."""
    draft_tokens: int


def check_size(size: Size, budget: Budget) -> None:
    """Raise InputError, naming the budget, where no step of the deployment holds `size`."""
    if not 0 < size.sequences <= size.tokens:
        raise InputError(
            f"there is no step of {size.tokens} tokens over {size.sequences} sequences",
            "give each sequence a token or more",
        )
    longest = -(-size.tokens // size.sequences) + 1
    limits = (
        (size.tokens, budget.tokens, "tokens in a step", "--max-num-batched-tokens"),
        (size.sequences, budget.sequences, "sequences in a step", "--max-num-seqs"),
        (longest, budget.model_length, "tokens of prompt and answer", "--max-model-len"),
    )
    for wanted, most, unit, argument in limits:
        if wanted > most:
            raise InputError(
                f"{size.tokens} tokens over {size.sequences} sequences are too much for this"
                f" deployment: its budget is {most} {unit}",
                f"leave the size out, or plan again with a larger {argument}",
            )


def planned_model(planned: Model, named: str) -> ModelSource:
    """Return the model `planned`, found as `named` on this machine.

    Raises InputError when it is not there or has another config.json, and what
    `prewarm.trace.model_source.resolve_model` raises.
    """
    if planned.revision is None and not Path(named).expanduser().is_dir():
        raise InputError(
            f"the manifest was planned from a local model, and there is no directory {named} here",
            f"name the directory that holds the config.json of {planned.name}: --model DIR",
        )
    source = resolve_model(named, planned.revision)
    if source.config != planned.config:
        raise InputError(
            f"{named} has another config.json than the planned {planned.name}"
            f" ({source.config}, not {planned.config})",
            "name the planned model: --model DIR; or plan again with this one",
        )
    return source


def check_toolchain(planned: Toolchain, here: Toolchain) -> None:
    """Raise InputError with what differs between the toolchain `here` and the `planned` one."""
    if differences := planned.differences(here):
        rows = "\n".join(f"  {name}: {ours}, here {theirs}" for name, ours, theirs in differences)
        raise InputError(
            f"the manifest was planned with another toolchain:\n{rows}",
            "tune where it was planned, or plan again here",
        )


def check_kernels(manifest: Manifest, kernels: Collection[TunedKernel]) -> None:
    """Raise InputError where one of `kernels` is not as it was planned."""
    planned = {kernel.name: (kernel.source, kernel.candidates) for kernel in manifest.kernels}
    for kernel in kernels:
        if planned.get(kernel.name) != (kernel.source, kernel.candidates):
            raise InputError(
                f"the manifest was planned with another {kernel.name}:"
                " its source or its candidates differ",
                _PLAN_AGAIN,
            )


def check_keys(manifest: Manifest, step: Step) -> None:
    """Raise InputError where `step` asks for a tuning key that was not planned."""
    planned = {
        tuning_id(kernel.name, one.tuning_key)
        for kernel in manifest.kernels
        for one in kernel.specializations
    }
    for launch in step.launches:
        asked = tuning_id(launch.kernel, launch.tuning_key)
        if launch.tuning_key and asked not in planned:
            raise InputError(
                f"{step.tokens} tokens over {step.sequences} sequences ask for a tuning key of"
                f" {launch.kernel} that was not planned: {launch.tuning_key}",
                _PLAN_AGAIN,
            )
