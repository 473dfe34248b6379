"""What a launch asks for as words, the known launch most like it, and in what they differ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from msgspec import UnsetType

from prewarm.core.manifest import (
    Argument,
    Candidate,
    Constexpr,
    Kernel,
    Launch,
    Specialization,
    Unbound,
)
from prewarm.core.record import Record

ABSENT = "(absent)"
UNBOUND = "unbound"

Asked = Mapping[str, str]
"""Argument, `option NAME` or `tuning key NAME` to its text."""

_DTYPES = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp32": "float32",
    "fp64": "float64",
    "fp8e4nv": "float8_e4m3fn",
    "fp8e5": "float8_e5m2",
    "i1": "bool",
    "i8": "int8",
    "i16": "int16",
    "i32": "int32",
    "i64": "int64",
    "u8": "uint8",
}
"""Triton's names of element types to torch's, which users of vLLM know."""


class Difference(Record, kw_only=True):
    """One thing that two launches of a kernel ask for differently."""

    field: str
    """An argument, `option NAME` or `tuning key NAME`."""
    known: str
    """What the other one asks for."""
    here: str


def argument_text(argument: Argument) -> str:
    """Return what `argument` asks for: `*bf16 divisible by 16`, `i32 equal to 1`, `128`."""
    if argument.unbound:
        return UNBOUND
    if argument.by_candidate:
        return "by candidate"
    if not isinstance(argument.value, UnsetType):
        return constexpr_text(argument.value)
    if argument.equal_to_1:
        return f"{argument.type} equal to 1"
    return f"{argument.type} divisible by 16" if argument.divisible_by_16 else argument.type


def constexpr_text(value: Constexpr) -> str:
    """Return a compile-time value as text, functions and dtypes by their bare names."""
    if isinstance(value, dict):
        return ", ".join(text.rpartition(":")[2] for text in value.values())
    return str(value)


def candidate_text(candidate: Candidate) -> str:
    """Return `candidate` in one line: `BV=64, num_warps=4, num_stages=2, num_ctas=1`."""
    values = {**candidate.constexprs, **candidate.options()}
    return ", ".join(f"{name}={constexpr_text(value)}" for name, value in values.items())


def asked_of(launch: Launch) -> Asked:
    """Return what one `launch` asks for."""
    return _asked(launch.arguments, launch.options)


def config_fields(*kernels: Kernel) -> frozenset[str]:
    """Return the items of `asked_of` that the config of an autotuned kernel decides."""
    tuned = [kernel for kernel in kernels if kernel.candidates]
    options = (name for kernel in tuned for each in kernel.candidates for name in each.options())
    arguments = (
        name
        for kernel in tuned
        for each in kernel.specializations
        for name, argument in each.arguments.items()
        if argument.by_candidate
    )
    return frozenset({*arguments, *(f"option {name}" for name in options)})


def asked_by(kernel: Kernel, specialization: Specialization) -> Asked:
    """Return what a `specialization` of `kernel` asks for, its candidates as one item."""
    asked = _asked(specialization.arguments, specialization.options)
    for name, value in specialization.tuning_key.items():
        asked[f"tuning key {name}"] = constexpr_text(value)
    if specialization.candidates is not None:
        texts = sorted(candidate_text(kernel.candidates[i]) for i in specialization.candidates)
        asked["candidates after pruning"] = f"{len(texts)}: {'; '.join(texts)}"
    return asked


def _asked(arguments: Mapping[str, Argument], options: Mapping[str, Constexpr]) -> dict[str, str]:
    asked = {name: argument_text(argument) for name, argument in arguments.items()}
    return asked | {f"option {name}": constexpr_text(value) for name, value in options.items()}


def distance(one: Asked, other: Asked) -> int:
    """Return in how many items the two differ."""
    return sum(one.get(item) != other.get(item) for item in {*one, *other})


Known = TypeVar("Known")


def nearest(asked: Asked, known: Iterable[tuple[Known, Asked]]) -> tuple[Known, Asked] | None:
    """Return which of `known` differs from `asked` in the fewest items, the first of several.

    None where there are none.
    """
    return min(known, key=lambda each: distance(asked, each[1]), default=None)


def pairs(old: Sequence[Asked], new: Sequence[Asked]) -> Iterator[tuple[int | None, int | None]]:
    """Yield indexes into `old` and `new`: each beside the one that it is most like.

    None stands beside what has no counterpart.
    """
    distances = sorted(
        (distance(was, is_now), i, j) for i, was in enumerate(old) for j, is_now in enumerate(new)
    )
    mates: dict[int, int] = {}
    taken: set[int] = set()
    for _, i, j in distances:
        if i not in mates and j not in taken:
            mates[i] = j
            taken.add(j)
    for i in range(len(old)):
        yield i, mates.get(i)
    for j in range(len(new)):
        if j not in taken:
            yield None, j


def differences(known: Asked, here: Asked) -> tuple[Difference, ...]:
    """Return every item in which the two differ, in the order of `here`."""
    return tuple(
        Difference(field=item, known=known.get(item, ABSENT), here=here.get(item, ABSENT))
        for item in dict.fromkeys((*here, *known))
        if known.get(item) != here.get(item)
    )


def in_words(
    difference: Difference,
    known: str = "in the cache",
    unbound: Sequence[Unbound] = (),
    *,
    here: str = "here",
) -> str:
    """Return the difference as a user of vLLM says it, with the serve argument that mends it.

    `` `num_cache_lines` is 150 in the cache and 1204 here: pin --num-gpu-blocks-override``.
    `known` and `here` say where the two stand; `unbound` are the arguments that can be pinned.
    """
    there, now = _plain(difference.known), _plain(difference.here)
    words = f"`{difference.field}` is {there} {known} and {now} {here}"
    pin = next((each.pin for each in unbound if each.argument == difference.field), None)
    if pin is None:
        return words
    mend = "build with" if difference.known == UNBOUND else "pin"
    return f"{words}: {mend} {pin}"


def _plain(text: str) -> str:
    """Return the words of `argument_text` with torch's names of dtypes."""
    first, _, rest = text.partition(" ")
    element = first.removeprefix("*")
    dtype = _DTYPES.get(element)
    if dtype is None:
        return text
    pointer = "a tensor of " if first.startswith("*") else ""
    return f"{pointer}{dtype} {rest}".strip()
