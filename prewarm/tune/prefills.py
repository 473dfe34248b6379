"""What a worker found of FlashInfer beside Triton -> what the tunings say of each backend."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from prewarm.core.child import Refusal
from prewarm.core.errors import InputError, TuneError
from prewarm.core.flashinfer import (
    HOPPER,
    BuiltModule,
    PrefillCall,
    every_hopper_instance,
    instance_of,
)
from prewarm.core.flashinfer_file import read_built
from prewarm.core.manifest import Manifest
from prewarm.core.target import target_named
from prewarm.core.tunings import KeyTuning, Prefill
from prewarm.flashinfer.forecast import forecast
from prewarm.tune.message import (
    FLASHINFER,
    REFERENCES,
    WINNERS,
    Compared,
    Loaded,
    Progress,
    Rival,
    Task,
)
from prewarm.tune.workers import answers


def rival_of(directory: Path, manifest: Manifest, keys: Sequence[KeyTuning] = ()) -> Rival:
    """Return how FlashInfer, as built in `directory`, prefills the deployment of `manifest`.

    `keys` are what was chosen for Triton. Raises InputError where it was built for another GPU
    or for other heads, or was built from a manifest that does not say how it is called.
    """
    built = read_built(directory)
    arch = f"sm_{target_named(manifest.deployment.target).arch}a"
    rebuild = f"prewarm compile MANIFEST --cache-dir CACHE --flashinfer {directory}"
    if built.arch != arch:
        raise InputError(
            f"{directory} was built for {built.arch}, the manifest for {arch}", rebuild
        )
    calls = [each for each in built.calls if not each.checkpoints]
    if not calls:
        raise InputError(f"{directory} does not say how FlashInfer is called", rebuild)
    asked = state_shape(manifest)
    fitting = [each for each in calls if (each.value_heads, each.head_dim) == asked]
    if not fitting:
        heads = ", ".join(str(each.value_heads) for each in calls)
        raise InputError(
            f"{directory} was built for {heads} value heads, the manifest has {asked[0]}", rebuild
        )
    return Rival(
        directory=str(directory.resolve()),
        call=fitting[0],
        winners=tuple(key.winner for key in keys),
        references=tuple(key.reference for key in keys),
    )


def state_shape(manifest: Manifest) -> tuple[int, int]:
    """Return the value heads of one rank and the dimension of a head, as the manifest says them."""
    shape = str(manifest.geometry["ssm_state"]).split()[-1].split("x")
    return int(shape[0]), int(shape[-1])


def prefills(
    task: Task, worker: str, tell: Callable[[str], object] = lambda text: None
) -> tuple[Prefill, ...]:
    """Return what a `worker` measures for `task`, whose rival is given.

    FlashInfer's comes first, then Triton's with the winners, then as vLLM would choose. Raises
    the PrewarmError of the worker, TuneError when it dies.
    """
    assert task.rival is not None
    found: dict[str, list[Compared]] = {FLASHINFER: [], WINNERS: [], REFERENCES: []}
    loaded, how = 0.0, ""
    for message in answers(task, worker):
        match message:
            case Refusal():
                raise message.error()
            case Compared(way=way):
                found[way].append(message)
            case Loaded(seconds=seconds):
                loaded = seconds
            case Progress(text=text):
                tell(text)
            case str():
                how = message
            case _:
                pass
    if any(len(each) != len(task.sizes) for each in found.values()):
        raise TuneError(f"the worker that compared FlashInfer with Triton died: {how}")
    built = read_built(Path(task.rival.directory))
    listed = sum(share.listed for share in task.shares)
    words = {
        FLASHINFER: ("flashinfer", _release(built, task.rival.call), _cold(built, loaded)),
        WINNERS: ("triton", "winners", "with a cache of the winners, nothing"),
        REFERENCES: (
            "triton",
            "vLLM's own",
            f"without a cache, {listed} configs compiled and timed",
        ),
    }
    return tuple(
        _prefill(*words[way], sorted(each, key=lambda one: one.step)) for way, each in found.items()
    )


def _release(built: BuiltModule, call: PrefillCall) -> str:
    return f"FlashInfer {built.flashinfer}, {instance_of(built.module, call)}"


def _cold(built: BuiltModule, loaded: float) -> str:
    first = f"{loaded:.2f} s in its first call here"
    if built.module == HOPPER:
        every = len(every_hopper_instance())
        cost = f"{every} instances: {forecast(HOPPER, every)}"
        return f"without a library, {cost}; with it, {first}"
    return f"compiled in each process: {first}"


def _prefill(backend: str, how: str, cold: str, at_sizes: Sequence[Compared]) -> Prefill:
    middles = [statistics.median(each.rounds) for each in at_sizes]
    quartiles = [statistics.quantiles(each.rounds, n=4) for each in at_sizes]
    return Prefill(
        backend=backend,
        how=how,
        times=tuple(round(middle, 2) for middle in middles),
        spread=tuple(
            round((high - low) / 2 / middle, 4)
            for (low, _, high), middle in zip(quartiles, middles, strict=True)
        ),
        host=tuple(round(each.host, 1) for each in at_sizes),
        cold=cold,
    )
