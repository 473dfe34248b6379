"""Every launch of a manifest, compiled into a Triton cache directory without a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from prewarm.core import cache
from prewarm.core.cache import COMPILED_NAME, CompiledLaunch, HostModule
from prewarm.core.document import write_text
from prewarm.core.errors import CompileError
from prewarm.core.manifest import Launch, Manifest
from prewarm.core.selection import Selection, selected_launches
from prewarm.core.target import target_named
from prewarm.make.entries import sole_writer
from prewarm.make.message import Cached, Compiled, Failed, Job, Outcome, Ready, Recorded
from prewarm.make.parent import run_job

_SHOWN = 10
"""Failures that the error spells out."""


def compile_manifest(
    manifest: Manifest,
    cache_dir: Path,
    jobs: int | None = None,
    selection: Selection | None = None,
) -> Iterator[Outcome | Recorded]:
    """Yield what became of every launch of `manifest`, then write `prewarm-compiled.json`.

    With a `selection`, only the launches that it names; after them Triton's autotune record of
    each winner is written, and any that says otherwise is replaced or removed. Launches whose
    arguments are known only at deploy time are left out. `jobs` processes compile at a time, by
    default one a core. What the directory holds already is not compiled again. An interrupt
    leaves whole entries only.

    Raises CompileError with every launch that did not compile, after the others; InputError
    when the manifest was planned with another toolchain or source; HostError when this
    machine cannot compile; TryAgainError while another prewarm writes to `cache_dir`.
    """
    directory = Path(os.path.abspath(cache_dir))
    count = jobs or len(os.sched_getaffinity(0))
    job = Job(
        verb="compile",
        manifest=manifest,
        cache_dir=str(directory),
        jobs=count,
        selection=selection,
    )
    outcomes: list[Outcome] = []
    records: list[cache.AutotuneRecord] = []
    toolchain = manifest.toolchain
    with sole_writer(directory):
        for message in run_job(job):
            if isinstance(message, Ready):
                # Nothing that decides a hit differs; launchers are linked to the libc here.
                toolchain = msgspec.structs.replace(toolchain, libc=message.toolchain.libc)
            elif isinstance(message, Compiled | Cached | Failed):
                outcomes.append(message)
                yield message
            elif isinstance(message, Recorded):
                if message.change != "removed":
                    records.append(message.record)
                yield message
    launches = {launch.digest: launch for launch in selected_launches(manifest, selection)}
    if failures := [outcome for outcome in outcomes if isinstance(outcome, Failed)]:
        raise _error(failures, launches, len(outcomes))
    done = {o.launch: o for o in outcomes if not isinstance(o, Failed)}
    index = cache.Compiled(
        manifest=manifest.digest,
        arch=target_named(manifest.deployment.target).arch,
        toolchain=toolchain,
        launches=tuple(
            CompiledLaunch(launch=digest, kernel=launch.kernel, key=done[digest].key)
            for digest, launch in launches.items()
            if digest in done
        ),
        host_modules=_sorted({m for outcome in done.values() for m in outcome.host_modules}),
        selection=selection,
        autotune_records=tuple(records),
        unbound=tuple(digest for digest, launch in launches.items() if launch.unbound),
    )
    write_text(directory / COMPILED_NAME, cache.cache_document(index).decode() + "\n")


def _sorted(modules: set[HostModule]) -> tuple[HostModule, ...]:
    return tuple(sorted(modules, key=lambda module: (module.name, module.key)))


def _error(failures: Sequence[Failed], launches: dict[str, Launch], count: int) -> CompileError:
    reports = [
        f"{failure.kernel}\n  {launch_text(launches[failure.launch])}\n  {indented(failure.reason)}"
        for failure in failures[:_SHOWN]
    ]
    if len(failures) > _SHOWN:
        reports.append(f"and {len(failures) - _SHOWN} more")
    text = "\n".join(reports)
    return CompileError(
        f"{len(failures)} of {count} launches did not compile:\n{text}",
        "the others are in the cache directory; the same command tries only these again",
    )


def indented(text: str) -> str:
    """Return `text` with every line after the first moved under it."""
    return text.replace("\n", "\n  ")


def launch_text(launch: Launch) -> str:
    """Return the arguments and options of `launch` in one line."""
    arguments = ", ".join(
        f"{name}={argument.value}" if argument.type == "constexpr" else f"{name}: {argument.type}"
        for name, argument in launch.arguments.items()
    )
    options = ", ".join(f"{name}={value}" for name, value in launch.options.items())
    return f"({arguments}) {options}"
