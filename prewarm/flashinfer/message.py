"""What the process that builds is asked, and what it tells, one JSON document a line."""

from __future__ import annotations

import msgspec

from prewarm.core.child import Refusal
from prewarm.core.flashinfer import BuiltModule, PrefillCall
from prewarm.core.record import Record


class Job(Record, kw_only=True):
    """What to build of one module."""

    module: str
    target: str
    directory: str
    calls: tuple[PrefillCall, ...]
    instances: tuple[str, ...]
    jobs: int


class Ready(Record, kw_only=True, tag="ready"):
    """What is to do, before it is begun."""

    parts: tuple[str, ...]
    """Instances, and what binds them together."""
    built: tuple[str, ...]
    """Those of them that an earlier run left."""
    jobs: int
    compiler: str


class Made(Record, kw_only=True, tag="made"):
    """A part that was compiled now."""

    part: str
    seconds: float


class Kept(Record, kw_only=True, tag="kept"):
    """A part that an earlier run left."""

    part: str


class Failed(Record, kw_only=True, tag="failed"):
    """A part that did not compile."""

    part: str
    reason: str


class Done(Record, kw_only=True, tag="done"):
    """Everything is there."""

    built: BuiltModule


Progress = Ready | Made | Kept | Failed
Message = Ready | Made | Kept | Failed | Done | Refusal

encode = msgspec.json.Encoder().encode
decode_job = msgspec.json.Decoder(Job).decode
decode_message = msgspec.json.Decoder(Message).decode
