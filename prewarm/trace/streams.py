"""Request streams as clients make them, drawn from a seed: what a manifest is checked against.

They know nothing of the workloads that a manifest is traced with, and share no code with them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from prewarm.core.record import Record

_WIDEST = 12
"""Most steps between two bursts."""
_FAMILIES = 4
"""Shared prefixes in one stream."""

PeersDo = Literal["alike", "decode", "prefill"]


class Bounds(Record, kw_only=True):
    """What a deployment admits."""

    tokens: int
    """Token budget of a step."""
    sequences: int
    """Most sequences in a step."""
    model_length: int
    """Most tokens of a prompt and its answer."""
    blocks: tuple[int, ...]
    """Tokens of a KV cache block, of each group of layers."""
    graphs: tuple[int, ...] = ()
    """Batch sizes of CUDA graphs."""
    draft_tokens: int = 0
    data_parallel: bool = False


class Client(Record, kw_only=True):
    """One request."""

    arrives: int
    """The step before which it arrives."""
    prompt: int
    """In tokens."""
    output: int
    """In tokens."""
    family: int = 0
    """Which prefix it shares; of no meaning without one."""
    prefix: int = 0
    """Tokens that it shares with the others of its family."""
    leaves: int | None = None
    """The step before which it is aborted; None where it waits for its answer."""


class Peer(Record, kw_only=True):
    """What the busiest other data-parallel rank does in a step."""

    does: PeersDo
    tokens: int


class Stream(Record, kw_only=True):
    """Clients over time, and what else decides the steps that serve them."""

    clients: tuple[Client, ...]
    """In the order in which they arrive."""
    free: int | None = None
    """KV cache blocks that other requests leave free; None: all."""
    accepted: tuple[int, ...] = ()
    """Draft tokens accepted in turn, over and over; with speculation only."""
    peers: tuple[Peer, ...] = ()
    """In the steps in turn, over and over; with data parallelism only."""


Law = Callable[[random.Random], int]


def streams(bounds: Bounds, seed: int, steps: int) -> Iterator[Stream]:
    """Yield streams of about `steps` steps without end, the same ones for the same `seed`."""
    for number in range(1 << 62):
        # A string is hashed the same way in every process, a tuple is not.
        yield _stream(bounds, random.Random(f"{seed}/{number}"), steps)  # noqa: S311


def _stream(bounds: Bounds, source: random.Random, steps: int) -> Stream:
    tight = source.random() < 0.35
    clients = _clients(bounds, source, steps, tight=tight)
    most = bounds.draft_tokens
    return Stream(
        clients=clients,
        free=int(2 ** source.uniform(3, 8)) if tight else None,
        accepted=_accepted(source, most) if most else (),
        peers=tuple(_peer(bounds, source) for _ in range(31)) if bounds.data_parallel else (),
    )


def _clients(
    bounds: Bounds, source: random.Random, steps: int, *, tight: bool
) -> tuple[Client, ...]:
    """Return who comes; where blocks are `tight`, answers tend to need one more than the prompt."""
    count = min(_log_uniform(source, 2 * bounds.sequences) + 16 * tight, 8 * steps)
    arrivals = _arrivals(source, count, steps)
    lengths = source.sample(_lengths(bounds), source.choice((1, 1, 2, 3)))
    outputs = source.choice(_outputs(steps)[2:] if tight else _outputs(steps))
    if tight:
        lengths = [lengths[0], *3 * [lambda source: _before_a_block(bounds, source)]]
    shared = source.choice((0.0, 0.0, 0.5, 1.0))
    prefix = source.choice((*_lengths(bounds), *3 * [_blocks_of(bounds)]))(source)
    leaving = source.choice((0.0, 0.0, 0.1, 0.6))
    budget = steps * bounds.tokens // 2
    clients: list[Client] = []
    for arrives in arrivals:
        one = _client(bounds, source, arrives, source.choice(lengths)(source), outputs(source))
        if source.random() < shared:
            one = _sharing(bounds, source, one, prefix)
        if source.random() < leaving:
            one = _leaving(source, one)
        budget -= one.prompt
        if budget < 0 and clients:
            break
        clients.append(one)
    return tuple(clients)


def _client(
    bounds: Bounds, source: random.Random, arrives: int, prompt: int, output: int
) -> Client:
    """Return a request that the model can answer; now and then it fills the model's length."""
    longest = bounds.model_length - 1
    if source.random() < 0.005:
        prompt = longest
    prompt = max(1, min(prompt, longest))
    output = max(1, min(output, bounds.model_length - prompt))
    return Client(arrives=arrives, prompt=prompt, output=output)


