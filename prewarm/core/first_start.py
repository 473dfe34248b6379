"""What the first start with a cache still does, in words."""

from __future__ import annotations

from prewarm.core.manifest import Manifest
from prewarm.core.selection import Selection
from prewarm.core.tuning_keys import tuning_keys

_BENCHMARK = 0.11
"""Seconds that Triton's autotuner spends on one candidate, on an H100."""


def first_start(manifest: Manifest, selection: Selection | None, unbound: int) -> str:
    """Return what a first start does with the cache of `manifest` and `selection`.

    `unbound` launches are left to it. The sentence goes on after "the first start".
    """
    keys = tuning_keys(manifest, selection)
    missing = [key for key in keys if key.winner is None]
    work = []
    if missing:
        candidates = sum(len(key.candidates) for key in missing)
        seconds = max(1, round(candidates * _BENCHMARK))
        work.append(
            f"benchmarks the candidates of {len(missing)} of {len(keys)} tuning keys, {candidates}"
            f" in all (about {seconds} s on an H100), because there are no tunings of them:"
            " `prewarm tune` makes some where the GPU is"
        )
    if unbound:
        work.append(f"compiles {unbound} unbound launches")
    told = "; ".join(work) or "compiles nothing and benchmarks nothing"
    if selection is None or len(missing) == len(keys):
        return told
    return f"{told}; winners were measured on {tuned_on(selection)}"


def tuned_on(selection: Selection) -> str:
    """Return the GPU of the tunings, marked where it is not the one that the cache is for."""
    return f"{selection.gpu}, another GPU than the target" if selection.foreign else selection.gpu
