"""One part of a fleet build: its launches compiled, its autotune records written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from prewarm.core.fleet import Group, Planned
from prewarm.core.shard import ShardLaunch, ShardRecord
from prewarm.core.target import target_named
from prewarm.make.compile import compile_manifest
from prewarm.make.entries import sole_writer
from prewarm.make.message import Cached, Compiled, Job, Recorded
from prewarm.make.parent import run_job


def compile_group(
    group: Group, cache_dir: Path, jobs: int | None = None
) -> Iterator[tuple[ShardLaunch, bool]]:
    """Yield every launch of `group` and whether it had to be compiled, as each is done.

    Raises what `compile_manifest` raises; what it leaves behind is taken up by the next run.
    """
    arch = target_named(group.target).arch
    identities = {each.launch.digest: each.identity for each in group.launches}
    for outcome in compile_manifest(group.manifest, cache_dir, jobs):
        if isinstance(outcome, Compiled | Cached):
            launch = ShardLaunch(
                identity=identities[outcome.launch],
                launch=outcome.launch,
                kernel=outcome.kernel,
                group=group.name,
                arch=arch,
                key=outcome.key,
                host_modules=outcome.host_modules,
            )
            yield launch, isinstance(outcome, Compiled)


def write_records(planned: Planned, cache_dir: Path) -> tuple[ShardRecord, ...]:
    """Write Triton's autotune record of each winner of `planned` into `cache_dir`; return them.

    Nothing is compiled. Raises InputError where the toolchain, a kernel or its candidates are
    not those that were planned, HostError where this machine cannot write, TryAgainError while
    another prewarm writes to `cache_dir`.
    """
    directory = Path(os.path.abspath(cache_dir))
    job = Job(
        verb="record",
        manifest=planned.manifest,
        cache_dir=str(directory),
        selection=planned.selection,
    )
    with sole_writer(directory):
        return tuple(
            ShardRecord(deployment=planned.name, record=message.record)
            for message in run_job(job)
            if isinstance(message, Recorded) and message.change != "removed"
        )
