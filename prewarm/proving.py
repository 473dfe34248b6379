"""The steps of `prewarm prove`: which cache, which GPU, the processes, the verdict."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from prewarm.core.cache import FLASHINFER_PYTHON
from prewarm.core.errors import HostError, InputError, MismatchError
from prewarm.output import Output

if TYPE_CHECKING:
    from prewarm.core.cache import CacheManifest
    from prewarm.prove.prove import Plan


def prove(out: Output, source: Path, serve_args: tuple[str, ...], plan: Plan) -> int:
    """Write what serving does with the cache installed at `source`; return 1 if it works in vain.

    Raises InputError for a cache that is not installed or not sound, HostError without a GPU,
    MismatchError on one of another architecture.
    """
    from prewarm import render
    from prewarm.prove.prove import prove as prove_
    from prewarm.ship.environment import environment
    from prewarm.ship.verify import held, verify_directory

    unsound = [finding for finding in verify_directory(source) if not finding.note]
    if unsound:
        raise InputError(f"{source} is not sound: {unsound[0]}", f"prewarm verify {source}")
    cache = held(source)
    if cache.entries is None:
        raise InputError(
            f"{source} is an image: a process serves from where one is installed",
            f"prewarm install {source} --into DIR",
        )
    if plan.plays is None:
        _check_gpu(cache.manifest)
    python = None
    if cache.manifest.flashinfer is not None:
        python = str(cache.entries.parent / FLASHINFER_PYTHON)
    variables = environment(str(cache.entries), cache.manifest.toolchain, python)
    with out.progress("serving") as advance:
        found = prove_(
            cache.entries,
            serve_args,
            {each.name: each.within(os.environ) for each in variables},
            plan,
            advance,
        )
    out.product(render.proof(found), {"holds": found.holds, **msgspec.to_builtins(found)})
    return int(not found.holds)


def _check_gpu(cached: CacheManifest) -> None:
    from prewarm.device.gpu import visible_gpus

    gpus = visible_gpus()
    if not gpus:
        raise HostError(
            "there is no GPU here",
            "run prewarm prove where the GPU is; without one: prewarm verify",
        )
    if gpus[0].arch != cached.target_arch:
        raise MismatchError(
            f"the cache was built for sm_{cached.target_arch} ({cached.deployment.target}),"
            f" and this is a {gpus[0].name}",
            "prewarm build --target TARGET -- SERVE ARGS, for this GPU",
        )
