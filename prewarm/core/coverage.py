"""What a deployment asks for held against what a cache was built for, Triton apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prewarm.core.asked import (
    UNBOUND,
    Asked,
    Difference,
    asked_of,
    config_fields,
    constexpr_text,
    differences,
    distance,
    nearest,
)
from prewarm.core.manifest import Kernel, Launch, Manifest
from prewarm.core.record import Record
from prewarm.core.selection import Selection, selected_launches
from prewarm.core.tuning_keys import TuningKey, tuning_keys


class Lack(Record, kw_only=True):
    """Why a cache has nothing for one thing that is asked for."""

    known: bool
    """Whether the cache has anything of this kernel."""
    source_differs: bool = False
    nearest: str | None = None
    """Digest of the launch in the cache that is most like it."""
    differences: tuple[Difference, ...] = ()
    """In what the nearest differs; where anything else does, the config is left out."""


def launches_lacking(
    plan: Manifest, selection: Selection | None, deployment: Manifest
) -> dict[str, Lack]:
    """Return, by digest, why a cache of `plan` holds no entry for launches of `deployment`.

    Both with the `selection` of the cache. A launch that is known only at start-up, in the plan
    as in the deployment, is none of them; one that is so here alone is, if the cache pins it.
    """
    known: dict[str, list[tuple[Launch, Asked]]] = {}
    for launch in selected_launches(plan, selection):
        known.setdefault(launch.kernel, []).append((launch, asked_of(launch)))
    held = {launch.digest for launches in known.values() for launch, _ in launches}
    there = {kernel.name: kernel for kernel in plan.kernels}
    here = {kernel.name: kernel for kernel in deployment.kernels}
    unpinned = _unbound(plan) & _unbound(deployment)
    lacking = {}
    for launch in selected_launches(deployment, selection):
        if launch.digest in held:
            continue
        kernels = (there.get(launch.kernel), here[launch.kernel])
        lack = _lack(launch, *kernels, known.get(launch.kernel, ()), unpinned)
        if not launch.unbound or _is_pinned_there(lack, unpinned):
            lacking[launch.digest] = lack
    return lacking


def _unbound(manifest: Manifest) -> frozenset[str]:
    return frozenset(each.argument for each in manifest.unbound)


def _lack(
    launch: Launch,
    there: Kernel | None,
    here: Kernel,
    known: Sequence[tuple[Launch, Asked]],
    unpinned: frozenset[str],
) -> Lack:
    """Return why none of `known` is `launch`; `unpinned` arguments are pinned on neither side."""
    if there is None or not known:
        return Lack(known=False)
    asked, config = asked_of(launch), config_fields(there, here)
    bare = _without(asked, config)

    def far(theirs: Asked) -> tuple[int, int, int]:
        # Where it is pinned nowhere, a value was fixed by something else than a pin.
        strangers = sum(
            (asked.get(name) == UNBOUND) != (theirs.get(name) == UNBOUND) for name in unpinned
        )
        return distance(bare, _without(theirs, config)), strangers, distance(asked, theirs)

    found, theirs = min(known, key=lambda each: far(each[1]))
    apart = differences(_without(theirs, config), bare)
    return Lack(
        known=True,
        source_differs=there.source != here.source,
        nearest=found.digest,
        differences=apart or differences(theirs, asked),
    )


def _without(asked: Asked, fields: frozenset[str]) -> Asked:
    return {item: text for item, text in asked.items() if item not in fields}


def _is_pinned_there(lack: Lack, unpinned: frozenset[str]) -> bool:
    """Whether all that differs is known only at start-up here, and pinned in the cache."""
    return bool(lack.differences) and all(
        each.here == UNBOUND and each.field not in unpinned for each in lack.differences
    )


def launches_unasked(
    plan: Manifest, selection: Selection | None, deployment: Manifest
) -> tuple[Launch, ...]:
    """Return the launches that a cache of `plan` holds and `deployment` never asks for."""
    asked = {launch.digest for launch in selected_launches(deployment, selection)}
    return tuple(
        launch
        for launch in selected_launches(plan, selection)
        if launch.digest not in asked and not launch.unbound
    )


class Untuned(Record, kw_only=True):
    """A tuning key of a deployment for which a cache names no winner."""

    asked: TuningKey
    lack: Lack


def keys_lacking(
    plan: Manifest, selection: Selection | None, deployment: Manifest
) -> Iterator[Untuned]:
    """Yield the tuning keys of `deployment` without a winner in `selection`, that of the cache."""
    settled = [each for each in tuning_keys(plan, selection) if each.winner is not None]
    sources = {kernel.name: kernel.source for kernel in plan.kernels}
    here = {kernel.name: kernel.source for kernel in deployment.kernels}
    for each in tuning_keys(deployment, selection):
        if each.winner is not None:
            continue
        asked = _key(each)
        mine = [(None, _key(known)) for known in settled if known.kernel == each.kernel]
        found = nearest(asked, mine)
        lack = Lack(
            known=found is not None,
            source_differs=sources.get(each.kernel) != here[each.kernel],
            differences=() if found is None else differences(found[1], asked),
        )
        yield Untuned(asked=each, lack=lack)


def _key(key: TuningKey) -> Asked:
    return {f"tuning key {name}": constexpr_text(value) for name, value in key.key.items()}