def _sharing(bounds: Bounds, source: random.Random, one: Client, prefix: int) -> Client:
    """Return `one` as a question on a document that others ask about, or as the same question."""
    asked = source.choice((one.prompt, one.prompt, 0))
    prompt = max(1, min(prefix + asked, bounds.model_length - one.output))
    return Client(
        arrives=one.arrives,
        prompt=prompt,
        output=one.output,
        family=source.randrange(_FAMILIES),
        prefix=max(0, min(prefix, prompt)),
    )


def _leaving(source: random.Random, one: Client) -> Client:
    return Client(
        arrives=one.arrives,
        prompt=one.prompt,
        output=one.output,
        family=one.family,
        prefix=one.prefix,
        leaves=one.arrives + source.randint(0, 12),
    )


def _log_uniform(source: random.Random, most: int) -> int:
    return min(most, int(2 ** source.uniform(0, max(most, 1).bit_length())))


def _arrivals(source: random.Random, count: int, steps: int) -> Sequence[int]:
    """Return the steps before which `count` requests arrive, in order."""
    process = source.choice(("together", "evenly", "poisson", "bursts"))
    if process == "together":
        return [0] * count
    if process == "evenly":
        return sorted(source.randint(0, steps // 2) for _ in range(count))
    if process == "poisson":
        rate, now, found = 10 ** source.uniform(-1, 1.5), 0.0, []
        for _ in range(count):
            now += source.expovariate(rate)
            found.append(int(now))
        return [at for at in found if at < steps] or [0]
    every, size = source.randint(1, _WIDEST), source.randint(1, max(1, count))
    return [number // size * every for number in range(count)]


def _lengths(bounds: Bounds) -> list[Law]:
    """Return the laws of prompt lengths."""
    longest = bounds.model_length

    def near(value: int, source: random.Random) -> int:
        return value + source.choice((-2, -1, 0, 0, 1, 2))

    def short(source: random.Random) -> int:
        return _log_uniform(source, 32)

    def uniform(source: random.Random) -> int:
        return source.randint(1, min(2 * bounds.tokens, longest))

    def any_length(source: random.Random) -> int:
        return _log_uniform(source, longest)

    def near_powers(source: random.Random) -> int:
        return near(2 ** source.randint(0, bounds.tokens.bit_length()), source)

    def near_edges(source: random.Random) -> int:
        edge = source.choice((16, 64, bounds.tokens, *bounds.blocks, *bounds.graphs))
        return near(edge * source.choice((1, 1, 1, 2, 3, 5)), source)

    return [short, uniform, any_length, near_powers, near_edges]


def _blocks_of(bounds: Bounds) -> Law:
    return lambda source: (
        source.choice(bounds.blocks) * source.choice((1, 2, 3)) + source.choice((-1, 0, 0, 1))
    )


def _before_a_block(bounds: Bounds, source: random.Random) -> int:
    return source.choice(bounds.blocks) * source.choice((1, 1, 2)) - source.randint(0, 8)


def _outputs(steps: int) -> list[Law]:
    """Return the laws of answer lengths."""
    return [
        lambda source: 1,
        lambda source: source.randint(1, 6),
        lambda source: 1 + int(source.expovariate(1 / 12)),
        lambda source: source.randint(steps, 2 * steps),
    ]


def _accepted(source: random.Random, most: int) -> tuple[int, ...]:
    """Return how a drafter does that is right as often in every stream as this one says."""
    right = source.choice((0.0, 0.3, 0.7, 1.0))
    return tuple(_run(source, right, most) for _ in range(97))


def _run(source: random.Random, right: float, most: int) -> int:
    return next((length for length in range(most) if source.random() >= right), most)


def _peer(bounds: Bounds, source: random.Random) -> Peer:
    does: PeersDo = source.choice(("alike", "decode", "prefill"))
    return Peer(does=does, tokens=_log_uniform(source, bounds.tokens))
