"""In a worker: FlashInfer's prefill beside Triton's, of the same steps, in interleaved rounds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from prewarm.core.capture import Step
from prewarm.core.errors import InputError
from prewarm.core.flashinfer_file import read_built
from prewarm.core.manifest import Candidate
from prewarm.core.selection import tuning_id
from prewarm.flashinfer import fit, flashinfer_seam
from prewarm.tune.message import (
    FLASHINFER,
    REFERENCES,
    WINNERS,
    Compared,
    Loaded,
    Progress,
    Rival,
    Share,
)
from prewarm.tune.replay import Replay
from prewarm.tune.timing import Stopwatch

_LAUNCHES = 20
"""How often each way is launched to learn what that costs a CPU."""


def compare(
    steps: Sequence[Step], shares: Sequence[Share], rival: Rival, seed: int
) -> Iterator[Loaded | Progress | Compared]:
    """Yield what the prefill of each of `steps` takes, each way, on the GPU of this process.

    Triton's are the kernels from the first autotuned one to the last. Raises InputError where
    FlashInfer here does not take what was built.
    """
    prefill = _loaded(rival)
    began = time.monotonic()
    prefill(steps[0].tokens, steps[0].sequences)()
    torch.cuda.synchronize()
    yield Loaded(seconds=round(time.monotonic() - began, 3))
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    for number, step in enumerate(steps):
        yield Progress(text=f"FlashInfer beside Triton: {step.tokens} x {step.sequences}")
        replay = Replay(step)
        # The first one is what the stopwatch learns from how long a host queues: Triton's is most.
        ways: dict[str, Callable[[], Any]] = {
            WINNERS: _triton(replay, shares, rival.winners),
            REFERENCES: _triton(replay, shares, rival.references),
            FLASHINFER: prefill(step.tokens, step.sequences),
        }
        host = {way: _host_microseconds(launch) for way, launch in ways.items()}
        for way, rounds in _rounds(ways, rival.rounds, cache, seed + number).items():
            yield Compared(step=number, way=way, rounds=rounds, host=host[way])


def _loaded(rival: Rival) -> Callable[[int, int], Callable[[], Any]]:
    directory = Path(rival.directory)
    built = read_built(directory)
    for what, wanted, found in fit.misfits_of(built, fit.surroundings()):
        raise InputError(
            f"{directory}: built for the {what} {found}, here is {wanted}",
            f"prewarm compile MANIFEST --cache-dir CACHE --flashinfer {directory}, in this image",
        )
    flashinfer_seam.use_libraries(directory)
    return lambda tokens, sequences: flashinfer_seam.prefill(rival.call, tokens, sequences)


def _triton(
    replay: Replay, shares: Sequence[Share], configs: Sequence[Candidate]
) -> Callable[[], None]:
    chosen = {
        tuning_id(share.kernel, share.key): config
        for share, config in zip(shares, configs, strict=True)
    }
    tuned = [index for index, _ in replay.tuned()]
    launchers = []
    for each in replay.launches[tuned[0] : tuned[-1] + 1]:
        key = tuning_id(each.launch.kernel, each.launch.tuning_key)
        launchers.append(each.with_config(chosen[key] if each.is_tuned else None))

    def launch() -> None:
        for launcher in launchers:
            launcher()

    return launch


def _host_microseconds(launch: Callable[[], Any]) -> float:
    launch()
    torch.cuda.synchronize()
    taken = []
    for _ in range(_LAUNCHES):
        began = time.perf_counter()
        launch()
        taken.append(time.perf_counter() - began)
        torch.cuda.synchronize()
    return statistics.median(taken) * 1e6


def _rounds(
    ways: Mapping[str, Callable[[], Any]], rounds: int, l2_cache: int, seed: int
) -> dict[str, tuple[float, ...]]:
    watch = Stopwatch([0], l2_cache)
    alive = {0: {number: [launch] for number, launch in enumerate(ways.values())}}
    watch.settle(alive)
    found: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(rounds):
        taken = watch.round(alive, seed * 1000 + turn)
        for number, way in enumerate(ways):
            found[way].append(taken[0, number])
    return {way: tuple(each) for way, each in found.items()}
