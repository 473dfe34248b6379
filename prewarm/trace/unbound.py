"""Arguments known only at deploy time: those that change with the number of GPU blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
from msgspec import UNSET

from prewarm.core.digest import canonical_json
from prewarm.core.manifest import Argument, Constexpr, Kernel, Specialization, Unbound

FOLLOWS = "number of GPU blocks"
PIN = "--num-gpu-blocks-override"


Moved = Mapping[str, tuple[frozenset[bytes], frozenset[bytes]]]
"""Argument name to the values seen here only and there only."""


def unbind(
    kernels: Sequence[Kernel], others: Sequence[Kernel], blocks: tuple[int, int]
) -> tuple[tuple[Kernel, ...], tuple[Unbound, ...]]:
    """Return `kernels` with their unbound arguments marked, and what is unbound.

    `others` are the kernels of the same workloads with another number of GPU blocks. A
    compile-time value that was seen with one number only is unbound; a specialization that
    is only there because a plain integer fell into another class is added.
    """
    there = {kernel.name: kernel for kernel in others}
    merged = []
    seen: dict[str, dict[str, Constexpr]] = {}
    users: dict[str, list[str]] = {}
    for kernel in kernels:
        other = there.get(kernel.name, kernel)
        moved = _moved(kernel, other)
        merged.append(_merge(kernel, other, moved))
        for name, (here_only, there_only) in moved.items():
            users.setdefault(name, []).append(kernel.name)
            values = (min(here_only), min(there_only))
            decoded = [msgspec.json.decode(value) for value in values]
            seen.setdefault(name, dict(zip(map(str, blocks), decoded, strict=True)))
    unbound = tuple(
        Unbound(
            argument=name, kernels=tuple(users[name]), follows=FOLLOWS, seen=seen[name], pin=PIN
        )
        for name in sorted(users)
    )
    return tuple(merged), unbound


def _values(kernel: Kernel) -> dict[str, frozenset[bytes]]:
    values: dict[str, set[bytes]] = {}
    for one in kernel.specializations:
        for name, argument in one.arguments.items():
            if argument.value is not UNSET and not argument.equal_to_1:
                values.setdefault(name, set()).add(canonical_json(argument.value))
    return {name: frozenset(found) for name, found in values.items()}


def _moved(kernel: Kernel, other: Kernel) -> Moved:
    here, there = _values(kernel), _values(other)
    apart = {
        name: (here[name] - there[name], there[name] - here[name])
        for name in here.keys() & there.keys()
    }
    return {name: pair for name, pair in apart.items() if all(pair)}


def _merge(kernel: Kernel, other: Kernel, moved: Moved) -> Kernel:
    marked = [_mark(one, moved) for one in (*kernel.specializations, *other.specializations)]
    alike: dict[bytes, list[Specialization]] = {}
    for one in marked:
        alike.setdefault(identity_of(one), []).append(one)
    merged = tuple(_one_of(alike[key]) for key in sorted(alike))
    return msgspec.structs.replace(kernel, specializations=merged)


def _one_of(alike: Sequence[Specialization]) -> Specialization:
    """Return the first, reached by whatever reaches any of them."""
    via = tuple(sorted(set().union(*(one.via for one in alike))))
    return msgspec.structs.replace(alike[0], via=via)


def _mark(one: Specialization, moved: Moved) -> Specialization:
    def is_unbound(name: str, argument: Argument) -> bool:
        if name not in moved or argument.value is UNSET:
            return False
        here_only, there_only = moved[name]
        return canonical_json(argument.value) in here_only | there_only

    arguments = {
        name: Argument(type="constexpr", unbound=True) if is_unbound(name, argument) else argument
        for name, argument in one.arguments.items()
    }
    return msgspec.structs.replace(one, arguments=arguments)


def identity_of(one: Specialization) -> bytes:
    """Return what tells `one` from the other specializations of its kernel."""
    arguments = [[name, argument.identity()] for name, argument in one.arguments.items()]
    return canonical_json([arguments, one.options, list(one.tuning_key.items())])
