"""Configs beyond a kernel's own list: the box around it, nearest first."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

from prewarm.core.manifest import Candidate, Constexpr

MOST = 96
"""Configs beyond a list that are tried by default: one step from the longest list of vLLM's."""

_WARPS = (1, 16)
_STAGES = (1, 6)
_BLOCK = (16, 256)
_REGISTERS = 128
"""A limit to try where the list has none: half of what ptxas may use, twice the blocks."""

Values = dict[str, Constexpr]


def search_space(candidates: Sequence[Candidate], most: int) -> tuple[Candidate, ...]:
    """Return up to `most` configs that are not in `candidates`, the same ones in the same order.

    Each takes its number of warps, of stages, and every meta-parameter from the values in the
    list; where those are powers of two, or stages, from one step more either side as well. A list
    without register limits is tried with one. Those that leave the list's values in the fewest
    parameters come first. A list of one is no choice and stays.
    """
    if len(candidates) < 2:
        return ()
    listed = [_values(candidate) for candidate in candidates]
    seen = {name: [values[name] for values in listed] for name in listed[0]}
    beyond = (each for each in _points(seen) if each not in listed)
    ordered = sorted(beyond, key=lambda each: (_outside(each, seen), _nearest(each, listed)))
    return tuple(_candidate(each) for each in ordered[:most])


def _values(candidate: Candidate) -> Values:
    return {
        **candidate.constexprs,
        "num_warps": candidate.num_warps,
        "num_stages": candidate.num_stages,
        "num_ctas": candidate.num_ctas,
        "maxnreg": candidate.maxnreg,
    }


def _candidate(values: Values) -> Candidate:
    options = {name: values[name] for name in ("num_warps", "num_stages", "num_ctas", "maxnreg")}
    constexprs = {name: value for name, value in values.items() if name not in options}
    return Candidate(constexprs=constexprs, **options)  # type: ignore[arg-type]


def _points(seen: Mapping[str, Sequence[Constexpr]]) -> Iterator[Values]:
    axes = {name: _axis(name, values) for name, values in seen.items()}
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _axis(name: str, seen: Sequence[Constexpr]) -> list[Constexpr]:
    """Return the values to try, those of the list and a step more either side."""
    if name == "maxnreg" and not any(seen):
        return [None, _REGISTERS]
    integers = [value for value in seen if type(value) is int]
    if len(integers) < len(seen) or name in ("num_ctas", "maxnreg"):
        return [value for at, value in enumerate(seen) if value not in seen[:at]]
    return [*sorted({*integers, *_steps(name, integers)})]


def _steps(name: str, seen: Sequence[int]) -> list[int]:
    """Return the values next to those in the list; none where the list does not go in steps."""
    if name == "num_stages":
        steps, (low, high) = (min(seen) - 1, max(seen) + 1), _STAGES
    elif all(map(_is_power_of_two, seen)):
        steps = (min(seen) // 2, max(seen) * 2)
        low, high = _WARPS if name == "num_warps" else _BLOCK
    else:
        return []
    return [step for step in steps if low <= step <= high]


def _is_power_of_two(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0


def _outside(values: Values, seen: Mapping[str, Sequence[Constexpr]]) -> int:
    """Return how many parameters have a value that no listed candidate has."""
    return sum(value not in seen[name] for name, value in values.items())


def _nearest(values: Values, listed: Sequence[Values]) -> int:
    """Return in how many parameters the nearest listed candidate differs."""
    return min(sum(each[name] != value for name, value in values.items()) for each in listed)
