"""Does a config compute what the others compute? Each runs alone, on equal memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch

from prewarm.core.manifest import Candidate
from prewarm.core.record import Record
from prewarm.tune.replay import Launchable, relative_distance

_FLOOR = {torch.bfloat16: 2.0**-9, torch.float16: 2.0**-11}
_FLOOR_ELSE = 1e-5
_SLACK = 1.1
"""How much further off than the listed ones another config may be."""


class Outcome(Record, kw_only=True):
    """What the first launch of one config showed."""

    deviation: float = 0.0
    """Largest relative distance of its results from those of the first config."""
    floor: float = 0.0
    """A distance that rounding alone explains."""
    failed: str | None = None


def reason_of(error: Exception) -> str:
    """Return `error` as one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def compare_results(
    launch: Launchable,
    reference: Candidate,
    configs: Iterable[tuple[int, Candidate]],
    trying: Callable[[int], object],
) -> Iterator[tuple[int, Outcome]]:
    """Yield what became of each of the numbered `configs`, all of them on the memory as it is.

    `trying` hears the number of each before its launch. Raises what `reference` raises, and
    torch's AcceleratorError when a launch has broken the GPU's context.
    """
    before = _copies(launch)
    _launch(launch, reference)
    wanted = _changed(launch, before)
    for index, config in configs:
        trying(index)
        _restore(launch, before)
        yield index, _compare(launch, config, wanted)
    _restore(launch, before)


def _launch(launch: Launchable, config: Candidate) -> None:
    launch.with_config(config)()
    torch.cuda.synchronize()


def _compare(launch: Launchable, config: Candidate, wanted: Mapping[str, torch.Tensor]) -> Outcome:
    try:
        _launch(launch, config)
    except torch.AcceleratorError:
        raise
    except Exception as error:  # noqa: BLE001 (whatever Triton raises is this config's report)
        return Outcome(failed=reason_of(error))
    return compared({name: (launch.tensors[name], value) for name, value in wanted.items()})


def compared(pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> Outcome:
    """Return how far what was found is off what is wanted, by the name of each result."""
    distances = {name: relative_distance(*pair) for name, pair in pairs.items()}
    for name, distance in distances.items():
        if not math.isfinite(distance):
            return Outcome(failed=f"its result {name} is not finite where that of the list is")
    floors = (_FLOOR.get(wanted.dtype, _FLOOR_ELSE) for _, wanted in pairs.values())
    return Outcome(deviation=max(distances.values(), default=0.0), floor=max(floors, default=0.0))


def _copies(launch: Launchable) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in launch.tensors.items()}


def _restore(launch: Launchable, copies: Mapping[str, torch.Tensor]) -> None:
    for name, copy in copies.items():
        launch.tensors[name].copy_(copy)


def _changed(launch: Launchable, before: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name: tensor.clone()
        for name, tensor in launch.tensors.items()
        if not torch.equal(tensor, before[name])
    }


def judged(outcomes: Sequence[Outcome], listed: int) -> list[str | None]:
    """Return why each config cannot be used: it failed, or its results are too far off.

    The first `listed` are the kernel's own: how far those lie apart is what another may.
    """
    spread = max((o.deviation for o in outcomes[:listed] if o.failed is None), default=0.0)
    return [
        outcome.failed
        if outcome.failed is not None or index < listed
        else _too_far(outcome, spread)
        for index, outcome in enumerate(outcomes)
    ]


def _too_far(outcome: Outcome, spread: float) -> str | None:
    if outcome.deviation <= max(spread * _SLACK, outcome.floor):
        return None
    return f"its results are {outcome.deviation:.2g} off, those of the list {spread:.2g}"
