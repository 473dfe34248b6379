"""Timings to choose from: those of an H100, and made up ones like them.

`timings-h100.json` holds, as a JSON array of `prewarm.tune.timings.Timings`, what `tune` measured
of Qwen3.5-397B-A17B with one GPU a replica: every tuning key, three rounds to screen, five more to
choose, eight to confirm. Other work on the host disturbed half of the last rounds at 64 tokens.
"""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import msgspec

from prewarm.core.manifest import Candidate
from prewarm.core.tunings import Size
from prewarm.tune.statistics import survivors
from prewarm.tune.timings import ConfigTimings, Timings

FILE = Path(__file__).with_name("timings-h100.json")

SIZES = (
    Size(tokens=64, sequences=1, weight=0.0),
    Size(tokens=1024, sequences=1),
    Size(tokens=2048, sequences=1),
    Size(tokens=8192, sequences=1),
    Size(tokens=16384, sequences=1),
    Size(tokens=8192, sequences=8),
)
SCREENING, CHOOSING, CONFIRMING = 3, 6, 9

replace = msgspec.structs.replace


def recorded() -> tuple[Timings, ...]:
    return msgspec.json.decode(FILE.read_bytes(), type=tuple[Timings, ...])


KERNELS = {
    "m:chunk_delta_h": [{"BV": block} for block in (32, 64)],
    "m:chunk_o": [{"BK": k, "BV": v} for k, v in itertools.product((64, 128), (64, 128))],
    "m:cumsum": [{}],
}


def made_up(kernel: str, seed: int, screening: int, choosing: int, confirming: int) -> Timings:
    """Return timings of every config in every round, with the habits that real ones have.

    A fixed cost, work that grows with the tokens, configs that suit large or small steps or
    several sequences, 0.4 % of noise, more of it on short launches, now and then a disturbance.
    """
    source = random.Random(f"{kernel} {seed}")
    configs = [
        Candidate(constexprs=blocks, num_warps=warps, num_stages=stages)
        for blocks, warps, stages in itertools.product(
            KERNELS[kernel], (1, 2, 4, 8), (1, 2, 3, 4, 5)
        )
    ]
    listed = [c for c in configs if c.num_warps in (2, 4) and c.num_stages in (2, 3, 4)]
    configs = listed + [c for c in configs if c not in listed]
    timed = []
    for config in configs:
        fixed, per_token = source.uniform(2.0, 4.0), source.uniform(0.008, 0.016)
        several = source.uniform(0.7, 1.1)

        def times(rounds: int, size: Size, cost=(fixed, per_token, several)) -> tuple[float, ...]:
            work = cost[1] * size.tokens * (cost[2] if size.sequences > 1 else 1.0)
            return tuple(disturbed(source, cost[0] + work) for _ in range(rounds))

        timed.append(
            ConfigTimings(
                config=config,
                listed=config in listed,
                choosing=tuple(times(screening + choosing, size) for size in SIZES),
                confirming=tuple(times(confirming, size) for size in SIZES),
            )
        )
    timed[-1] = replace(timed[-1], choosing=(), confirming=(), failed="out of shared memory")
    return Timings(kernel=kernel, key={"H": 16}, sizes=SIZES, configs=tuple(timed))


def disturbed(source: random.Random, time: float) -> float:
    noise = source.gauss(0.0, 0.004 + 0.02 / time)
    return time * (1 + noise) * (1.3 if source.random() < 0.02 else 1.0)


def with_elimination(kernel: str, seed: int) -> Timings:
    """Return timings as `tune` takes them: what is clearly beaten is not timed again."""
    full = made_up(kernel, seed, SCREENING, CHOOSING, CONFIRMING)
    screened = cut(full, range(len(full.configs)), SCREENING)
    first = survivors(screened)
    chosen = cut(full, first, SCREENING + CHOOSING, screened)
    last = set(survivors(chosen))
    return replace(
        full,
        configs=tuple(
            each if index in last else chosen.configs[index]
            for index, each in enumerate(full.configs)
        ),
    )


def cut(full: Timings, alive, rounds: int, others: Timings | None = None) -> Timings:
    """Return `full` with so many choosing rounds of those `alive`, no confirming ones."""
    configs = [
        replace(each, choosing=tuple(times[:rounds] for times in each.choosing), confirming=())
        for each in full.configs
    ]
    if others is not None:
        configs = [
            each if index in alive else others.configs[index] for index, each in enumerate(configs)
        ]
    return replace(full, configs=tuple(configs))
