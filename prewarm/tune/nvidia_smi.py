"""The GPUs of this machine as `nvidia-smi` shows them: whether they are free, how fast they run."""

from __future__ import annotations

import contextlib
import csv
import io
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from prewarm.core.errors import HostError, TryAgainError
from prewarm.core.record import Record
from prewarm.core.tunings import Clocks

_FIELDS = (
    "index",
    "uuid",
    "name",
    "driver_version",
    "utilization.gpu",
    "memory.used",
    "clocks.sm",
    "clocks.mem",
    "temperature.gpu",
    "power.limit",
)
_BUSY_PERCENT = 10
_BUSY_MIB = 2048
_INTERVAL_MS = 250


class Reading(Record, kw_only=True):
    """One look at one GPU."""

    index: int
    uuid: str
    """`GPU-…`."""
    name: str
    driver: str
    utilization: int
    """Of the last second or so, in percent."""
    memory_used: int
    """In MiB."""
    sm_clock: int
    """In MHz."""
    memory_clock: int
    """In MHz."""
    temperature: int
    """In °C."""
    power_limit: float
    """In W."""


def _command(*more: str) -> list[str]:
    query = f"--query-gpu={','.join(_FIELDS)}"
    return ["nvidia-smi", query, "--format=csv,noheader,nounits", *more]


def read_gpus() -> tuple[Reading, ...]:
    """Return every GPU of this machine; raises HostError without the driver."""
    try:
        said = subprocess.run(_command(), capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise HostError(
            "there is no NVIDIA GPU here: nvidia-smi does not run",
            "run prewarm tune on a machine with the GPU that will serve",
        ) from error
    return parse(said.stdout)


def parse(text: str) -> tuple[Reading, ...]:
    """Return the readings in the CSV that `nvidia-smi` printed; lines cut short are left out."""
    rows = csv.reader(io.StringIO(text), skipinitialspace=True)
    return tuple(_reading(row) for row in rows if len(row) == len(_FIELDS))


def _reading(row: Sequence[str]) -> Reading:
    index, uuid, name, driver, utilization, memory, sm, mem, temperature, power = row
    return Reading(
        index=_number(index),
        uuid=uuid,
        name=name,
        driver=driver,
        utilization=_number(utilization),
        memory_used=_number(memory),
        sm_clock=_number(sm),
        memory_clock=_number(mem),
        temperature=_number(temperature),
        power_limit=float(_number(power)),
    )


def _number(text: str) -> int:
    """Return the number in `text`, 0 where the driver says that it does not know."""
    try:
        return round(float(text))
    except ValueError:
        return 0


def refuse_busy(readings: Sequence[Reading]) -> None:
    """Raise TryAgainError where another process works on a GPU: its times would mean nothing."""
    for each in readings:
        if each.utilization > _BUSY_PERCENT or each.memory_used > _BUSY_MIB:
            raise TryAgainError(
                f"GPU {each.index} ({each.name}) is busy: {each.utilization} % in use,"
                f" {each.memory_used} MiB taken",
                "wait for it, or name free ones with --gpus",
            )


@contextlib.contextmanager
def watching(file: Path) -> Iterator[None]:
    """Write a reading of every GPU to `file` four times a second while the block runs."""
    with file.open("wb") as output:
        watcher = subprocess.Popen(
            _command("-lms", str(_INTERVAL_MS)), stdout=output, stderr=subprocess.DEVNULL
        )
        try:
            yield
        finally:
            watcher.kill()
            watcher.wait()


def clocks_of(readings: Sequence[Reading], uuid: str) -> Clocks | None:
    """Return the span of what was read of the GPU `uuid` while it worked, None if it never did."""
    mine = [
        each for each in readings if each.uuid.removeprefix("GPU-") == uuid.removeprefix("GPU-")
    ]
    working = [each for each in mine if each.utilization] or mine
    if not working:
        return None
    return Clocks(
        sm=(min(r.sm_clock for r in working), max(r.sm_clock for r in working)),
        memory=max(r.memory_clock for r in working),
        temperature=(min(r.temperature for r in working), max(r.temperature for r in working)),
        power_limit=max(r.power_limit for r in working),
    )
