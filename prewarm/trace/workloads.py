"""Workloads: request streams for vLLM's scheduler, at the edges first, then at random."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Literal

import msgspec

from prewarm.core.record import Record

CHUNK = 64
"""Tokens of one chunk of the chunked delta rule; a size to step around, never a rule."""


Graph = Literal["none", "piecewise"]
"""What a step falls back to when its batch has no full CUDA graph."""


class Arrival(Record, kw_only=True):
    """One request."""

    step: int = 0
    """The scheduler step before which it arrives."""
    prompt: int
    """Prompt length in tokens."""
    output: int = 2
    """Tokens that it generates."""
    prefix: int = 0
    """How many of its first tokens it shares with every other request that has a prefix."""


class Workload(Record, kw_only=True):
    """A stream of requests, and what the data-parallel peers do meanwhile."""

    kind: str
    """What a reader calls it: `prefill`, `mixed`."""
    arrivals: tuple[Arrival, ...]
    """None at all: one step of a rank that has nothing to do."""
    peers_tokens: int | None = None
    """Tokens that each other rank runs in every step; None: as many as this one."""
    peers_graph: Graph | None = None
    """The CUDA graph that another rank falls back to, and this one with it; None: the same."""
    accepted: tuple[int, ...] = ()
    """Draft tokens accepted in turn, over and over; with speculation only."""


class Limits(Record, kw_only=True):
    """What bounds a step of this deployment, read from vLLM's own configuration."""

    tokens: int
    """Token budget of a step."""
    sequences: int
    """Most sequences in a step."""
    model_length: int
    graph_size: int
    """Largest batch that a CUDA graph was captured for; 0 without graphs."""
    graph_sizes: tuple[int, ...]
    block: int
    """Tokens of a KV cache block."""
    data_parallel: bool
    prefix_caching: bool
    draft_tokens: int


def boundary_workloads(limits: Limits) -> Iterator[Workload]:
    """Yield the workloads at the edges: 1, 15–17, chunk ± 1, the token budget, graph sizes ± 1."""
    edges = (_idle, _prefills, _chunked, _decodes, _mixed, _prefixes, _speculative)
    for workload in itertools.chain.from_iterable(edge(limits) for edge in edges):
        yield _servable(workload, limits)


def _servable(workload: Workload, limits: Limits) -> Workload:
    """Return `workload` with every request cut to the length of the model."""

    def cut(arrival: Arrival) -> Arrival:
        output = min(arrival.output, limits.model_length - 1)
        prompt = min(arrival.prompt, limits.model_length - output)
        prefix = min(arrival.prefix, prompt)
        return msgspec.structs.replace(arrival, prompt=prompt, output=output, prefix=prefix)

    return msgspec.structs.replace(workload, arrivals=tuple(map(cut, workload.arrivals)))


def _idle(limits: Limits) -> Iterator[Workload]:
    """Yield what a data-parallel rank without requests does while others work."""
    if limits.data_parallel:
        yield Workload(kind="idle rank", arrivals=())
        yield Workload(kind="idle rank", arrivals=(), peers_graph="none")


