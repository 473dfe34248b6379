"""Several tunings as one: nothing overrules anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from prewarm.core.digest import canonical_json
from prewarm.core.errors import InputError
from prewarm.core.selection import tuning_id
from prewarm.core.tunings import KernelTunings, KeyTuning, Run, Tunings, key_text

_ALIKE = {"gpu": "GPU", "arch": "architecture", "triton": "Triton"}


def merge(tunings: Sequence[Tunings]) -> Tunings:
    """Return all of `tunings` as one document, the same in whatever order they are given.

    Runs stand in the order of their dates, kernels and keys in that of their names; what
    several of `tunings` hold stands there once. Raises InputError where they are of different
    GPUs or Tritons, where a kernel's source or candidates differ, and where a key was measured
    twice: which of the two counts is for whoever merges to say. One alone stays as it is.
    """
    _check_alike(tunings)
    if len(tunings) == 1:
        return tunings[0]
    runs = _runs(tunings)
    places = {canonical_json(run): place for place, run in enumerate(runs)}
    kernels = [kernel for each in tunings for kernel in _rebased(each, places)]
    _check_kernels(kernels, runs)
    _check_keys(kernels, runs)
    names = sorted({kernel.name for kernel in kernels})
    return msgspec.structs.replace(
        tunings[0],
        runs=runs,
        kernels=tuple(_merged([k for k in kernels if k.name == name]) for name in names),
    )


def _check_alike(tunings: Sequence[Tunings]) -> None:
    if not tunings:
        raise InputError("no tunings to merge", "prewarm merge A B -o FILE")
    found = {name: sorted({str(getattr(each, name)) for each in tunings}) for name in _ALIKE}
    different = [
        f"{_ALIKE[name]}: {' and '.join(values)}" for name, values in found.items() if values[1:]
    ]
    if different:
        raise InputError(
            "only tunings of one GPU and one Triton can be merged; these differ in "
            + "; ".join(different),
            "keep one file for each GPU and Triton",
        )


def _runs(tunings: Sequence[Tunings]) -> tuple[Run, ...]:
    unique = {canonical_json(run): run for each in tunings for run in each.runs}
    ordered = sorted(unique.items(), key=lambda item: (item[1].date, item[0]))
    return tuple(run for _, run in ordered)


def _rebased(tunings: Tunings, places: Mapping[bytes, int]) -> Iterator[KernelTunings]:
    """Yield the kernels of `tunings`, their keys with the place of their run among all runs."""
    for kernel in tunings.kernels:
        keys = tuple(
            msgspec.structs.replace(key, run=places[canonical_json(tunings.runs[key.run])])
            for key in kernel.keys
        )
        yield msgspec.structs.replace(kernel, keys=keys)


def _check_kernels(kernels: Sequence[KernelTunings], runs: Sequence[Run]) -> None:
    first: dict[str, KernelTunings] = {}
    changed = []
    for kernel in kernels:
        other = first.setdefault(kernel.name, kernel)
        if (kernel.source, kernel.candidates) != (other.source, other.candidates):
            what = "source" if kernel.source != other.source else "list of candidates"
            changed.append(f"{kernel.name}: another {what} in {_where((other, kernel), runs)}")
    if changed:
        raise InputError(
            "these tunings are of different kernels of the same name:\n  " + "\n  ".join(changed),
            "tune again with the vLLM that will serve, and leave older tunings out",
        )


def _check_keys(kernels: Sequence[KernelTunings], runs: Sequence[Run]) -> None:
    first: dict[bytes, KeyTuning] = {}
    twice = []
    for kernel in kernels:
        for key in kernel.keys:
            other = first.setdefault(tuning_id(kernel.name, key.key), key)
            if canonical_json(key) != canonical_json(other):
                names = " and ".join(sorted((_name(runs[other.run]), _name(runs[key.run]))))
                twice.append(f"{kernel.name}, {key_text(key.key)}: {names}")
    if twice:
        raise InputError(
            "measured twice, and nothing says which counts:\n  " + "\n  ".join(sorted(twice)),
            "leave one of the files out, or tune again for a deployment without that key",
        )


def _merged(kernels: Sequence[KernelTunings]) -> KernelTunings:
    keys = {canonical_json(key.key): key for kernel in kernels for key in kernel.keys}
    return msgspec.structs.replace(kernels[0], keys=tuple(keys[each] for each in sorted(keys)))


def _where(kernels: Sequence[KernelTunings], runs: Sequence[Run]) -> str:
    places = {key.run for kernel in kernels for key in kernel.keys}
    return " and ".join(sorted(_name(runs[place]) for place in places)) or "tunings without keys"


def _name(run: Run) -> str:
    return f"{' '.join(run.serve_args)} of {run.date}"
