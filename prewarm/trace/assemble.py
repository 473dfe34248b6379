"""Recorded launches -> the kernels of a manifest, in an order that only the launches decide."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prewarm.core.digest import canonical_json
from prewarm.core.manifest import Argument, Constexpr, Kernel, Specialization
from prewarm.trace.recorder import Recorded

_CANDIDATE_OPTIONS = ("num_warps", "num_stages", "num_ctas", "maxnreg")


def kernels_of(recorded: Iterable[Recorded]) -> tuple[Kernel, ...]:
    """Return one kernel per name, each with its specializations, all sorted."""
    by_kernel: dict[tuple[str, str], list[Recorded]] = {}
    for one in recorded:
        by_kernel.setdefault((one.launch.kernel, one.launch.source), []).append(one)
    return tuple(_kernel(found) for _, found in sorted(by_kernel.items()))


def _kernel(found: list[Recorded]) -> Kernel:
    tuning = next((one.tuning for one in found if one.tuning), None)
    return Kernel(
        name=found[0].launch.kernel,
        source=found[0].launch.source,
        tuned_by=tuning.names if tuning else None,
        candidates=tuning.candidates if tuning else (),
        specializations=tuple(_specializations(found)),
    )


def _specializations(found: list[Recorded]) -> list[Specialization]:
    groups: dict[bytes, list[Recorded]] = {}
    for one in found:
        groups.setdefault(_without_candidate(one), []).append(one)
    return [_specialization(groups[key]) for key in sorted(groups)]


def _without_candidate(one: Recorded) -> bytes:
    arguments = {name: a.identity() for name, a in _arguments(one).items()}
    key = one.tuning.key if one.tuning else None
    return canonical_json([list(arguments.items()), _options(one), key])


def _arguments(one: Recorded) -> Mapping[str, Argument]:
    if one.tuning is None:
        return one.launch.arguments
    chosen = one.tuning.candidates[one.tuning.candidate].constexprs
    return {
        name: Argument(type="constexpr", by_candidate=True) if name in chosen else argument
        for name, argument in one.launch.arguments.items()
    }


def _options(one: Recorded) -> dict[str, Constexpr]:
    left_out = _CANDIDATE_OPTIONS if one.tuning else ()
    return {name: v for name, v in one.launch.options.items() if name not in left_out}


def _specialization(group: list[Recorded]) -> Specialization:
    first = group[0]
    tuning = first.tuning
    return Specialization(
        arguments=dict(_arguments(first)),
        options=_options(first),
        tuning_key=dict(tuning.key) if tuning else {},
        candidates=tuple(sorted({one.tuning.candidate for one in group if one.tuning}))
        if tuning
        else None,
        via=tuple(sorted(set().union(*(one.via for one in group)))),
    )
