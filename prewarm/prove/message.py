"""What a serving process is asked, and what it tells, one JSON document a line."""

from __future__ import annotations

from typing import Literal

from prewarm.core.record import Record
from prewarm.core.target import Target

Depth = Literal["layer", "engine"]
"""`layer`: vLLM's engine, whose model is its GDN layers without weights. `engine`: all of it."""

STEADY = "steady prefill"
"""The workload that is repeated for the times."""


class Request(Record, kw_only=True, tag="prove"):
    """What the process is to serve."""

    serve_args: tuple[str, ...]
    depth: Depth
    layers: int | None
    """Of the whole engine's model, keep so many; None keeps all."""
    prompt: int
    """Tokens of a request of the repeated prefill."""
    repeats: int
    random_workloads: int
    seed: int
    environment: dict[str, str]
    """Variables to set before anything is imported."""
    without: tuple[str, ...] = ()
    """Variables to unset."""
    plays: Target | None = None
    """A GPU that is not there: Triton compiles for it, and launches do nothing."""


class Lap(Record, kw_only=True):
    """One workload, from its first request to its last token."""

    kind: str
    tokens: int
    """Prompt tokens of its requests."""
    seconds: float


class Served(Record, kw_only=True, tag="served"):
    """The answer."""

    gpu: str
    """Its name."""
    start_up: float
    """Seconds from the first import to readiness."""
    laps: tuple[Lap, ...]
