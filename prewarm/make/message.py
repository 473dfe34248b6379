"""What the process with the virtual GPU is asked, and what it tells, one JSON document a line."""

from __future__ import annotations

from typing import Literal

import msgspec

from prewarm.core.cache import AutotuneRecord, HostModule
from prewarm.core.child import Refusal
from prewarm.core.manifest import Candidate, Constexpr, Manifest
from prewarm.core.record import Record
from prewarm.core.selection import Selection
from prewarm.core.toolchain import Toolchain


class Job(Record, kw_only=True):
    """What the process is to do."""

    verb: Literal["compile", "record", "look_up"]
    manifest: Manifest
    cache_dir: str
    jobs: int = 1
    selection: Selection | None = None
    deployment: Manifest | None = None
    """What is looked up instead of the manifest's launches: those of a deployment here."""

    @property
    def asked(self) -> Manifest:
        """The manifest whose launches are asked for."""
        return self.deployment or self.manifest


class Ready(Record, kw_only=True, tag="ready"):
    """The process plays the target and has imported every kernel."""

    toolchain: Toolchain


class Surroundings(Record, kw_only=True, tag="surroundings"):
    """What else decides hits in a process that is set up as serving is."""

    sources: dict[str, str | None]
    """Kernel to digest of its source key; None where it cannot be imported."""
    reads_records: bool
    """Whether Triton's autotuner reads its records."""
    ptxas: str
    """Path of the ptxas that Triton resolves."""
    planned_ptxas: str | None
    """Path of one here that says what the planned one said."""


class Compiled(Record, kw_only=True, tag="compiled"):
    """A launch that was compiled now."""

    launch: str
    """Digest of the launch."""
    kernel: str
    key: str
    host_modules: tuple[HostModule, ...]
    seconds: float


class Cached(Record, kw_only=True, tag="cached"):
    """A launch that Triton found in the cache directory."""

    launch: str
    """Digest of the launch."""
    kernel: str
    key: str
    host_modules: tuple[HostModule, ...]


class Failed(Record, kw_only=True, tag="failed"):
    """A launch that did not compile."""

    launch: str
    """Digest of the launch."""
    kernel: str
    reason: str


class Recorded(Record, kw_only=True, tag="recorded"):
    """What became of the autotune record of one tuning key."""

    record: AutotuneRecord
    change: Literal["written", "kept", "replaced", "removed"]
    """Whether it was there before with the same content, with another, or is not wanted."""


class Answer(Record, kw_only=True, tag="answer"):
    """What Triton finds for one launch."""

    launch: str
    """Digest of the launch."""
    kernel: str
    key: str | None
    """The directory that Triton looks in; None where the kernel itself is another one."""
    hit: bool
    host_modules: tuple[HostModule, ...] = ()
    """Those that Triton found."""
    missing: tuple[str, ...] = ()
    """Names of those that it would build."""
    reason: str | None = None
    """Why a launch would still compile, or call a C compiler."""


class RecordAnswer(Record, kw_only=True, tag="record_answer"):
    """What Triton's autotuner finds for a tuning key that has a winner."""

    kernel: str
    tuning_key: dict[str, Constexpr]
    winner: Candidate
    """What it is to find."""
    key: str | None
    """The directory that it looks in; None where the kernel itself is another one."""
    reason: str | None = None
    """Why it would benchmark, or take another config."""


Outcome = Compiled | Cached | Failed
Message = (
    Ready | Surroundings | Compiled | Cached | Failed | Recorded | Answer | RecordAnswer | Refusal
)

encode = msgspec.json.Encoder().encode
decode_job = msgspec.json.Decoder(Job).decode
decode_message = msgspec.json.Decoder(Message).decode
