"""An installed cache -> Proof: the same workloads in fresh processes, without it and with it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from prewarm.core.errors import HostError, UnsupportedError
from prewarm.core.flashinfer import SHIPPED
from prewarm.core.record import Record
from prewarm.core.target import Target
from prewarm.prove.message import Depth, Request, Served
from prewarm.prove.proof import Column, Escape, Idle, Proof, column, escapes_of, idle_of
from prewarm.serve.installed import InstalledCache
from prewarm.serve.recording import read_recording
from prewarm.trace.parent import ask

EMPTY, AGAIN, CACHE = "empty cache", "second start", "installed cache"
_CHILD = "prewarm.prove.child"
_OURS = (
    "PREWARM", "PREWARM_CACHE", "PREWARM_OVERLAY", "PREWARM_ON_MISS", "PREWARM_RECORD",
    "PREWARM_STATE",
    "TRITON_CACHE_DIR", "TRITON_CACHE_MANAGER",
)  # fmt: skip
"""Variables that each process is given anew."""


class Plan(Record, kw_only=True):
    """How much is served."""

    depth: Depth = "layer"
    layers: int | None = None
    """Layers of the whole engine's model; None keeps all."""
    prompt: int = 2000
    repeats: int = 10
    random_workloads: int = 20
    seed: int = 0
    cold: bool = True
    """Whether processes without the cache run too, to compare with."""
    plays: Target | None = None
    """A GPU that is not there: counts are right, times are not."""


def prove(
    entries: Path,
    serve_args: Sequence[str],
    variables: Mapping[str, str],
    plan: Plan | None = None,
    tell: Callable[[str], object] = lambda text: None,
) -> Proof:
    """Return what serving does with the installed cache whose entries are in `entries`.

    `variables` are those that serving needs with it. Every process starts from nothing but what
    a process before it left in Triton's directory; torch.compile's cache is theirs alone, and
    shared. Raises what ends a process: InputError with vLLM's own reason, HostError without a
    GPU, UnsupportedError for what is no GDN model.
    """
    plan = plan or Plan()
    cache = InstalledCache(entries)
    manifest, selection = cache.plan, cache.index.selection
    planned = frozenset(kernel.name for kernel in manifest.kernels)
    columns: list[Column] = []
    escapes: dict[Escape, None] = {}
    idle: tuple[Idle, ...] = ()
    served = None
    whole = plan.depth == "engine"
    with tempfile.TemporaryDirectory(prefix="prewarm-prove-") as scratch:
        root = Path(scratch)
        for name in (EMPTY, AGAIN, CACHE) if plan.cold else (CACHE,):
            tell(f"{name}: starting vLLM")
            record = root / f"{name.replace(' ', '-')}.jsonl"
            given = _environment(name, root, variables)
            request = _request(plan, serve_args, {**given, "PREWARM_RECORD": str(record)})
            served = _serve(request, lambda text, name=name: tell(f"{name}: {text}"))  # type: ignore[misc]
            events = read_recording(record)
            columns.append(column(name, served, events, planned))
            held = selection if name == CACHE else None
            escapes |= dict.fromkeys(escapes_of(manifest, held, events, whole=whole))
            idle = tuple(idle_of(manifest, held, events))
    assert served is not None
    outside = {each.name for each in manifest.elsewhere}
    heard = outside & SHIPPED if plan.plays is None else set()
    return Proof(
        depth=plan.depth,
        gpu=served.gpu,
        workloads=len(served.laps),
        columns=tuple(columns),
        escapes=tuple(escapes),
        idle=idle,
        modules=tuple(sorted(heard)),
        uncounted=tuple(sorted(outside - heard)),
    )


def _environment(name: str, root: Path, variables: Mapping[str, str]) -> dict[str, str]:
    common = {"PREWARM": "1", "VLLM_CACHE_ROOT": str(root / "vllm")}
    if name != CACHE:
        return {**common, "TRITON_CACHE_DIR": str(root / "triton")}
    return {**common, **variables, "PREWARM_OVERLAY": str(root / "overlay")}


def _request(plan: Plan, serve_args: Sequence[str], environment: dict[str, str]) -> Request:
    return Request(
        serve_args=tuple(serve_args),
        depth=plan.depth,
        layers=plan.layers if plan.depth == "engine" else None,
        prompt=plan.prompt,
        repeats=plan.repeats,
        random_workloads=plan.random_workloads,
        seed=plan.seed,
        environment=environment,
        without=_OURS,
        plays=plan.plays,
    )


def _serve(request: Request, tell: Callable[[str], object]) -> Served:
    try:
        return ask(request, Served, tell, module=_CHILD, doing="serving")
    except RuntimeError as error:
        said = "\n".join(getattr(error, "__notes__", ()))
        if "CUDA out of memory" in said or "OutOfMemoryError" in said:
            raise HostError(
                "the GPU has not enough memory for this model",
                "--layers 4 serves its first layers only; without --engine no weights are needed",
            ) from error
        unsupported = UnsupportedError(f"serving failed: {error}")
        unsupported.add_note(said)
        raise unsupported from error
