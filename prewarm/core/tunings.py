"""Tunings: which config of each autotuned kernel is fastest on one kind of GPU, with all times."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from prewarm.core.digest import canonical_json, digest_of
from prewarm.core.manifest import Candidate, Constexpr
from prewarm.core.record import Record

SCHEMA = "prewarm/tunings/v1"


class Size(Record, kw_only=True):
    """How much one prefill step holds, and how much it counts."""

    tokens: int
    """Tokens of the step, over all its sequences."""
    sequences: int
    weight: float = 1.0
    """What it counts in the objective; 0 for a size that is only reported."""


class Clocks(Record, kw_only=True):
    """What `nvidia-smi` said during the measurement."""

    sm: tuple[int, int]
    """Lowest and highest SM clock that was seen, in MHz."""
    memory: int
    """In MHz."""
    temperature: tuple[int, int]
    """Lowest and highest, in °C."""
    power_limit: float
    """In W."""


class Prefill(Record, kw_only=True):
    """All of GDN prefill's kernels in one step, by one way to compute them."""

    backend: str
    """What `--gdn-prefill-backend` names: `flashinfer`, `triton`."""
    how: str
    """FlashInfer's release and instance, or whose choice of configs: `winners`, `vLLM's own`."""
    times: tuple[float, ...]
    """Median microseconds on the GPU at each size of the run."""
    spread: tuple[float, ...]
    """Half the distance of the quartiles from each other, relative to the median."""
    host: tuple[float, ...]
    """Microseconds that a CPU needs to launch it."""
    cold: str
    """What a process does before its first one, without and with a cache."""

    @property
    def name(self) -> str:
        """Both of how it is computed."""
        return f"{self.backend}, {self.how}"


class Run(Record, kw_only=True):
    """One `prewarm tune`: what was measured for which deployment, where and when."""

    model: str
    serve_args: tuple[str, ...]
    manifest: str
    """Digest of the manifest."""
    date: str
    """UTC, `2026-11-23T14:02:00Z`."""
    driver: str
    clocks: tuple[Clocks, ...]
    """One of each GPU that took part."""
    sizes: tuple[Size, ...]
    objective: str
    """What a winner is, in words."""
    noise: float
    """How far apart the times of a config lie in two groups of rounds, 95 % of them nearer: 0.01
    is 1 %."""
    seconds: float
    """Wall time of the measurement."""
    prefills: tuple[Prefill, ...] = ()
    """What was measured side by side, where FlashInfer was; else nothing."""


def faster_backends(run: Run) -> tuple[str | None, ...]:
    """Return the backend of the fastest prefill at each size; None within what they vary."""
    return tuple(_faster(run.prefills, at) for at in range(len(run.sizes)))


def _faster(prefills: tuple[Prefill, ...], at: int) -> str | None:
    best = {each.backend: each for each in sorted(prefills, key=lambda one: -one.times[at])}
    first, *others = sorted(best.values(), key=lambda one: one.times[at])
    for other in others:
        varies = max(first.spread[at], other.spread[at])
        if other.times[at] <= first.times[at] * (1 + 2 * varies):
            return None
    return first.backend


class Measured(Record, kw_only=True):
    """One config and its times."""

    times: tuple[float | None, ...] = ()
    """Microseconds at each size of the run, in its order, the median of the rounds; None
    where it was not launched, or the launch failed."""
    rounds: int = 0
    """How often it was timed at each size: few when it was clearly beaten."""
    config: Candidate
    listed: bool = True
    """Whether it is one of the kernel's own candidates."""
    failed: str | None = None
    """Why it cannot be used: out of shared memory, another result than the others."""


class SizeWinner(Record, kw_only=True):
    """The config to take at one size."""

    tokens: int
    sequences: int
    config: Candidate


class SizedBy(Record, kw_only=True):
    """Where a launch shows how large it is."""

    tokens: str
    """The integer argument that holds the tokens of the step."""
    sequences: str | None = None
    """The tensor argument whose first dimension is the number of sequences and one more."""


class KeyTuning(Record, kw_only=True):
    """What one tuning key was measured to want."""

    key: dict[str, Constexpr]
    """As in the manifest."""
    run: int
    """Index into the document's runs."""
    shared: dict[str, Constexpr] = {}
    """Compile-time arguments outside the key: another deployment may ask with the same key and
    others of these."""
    winner: Candidate
    """The best config over all sizes, by the run's objective."""
    confirmed: bool
    """Whether rounds that took no part in the choice agree, within the noise."""
    score: float
    """Weighted geometric mean of the winner's time over the best at each size; 1.0 is perfect."""
    reference: Candidate
    """The listed candidate that is fastest at the size of vLLM's own warm-up."""
    gain: float
    """Weighted geometric mean of the reference's time over the winner's: 1.2 is 1.2× as fast."""
    noise: tuple[float | None, ...] = ()
    """Relative difference below which two times count as equal, at each size of the run."""
    sized_by: SizedBy | None = None
    sizes: tuple[SizeWinner, ...] = ()
    """The best config at each size at which the key is asked for."""
    measured: tuple[Measured, ...]

    def times(self, config: Candidate) -> tuple[float | None, ...]:
        """Return the microseconds of `config` at each size of the run."""
        return next(each.times for each in self.measured if each.config == config)


class KernelTunings(Record, kw_only=True):
    """The tunings of one kernel."""

    name: str
    """`module:function`, as in the manifest."""
    source: str
    candidates: tuple[Candidate, ...]
    """The kernel's own list, as in the manifest."""
    keys: tuple[KeyTuning, ...]


class Tunings(Record, kw_only=True):
    """Winners for one kind of GPU and one Triton."""

    schema: str = SCHEMA
    gpu: str
    """`NVIDIA H100 80GB HBM3`, as the driver names it: H100 and H200 share Triton's keys."""
    arch: int
    triton: str
    """Its release. Times do not depend on the Python that Triton was built for; its key does."""
    runs: tuple[Run, ...]
    kernels: tuple[KernelTunings, ...]

    @property
    def digest(self) -> str:
        """Identity of the document: comments and layout never change it."""
        return digest_of(canonical_json({"schema": self.schema, **plain(self)}))


def plain(tunings: Tunings) -> dict[str, Any]:
    """Return `tunings` as plain data, with 1.0 where a field of times or weights was given 1."""
    exact = msgspec.convert(msgspec.to_builtins(tunings), Tunings)
    data: dict[str, Any] = msgspec.to_builtins(exact)
    return data


def key_text(key: Mapping[str, object]) -> str:
    """Return a tuning key in one line."""
    return ", ".join(f"{name}={value}" for name, value in key.items())