def _prefills(limits: Limits) -> Iterator[Workload]:
    longest = limits.tokens
    for prompt in _inside(_edges(longest), longest):
        yield Workload(kind="prefill", arrivals=(Arrival(prompt=prompt),))
    for count in _inside((2, 3, 15, 16, 17), min(limits.sequences, longest // 2)):
        yield Workload(kind="prefill", arrivals=_each(count, 2 if count > 3 else CHUNK + 1))
    several = _fitting((5, 70, 200, 64), longest)
    yield Workload(kind="prefill", arrivals=tuple(Arrival(prompt=n) for n in several))


def _chunked(limits: Limits) -> Iterator[Workload]:
    if limits.model_length <= limits.tokens + CHUNK + 2:
        return
    for extra in (1, 2, CHUNK, CHUNK + 1):
        longer = Arrival(prompt=limits.tokens + extra)
        yield Workload(kind="chunked prefill", arrivals=(longer,))
    two = (Arrival(prompt=limits.tokens + 100), Arrival(prompt=20))
    yield Workload(kind="chunked prefill", arrivals=two)


def _edges(longest: int) -> tuple[int, ...]:
    return (1, 2, 3, 15, 16, 17, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 1000, longest - 1, longest)


def _inside(values: tuple[int, ...], most: int) -> list[int]:
    return sorted({value for value in values if 1 <= value <= most})


def _fitting(prompts: tuple[int, ...], budget: int) -> tuple[int, ...]:
    kept: list[int] = []
    for prompt in prompts:
        if sum(kept) + prompt <= budget:
            kept.append(prompt)
    return tuple(kept) or (1,)


def _each(count: int, prompt: int, output: int = 2) -> tuple[Arrival, ...]:
    return tuple(Arrival(prompt=prompt, output=output) for _ in range(count))


def _decodes(limits: Limits) -> Iterator[Workload]:
    sizes = {1, 2, 3, 8, 15, 16, 17, limits.sequences}
    sizes |= {limits.graph_size, limits.graph_size + 1, limits.graph_size + 16}
    for count in _inside(tuple(sizes), min(limits.sequences, limits.tokens)):
        yield Workload(kind="decode", arrivals=_each(count, 1, 3))
        if limits.data_parallel and count <= limits.graph_size:
            ours, largest = _each(count, 1, 3), limits.graph_size
            yield Workload(kind="decode", arrivals=ours, peers_graph="none")
            yield Workload(kind="decode", arrivals=ours, peers_tokens=largest)
            yield Workload(
                kind="decode", arrivals=ours, peers_tokens=largest, peers_graph="piecewise"
            )


def _mixed(limits: Limits) -> Iterator[Workload]:
    for decodes in _inside((1, 2, 15, 16, 17), limits.sequences - 1):
        for prompt in _inside((2, 16, 17, CHUNK + 1), limits.tokens - decodes):
            late = Arrival(step=2, prompt=prompt)
            yield Workload(kind="mixed", arrivals=(*_each(decodes, 1, 6), late))


def _prefixes(limits: Limits) -> Iterator[Workload]:
    if not limits.prefix_caching:
        return
    for shared in (limits.block, 2 * limits.block):
        for rest in (1, 2, 17, CHUNK + 1):
            first = Arrival(prompt=shared + rest, prefix=shared)
            later = Arrival(step=8, prompt=shared + rest + 1, prefix=shared)
            yield Workload(kind="prefix", arrivals=(first, later))


def _speculative(limits: Limits) -> Iterator[Workload]:
    most = limits.draft_tokens
    if not most:
        return
    patterns = ((0,), (most,), (most, 0, 1))
    widest = limits.graph_size // (most + 1)
    counts = _inside((1, 2, 3, 15, 16, 17, widest, widest + 1), limits.sequences)
    for count in counts:
        for accepted in patterns:
            yield Workload(
                kind="speculative decode",
                arrivals=_each(count, 2, 3 * (most + 1)),
                accepted=accepted,
            )
    for decodes in _inside((1, 2, 16), limits.sequences - 1):
        for prompt in (1, 2, 17, CHUNK + 1):
            yield Workload(
                kind="speculative mixed",
                arrivals=(*_each(decodes, 2, 6 * (most + 1)), Arrival(step=4, prompt=prompt)),
                accepted=(most, 0),
            )
    yield from _ends_of_the_model(limits)


def _ends_of_the_model(limits: Limits) -> Iterator[Workload]:
    """Yield a request that fills the model's length, where drafts become fewer step by step.

    All requests of a step have room for as many drafts as the one with most, so those beside it
    are new in each step and end in it.
    """
    most = limits.draft_tokens
    output = min(most + 3, limits.model_length - 1)
    last = Arrival(prompt=limits.model_length - output, output=output)
    decodes = -(-last.prompt // limits.tokens)
    for count in _inside((1, 2, 16), min(limits.sequences, limits.tokens - most)):
        beside = (
            Arrival(step=decodes + step, prompt=2, output=1)
            for step in range(output)
            for _ in range(count - 1)
        )
        yield Workload(kind="end of the model's length", arrivals=(last, *beside), accepted=(0,))


def random_workloads(limits: Limits, seed: int) -> Iterator[Workload]:
    """Yield workloads without end, the same ones for the same `seed`."""
    source = random.Random(seed)  # noqa: S311 (reproducible, not secret)
    while True:
        yield _servable(_random_workload(limits, source), limits)


def _random_workload(limits: Limits, source: random.Random) -> Workload:
    count = min(int(2 ** source.uniform(0, 6)), limits.sequences)
    horizon = source.choice((0, 0, 4, 10))
    arrivals = tuple(
        Arrival(
            step=source.randint(0, horizon),
            prompt=_random_prompt(limits, source),
            output=source.randint(1, 8),
            prefix=source.choice((0, limits.block)) if limits.prefix_caching else 0,
        )
        for _ in range(count)
    )
    graphs: tuple[Graph | None, ...] = (None, None, "none", "piecewise")
    sizes = (None, *limits.graph_sizes) if limits.data_parallel else (None,)
    return Workload(
        kind="random",
        arrivals=arrivals,
        peers_graph=source.choice(graphs) if limits.data_parallel else None,
        peers_tokens=source.choice(sizes),
        accepted=tuple(source.randint(0, limits.draft_tokens) for _ in range(7)),
    )


def _random_prompt(limits: Limits, source: random.Random) -> int:
    longest = 2 * limits.tokens
    if source.random() < 0.05:
        return source.randint(1, longest)
    return min(int(2 ** source.uniform(0, 9)), longest)
