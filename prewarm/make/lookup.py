"""Will serving find it? Every launch of a manifest, looked up as the serving process does."""

from __future__ import annotations

import os
from pathlib import Path

from prewarm.core.manifest import Manifest
from prewarm.core.record import Record
from prewarm.core.selection import Selection
from prewarm.core.toolchain import Toolchain
from prewarm.make.message import Answer, Job, Ready, RecordAnswer, Surroundings
from prewarm.make.parent import run_job


class LookUp(Record, kw_only=True):
    """What a serving process here would find in a cache directory."""

    toolchain: Toolchain
    """As a serving process here resolves it."""
    surroundings: Surroundings
    answers: tuple[Answer, ...]
    records: tuple[RecordAnswer, ...] = ()
    """One of each winner."""

    @property
    def misses(self) -> tuple[Answer, ...]:
        """The launches that would compile, or call a C compiler."""
        return tuple(answer for answer in self.answers if answer.reason is not None)


def look_up(
    manifest: Manifest,
    cache_dir: Path,
    selection: Selection | None = None,
    deployment: Manifest | None = None,
) -> LookUp:
    """Return what a serving process on the manifest's target finds in `cache_dir`.

    `manifest` is what was compiled there. It is asked for the launches and the winners of
    `selection`, the one of the cache; with a `deployment`, for those of that one instead.
    The environment is this process's, not the manifest's; vLLM's model runner is imported
    first, as in serving, because that may choose another ptxas. Triton's own lookup
    answers; nothing is compiled and nothing written. Raises HostError where the virtual
    GPU cannot be set up.
    """
    job = Job(
        verb="look_up",
        manifest=manifest,
        cache_dir=os.path.abspath(cache_dir),
        selection=selection,
        deployment=deployment,
    )
    messages = tuple(run_job(job))
    ready = next(message for message in messages if isinstance(message, Ready))
    around = next(message for message in messages if isinstance(message, Surroundings))
    answers = tuple(message for message in messages if isinstance(message, Answer))
    records = tuple(message for message in messages if isinstance(message, RecordAnswer))
    return LookUp(toolchain=ready.toolchain, surroundings=around, answers=answers, records=records)
