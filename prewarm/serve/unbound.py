"""Launches with an argument that is known only here: settled and compiled before vLLM serves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import msgspec

from prewarm.core.errors import HostError
from prewarm.core.files import locked
from prewarm.core.manifest import Argument, Constexpr, Launch, Unbound
from prewarm.core.record import Record
from prewarm.serve.log import say_once


class Settled(Record, kw_only=True):
    """The unbound launches of a cache, as they are here."""

    launches: tuple[Launch, ...] = ()
    values: dict[str, int] = {}
    """Argument to its value here."""
    left: tuple[str, ...] = ()
    """Why launches are left to vLLM, a line each."""


class Done(Record, kw_only=True):
    """What became of them."""

    compiled: int = 0
    found: int = 0
    """They were there from an earlier start, or from another rank of this one."""
    seconds: float = 0.0
    values: dict[str, int] = {}


def value_at(seen: Mapping[str, Constexpr], blocks: int) -> int | None:
    """Return the value with `blocks` GPU blocks on the line through the two that were seen.

    None where no line of integers goes through them.
    """
    if len(seen) != 2 or any(type(value) is not int for value in seen.values()):
        return None
    (one, there), (two, here) = ((int(at), value) for at, value in seen.items())
    assert isinstance(there, int)
    assert isinstance(here, int)
    if one == two:
        return None
    steps, rest = divmod((blocks - one) * (here - there), two - one)
    return None if rest else there + steps


def settle(launches: Sequence[Launch], unbound: Sequence[Unbound], blocks: int) -> Settled:
    """Return those of `launches` that are unbound, settled for `blocks` GPU blocks."""
    values: dict[str, int] = {}
    left: list[str] = []
    for each in unbound:
        value = value_at(each.seen, blocks)
        if value is None:
            left.append(f"`{each.argument}` does not follow the {each.follows} in a line")
        else:
            values[each.argument] = value
    settled = tuple(
        _bound(launch, values)
        for launch in launches
        if launch.unbound and values.keys() >= {*launch.unbound}
    )
    return Settled(launches=settled, values=values, left=tuple(left))


def _bound(launch: Launch, values: Mapping[str, int]) -> Launch:
    arguments = {
        name: Argument(type="constexpr", value=values[name]) if argument.unbound else argument
        for name, argument in launch.arguments.items()
    }
    return msgspec.structs.replace(launch, arguments=arguments)


def compile_settled(
    settled: Settled, make: Callable[[Launch], bool], rank: int, state: Path | None
) -> Done:
    """Make every launch of `settled` with `make`, which returns whether it was there already.

    Ranks that share the directory `state` begin with different launches and wait for one
    another, so that each is compiled once. A launch that fails is left to vLLM, with a line in
    the log.
    """
    began = time.monotonic()
    found = compiled = 0
    for launch in _from(settled.launches, rank):
        try:
            with _alone(state, launch):
                there = make(launch)
        except Exception as error:  # noqa: BLE001  (vLLM will ask for it, and say what is wrong)
            reason = f"{type(error).__name__}: {error}"
            say_once(f"unbound launches of {launch.kernel} are left to vLLM: {reason}")
            continue
        found, compiled = found + there, compiled + (not there)
    return Done(
        compiled=compiled,
        found=found,
        seconds=time.monotonic() - began,
        values=settled.values,
    )


def _from(launches: Sequence[Launch], rank: int) -> Iterator[Launch]:
    at = rank % max(1, len(launches))
    yield from launches[at:]
    yield from launches[:at]


@contextmanager
def _alone(state: Path | None, launch: Launch) -> Iterator[None]:
    """Keep the other ranks of this start from `launch`, where they share a directory."""
    with ExitStack() as stack:
        if state is not None:
            with suppress(HostError):
                stack.enter_context(locked(state / f"{launch.digest.partition(':')[2]}.lock"))
        yield
