"""What the process that plays the target does; import it there only, with the stage set."""

from __future__ import annotations

import errno
import importlib
import time
from collections.abc import Iterator, Sequence

from prewarm.core.child import Refusal
from prewarm.core.errors import HostError, InputError, PrewarmError
from prewarm.core.files import host_error
from prewarm.core.manifest import Launch
from prewarm.core.selection import selected_launches
from prewarm.core.target import Target, target_named
from prewarm.core.toolchain import Toolchain
from prewarm.core.tuning_keys import tuning_keys
from prewarm.device import toolchain, triton_seam
from prewarm.device.fixed_heap import settle_heaps, settle_temporary_names
from prewarm.device.libcuda import load_stub
from prewarm.device.ptxas import choose_ptxas, path_of
from prewarm.device.sources import check_sources
from prewarm.make.host_modules import build_host_module
from prewarm.make.message import (
    Answer,
    Cached,
    Compiled,
    Failed,
    Job,
    Message,
    Ready,
    Surroundings,
)
from prewarm.make.pool import run_forked
from prewarm.make.records import check_candidates, look_up_records, settle_records

_SERVING = "vllm.v1.worker.gpu_model_runner"
"""What the serving process has imported before its first launch: it may choose a ptxas."""
_FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
_REASON_LENGTH = 2000


def compile_launches(job: Job) -> Iterator[Message]:
    """Yield what became of every bound launch and every autotune record of the job.

    Records are settled last, and only where every launch compiled. Raises InputError when this
    toolchain or a kernel is not the planned one, HostError when this machine cannot compile or
    write.
    """
    here = _planned_toolchain(job)
    asked = tuning_keys(job.manifest, job.selection)
    launches = [each for each in selected_launches(job.manifest, job.selection) if not each.unbound]
    check_sources({launch.kernel: launch.source for launch in launches})
    check_candidates(job.manifest, asked)
    triton_seam.build_host_modules_with(build_host_module, load_stub())
    triton_seam.load_utilities()
    settle_heaps()
    settle_temporary_names()
    yield Ready(toolchain=here)
    complete = True
    for outcome in run_forked(_longest_first(launches), _compile, job.jobs, _crashed):
        yield outcome
        complete = complete and not isinstance(outcome, Failed)
        if isinstance(outcome, Refusal):
            return
    if complete:
        yield from settle_records(job, asked)


def record_winners(job: Job) -> Iterator[Message]:
    """Yield what became of every autotune record of the job; nothing is compiled.

    Raises InputError as `compile_launches` does.
    """
    here = _planned_toolchain(job)
    asked = tuning_keys(job.manifest, job.selection)
    settled = {each.kernel for each in asked}
    check_sources({each.name: each.source for each in job.manifest.kernels if each.name in settled})
    check_candidates(job.manifest, asked)
    yield Ready(toolchain=here)
    yield from settle_records(job, asked)


def _planned_toolchain(job: Job) -> Toolchain:
    """Play the target of the job; return the toolchain, or raise InputError if it is another."""
    target = target_named(job.manifest.deployment.target)
    triton_seam.activate_virtual_driver(target)
    choose_ptxas(job.manifest.toolchain.ptxas, target.arch)
    here = toolchain.read_toolchain(target, job.manifest.toolchain.environment)
    if differences := job.manifest.toolchain.differences(here):
        rows = "\n".join(f"  {name}: {ours}, here {theirs}" for name, ours, theirs in differences)
        raise InputError(
            f"the manifest was planned with another toolchain:\n{rows}",
            "compile where it was planned, or plan again here",
        )
    return here


def _longest_first(launches: Sequence[Launch]) -> list[Launch]:
    """Return `launches` so that the last ones to start are short."""
    return sorted(launches, key=_effort, reverse=True)


def _effort(launch: Launch) -> int:
    return triton_seam.source_length(triton_seam.kernel_named(launch.kernel))


def _compile(launch: Launch) -> Compiled | Cached | Failed | Refusal:
    began = time.monotonic()
    try:
        entry = triton_seam.compile_launch(launch)
        modules = triton_seam.host_modules_of(entry)
    except HostError as error:
        return Refusal.of(error)
    except OSError as error:
        if error.errno in _FATAL:
            return Refusal.of(host_error(error, "write the cache"))
        return _failed(launch, error)
    except Exception as error:  # noqa: BLE001  (whatever a compiler raises is one launch's report)
        return _failed(launch, error)
    if entry.cached:
        return Cached(
            launch=launch.digest, kernel=launch.kernel, key=entry.key, host_modules=modules
        )
    return Compiled(
        launch=launch.digest,
        kernel=launch.kernel,
        key=entry.key,
        host_modules=modules,
        seconds=time.monotonic() - began,
    )


def _failed(launch: Launch, error: Exception) -> Failed:
    reason = f"{type(error).__name__}: {error}"[-_REASON_LENGTH:]
    return Failed(launch=launch.digest, kernel=launch.kernel, reason=reason)


def _crashed(launch: Launch, how: str) -> Failed:
    return Failed(launch=launch.digest, kernel=launch.kernel, reason=f"the compiler died: {how}")


def look_up_launches(job: Job) -> Iterator[Message]:
    """Yield what Triton finds for every bound launch and winner, set up as serving is.

    Nothing is compiled or written, and no variable is taken from the manifest.
    """
    target = target_named(job.asked.deployment.target)
    triton_seam.activate_virtual_driver(target)
    importlib.import_module(_SERVING)
    toolchain.let_serving_choose_ptxas(job.asked.toolchain.ptxas, target)
    triton_seam.look_only(load_stub())
    yield Ready(toolchain=toolchain.read_toolchain(target))
    yield _surroundings(job, target)
    for launch in selected_launches(job.asked, job.selection):
        if not launch.unbound:
            yield _answer(launch)
    yield from look_up_records(tuning_keys(job.asked, job.selection))


def _surroundings(job: Job, target: Target) -> Surroundings:
    return Surroundings(
        sources={kernel.name: _source_here(kernel.name) for kernel in job.manifest.kernels},
        reads_records=triton_seam.reads_autotune_records(),
        ptxas=triton_seam.ptxas_path(target.arch),
        planned_ptxas=path_of(job.manifest.toolchain.ptxas, target.arch),
    )


def _source_here(kernel: str) -> str | None:
    try:
        return triton_seam.source_digest(triton_seam.kernel_named(kernel))
    except PrewarmError:
        return None


def _answer(launch: Launch) -> Answer:
    try:
        key = triton_seam.cache_key_of(launch)
    except PrewarmError as error:
        return Answer(
            launch=launch.digest, kernel=launch.kernel, key=None, hit=False, reason=error.message
        )
    try:
        entry = triton_seam.find_launch(launch)
        modules, missing = triton_seam.find_host_modules(entry)
    except triton_seam.WouldCompileError:
        reason = "there is no entry of this key"
        return Answer(launch=launch.digest, kernel=launch.kernel, key=key, hit=False, reason=reason)
    return Answer(
        launch=launch.digest,
        kernel=launch.kernel,
        key=entry.key,
        hit=True,
        host_modules=modules,
        missing=missing,
        reason=f"{', '.join(missing)} would be built with a C compiler" if missing else None,
    )
