"""What building takes, from what it took."""

from __future__ import annotations

from prewarm.core.flashinfer import HOPPER
from prewarm.core.record import Record

_HOPPER_INSTANCE, _HOPPER_LAUNCHER = 90.0, 40.0
"""Seconds of one core with nvcc 13.0; the launcher and the dispatch are compiled once."""
_BLACKWELL_INSTANCE = 15.0
"""Seconds of one core with nvidia-cutlass-dsl 4.5, importing included."""
_HOPPER_MEMORY, _BLACKWELL_MEMORY = 6.6, 1.0
"""GiB that the compiler of one instance takes at its peak."""


class Forecast(Record, kw_only=True):
    """What building some instances takes."""

    core_seconds: float
    memory_per_job: float
    """In GiB."""

    def __str__(self) -> str:
        """Return it in words."""
        minutes = self.core_seconds / 60
        time = f"{minutes:.0f} core-minutes" if minutes >= 1.5 else f"{self.core_seconds:.0f} s"
        return f"about {time}, {self.memory_per_job:.1f} GiB of memory a job"


def forecast(module: str, instances: int) -> Forecast:
    """Return what `instances` instances of `module` take."""
    if module == HOPPER:
        seconds = instances * _HOPPER_INSTANCE + _HOPPER_LAUNCHER
        return Forecast(core_seconds=seconds, memory_per_job=_HOPPER_MEMORY)
    return Forecast(core_seconds=instances * _BLACKWELL_INSTANCE, memory_per_job=_BLACKWELL_MEMORY)
