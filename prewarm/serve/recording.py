"""What a serving process asked Triton for, taken down line by line, and read back.

The file of PREWARM_RECORD holds one JSON document a line, in the order of events of each
process; all processes of a start append to it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from prewarm.core.errors import InputError
from prewarm.core.files import host_errors
from prewarm.core.manifest import Constexpr, Launch
from prewarm.core.record import Record


class Worker(Record, kw_only=True, tag="worker", tag_field="event"):
    """A worker has laid out its KV cache."""

    pid: int
    rank: int
    gpu_blocks: int


class Ready(Record, kw_only=True, tag="ready", tag_field="event"):
    """A worker has ended its warm-up: what follows is inference."""

    pid: int
    rank: int


class Looked(Record, kw_only=True, tag="launch", tag_field="event"):
    """Triton looked up a launch that it did not have in memory."""

    pid: int
    rank: int
    phase: str
    """`start-up`, `unbound` or `inference`: when it was asked for the first time."""
    launch: Launch
    key: str
    """Name of the directory of its entry."""
    found: bool
    """Whether the entry was in the cache; else it was compiled."""
    seconds: float


class Other(Record, kw_only=True, tag="other", tag_field="event"):
    """Triton looked up what no manifest can hold."""

    pid: int
    rank: int
    phase: str
    kernel: str
    reason: str
    found: bool
    seconds: float


class Tuned(Record, kw_only=True, tag="tuning key", tag_field="event"):
    """An autotuner, or the winners by size, met a tuning key for the first time."""

    pid: int
    rank: int
    phase: str
    kernel: str
    key: dict[str, Constexpr]
    """As the tuning key of a manifest's specialization."""
    by_size: bool
    """Whether winners by size answered; else Triton's autotuner did."""


class Benchmarked(Record, kw_only=True, tag="benchmark", tag_field="event"):
    """An autotuner measured one config."""

    pid: int
    rank: int
    phase: str
    kernel: str
    seconds: float


class Built(Record, kw_only=True, tag="build", tag_field="event"):
    """A C compiler built a host module."""

    pid: int
    rank: int
    phase: str
    module: str
    seconds: float


class Library(Record, kw_only=True, tag="library", tag_field="event"):
    """FlashInfer took a library."""

    pid: int
    rank: int
    phase: str
    module: str
    found: bool
    """Whether it was there; else ninja and nvcc were asked to build it."""
    seconds: float


Event = Worker | Ready | Looked | Other | Tuned | Benchmarked | Built | Library


class Recording:
    """A file that events are appended to, by several processes at a time."""

    def __init__(self, path: Path, *, new: bool) -> None:
        """Open the file at `path`; with `new`, what it held is gone. Raises HostError."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        with host_errors(f"write {path}"):
            self._handle = os.open(path, flags | (os.O_TRUNC if new else 0), 0o644)

    def write(self, event: Event) -> None:
        """Append `event`: in one write, so that lines of several processes stay apart."""
        os.write(self._handle, msgspec.json.encode(event) + b"\n")


def read_recording(path: Path) -> tuple[Event, ...]:
    """Return the events in the file at `path`, without a last line that was cut off.

    Raises InputError where it cannot be read or holds something else.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise InputError(f"cannot read the recording {path}: {error.strerror}") from error
    return tuple(_events(lines, path))


def _events(lines: Iterable[bytes], path: Path) -> Iterator[Event]:
    decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)
    for number, line in enumerate(lines, 1):
        try:
            yield decoder.decode(line)
        except msgspec.MsgspecError as error:
            raise InputError(f"{path}, line {number}: {error}") from error
