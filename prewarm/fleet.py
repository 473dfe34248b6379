"""The steps of a fleet build: plan what a matrix names, build a shard of it."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from prewarm.core.errors import HostError, InputError, PrewarmError
from prewarm.core.files import host_errors
from prewarm.core.fleet import (
    Extent,
    Part,
    Planned,
    SharedLibrary,
    extent,
    groups_of,
    libraries_of,
    library_of,
    parse_part,
    tuned_in,
)
from prewarm.core.manifest import Manifest
from prewarm.core.manifest_yaml import read_manifest, write_manifest
from prewarm.core.matrix import Wanted
from prewarm.core.matrix_yaml import read_matrix
from prewarm.core.record import Record
from prewarm.core.select import select
from prewarm.core.selection import Selection, tuning_id
from prewarm.core.shard import (
    CACHES,
    LIBRARIES,
    PLANS,
    RECORDS,
    Shard,
    ShardDeployment,
    ShardLaunch,
    ShardRecord,
)
from prewarm.core.target import target_named
from prewarm.core.toolchain import Toolchain
from prewarm.core.tuning_keys import tuning_keys
from prewarm.core.tunings import Tunings
from prewarm.core.tunings_merge import merge
from prewarm.core.tunings_yaml import read_tunings
from prewarm.gathering import gather
from prewarm.output import Output
from prewarm.verbs import build_library, check, say_left_out, trace

if TYPE_CHECKING:
    from prewarm.trace.plan import Planner

OF_THE_JOB = "job/"
"""Begins a --shard whose number is that of the pod in its Kubernetes Indexed Job."""
_JOB_INDEX = "JOB_COMPLETION_INDEX"


class Tracing(Record, kw_only=True):
    """How deployments are planned."""

    closure: int
    seed: int


def part_named(text: str | None) -> Part | None:
    """Return the part that --shard names: `3/16`, or `job/16` in a pod of an Indexed Job."""
    if text is None or not text.startswith(OF_THE_JOB):
        return None if text is None else parse_part(text)
    index = os.environ.get(_JOB_INDEX, "")
    if not index.isdecimal():
        raise InputError(
            f"--shard {text} takes its number from {_JOB_INDEX}, which is {index or 'not set'!r}",
            "give the number itself: --shard 1/16",
        )
    return parse_part(f"{int(index) + 1}/{text.removeprefix(OF_THE_JOB)}")


def build(
    out: Output,
    matrix: Path,
    output: Path,
    *,
    part: Part | None,
    plans: Path | None,
    plans_only: bool,
    jobs: int | None,
    mount_path: str | None,
    tracing: Tracing,
) -> int:
    """Build the shard `part` of a fleet, or all of it and its images; return the exit code."""
    wanted = tuple(at_hand(out, read_matrix(matrix), matrix))
    tunings = {name: read_tunings(matrix.parent / name) for each in wanted for name in each.tunings}
    plans = plans or output / PLANS
    manifests = _plan(out, wanted, plans, part or Part(number=1, of=1), tracing)
    if plans_only:
        out.product(str(plans), {"path": str(plans), "deployments": sorted(manifests)})
        return 0
    fleet = tuple(_planned(out, each, manifests[each.name], tunings) for each in wanted)
    done = build_shard(out, fleet, part or Part(number=1, of=1), output, jobs)
    if part is not None:
        out.product(str(done), {"path": str(done), "shard": str(part)})
        return 0
    return gather(out, (done,), output, mount_path)


def at_hand(out: Output, wanted: Sequence[Wanted], matrix: Path) -> Iterator[Wanted]:
    """Yield what is to be built with the vLLM and the CPU here; what is not is told."""
    here, machine, some = _release("vllm"), platform.machine(), False
    for each in wanted:
        host = target_named(each.target).host_architecture
        if not each.is_for(here):
            out.say(f"skipped {each.name}: it is for vLLM {', '.join(each.vllm)}, here is {here}")
        elif host not in (None, machine):
            out.say(f"skipped {each.name}: {each.target} sits on {host} hosts, here is {machine}")
        else:
            some = True
            yield each
    if not some:
        raise InputError(f"{matrix} names nothing for vLLM {here} on {machine}")


def _release(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError as error:
        raise HostError(
            f"{package} is not installed here", "run it in the vLLM image that will serve"
        ) from error


# --- plans --------------------------------------------------------------------------------


def _plan(
    out: Output, wanted: Sequence[Wanted], plans: Path, part: Part, tracing: Tracing
) -> dict[str, Manifest]:
    """Return the manifest of each deployment by its name: what is in `plans`, or traced now.

    Each shard begins elsewhere, so that shards with one directory for their plans, started
    together, share the work; two that plan the same deployment write the same bytes.
    """
    from prewarm.trace.plan import Planner

    first = (part.number - 1) * len(wanted) // part.of
    found = {}
    with Planner() as planner:
        for each in (*wanted[first:], *wanted[:first]):
            path = plans / f"{each.name}.yaml"
            manifest = _present(out, path, each, tracing)
            if manifest is None:
                manifest = traced(out, planner, each, tracing)
                write_manifest(path, manifest)
            found[each.name] = manifest
    return found


def plan_all(out: Output, matrix: Path, directory: Path, tracing: Tracing) -> int:
    """Write the manifest of every deployment of `matrix` that can be planned here."""
    names = []
    for wanted, manifest in _planned_now(out, matrix, tracing):
        write_manifest(directory / f"{wanted.name}.yaml", manifest)
        names.append(wanted.name)
    out.product(str(directory), {"path": str(directory), "deployments": names})
    return 0


def check_all(out: Output, matrix: Path, directory: Path, tracing: Tracing) -> int:
    """Write what would change in the manifests in `directory`; return 1 if anything would."""
    known, changed = {each.name for each in read_matrix(matrix)}, 0
    for path in sorted(directory.glob("*.yaml")):
        if path.stem not in known:
            out.say(f"{path} is of no deployment that {matrix} names")
            changed = 1
    for wanted, manifest in _planned_now(out, matrix, tracing):
        changed |= check(out, directory / f"{wanted.name}.yaml", manifest)
    return changed


def _planned_now(out: Output, matrix: Path, tracing: Tracing) -> Iterator[tuple[Wanted, Manifest]]:
    from prewarm.trace.plan import Planner

    with Planner() as planner:
        for wanted in tuple(at_hand(out, read_matrix(matrix), matrix)):
            yield wanted, traced(out, planner, wanted, tracing)


def _present(out: Output, path: Path, wanted: Wanted, tracing: Tracing) -> Manifest | None:
    """Return the manifest in the file `path`, or None unless it is that of `wanted` here."""
    if not path.exists():
        return None
    try:
        manifest = read_manifest(path)
    except InputError as error:
        out.say(f"planning {wanted.name} again: {error.message}")
        return None
    if changed := _changed(manifest, wanted, tracing):
        out.say(f"planning {wanted.name} again: another {changed}")
        return None
    return manifest


def _changed(manifest: Manifest, wanted: Wanted, tracing: Tracing) -> str | None:
    """Return in what `manifest` is not that of `wanted` here, None in nothing that shows.

    The rest of the toolchain shows only in a process that plays the target: compile looks there.
    """
    deployment, tried = manifest.deployment, manifest.trace
    if (deployment.serve_args, deployment.target) != (wanted.serve_args, wanted.target):
        return "deployment"
    if (tried.closure, tried.seed) != (tracing.closure, tracing.seed):
        return "closure or seed"
    if _versions(manifest.toolchain) != _versions_here():
        return "toolchain"
    if os.path.isdir(wanted.serve_args[0]):
        from prewarm.trace.model_source import resolve_model

        if resolve_model(wanted.serve_args[0]).config != deployment.model.config:
            return "model config"
    return None


def _versions(toolchain: Toolchain) -> tuple[str, ...]:
    tools = toolchain
    torch = tools.torch.partition("+")[0]
    return tools.vllm, torch, tools.triton, tools.python_abi, tools.machine


def _versions_here() -> tuple[str, ...]:
    vllm, torch, triton = (_release(name) for name in ("vllm", "torch", "triton"))
    abi = sys.implementation.cache_tag or ""
    return vllm, torch.partition("+")[0], triton, abi, platform.machine()


def traced(out: Output, planner: Planner, wanted: Wanted, tracing: Tracing) -> Manifest:
    """Return the manifest of `wanted`, traced; an error names the deployment."""
    options = {"closure": tracing.closure, "seed": tracing.seed}
    try:
        return trace(out, target_named(wanted.target), wanted.serve_args, planner, **options)
    except PrewarmError as error:
        raise type(error)(f"{wanted.name}: {error.message}", error.hint) from error


def _planned(
    out: Output, wanted: Wanted, manifest: Manifest, tunings: dict[str, Tunings]
) -> Planned:
    """Return `wanted` with what the tunings of its GPU and its tuning keys choose for it."""
    asked = {tuning_id(key.kernel, key.key) for key in tuning_keys(manifest, None)}
    plain = Planned(name=wanted.name, manifest=manifest, flashinfer=wanted.flashinfer)
    _say_outside(out, plain)
    device = target_named(wanted.target).device_name
    given = [tunings[name] for name in wanted.tunings if tunings[name].gpu == device]
    its_own = [each for each in given if asked & _tuned_keys(each)]
    if not its_own:
        if wanted.tunings and asked:
            out.say(f"{wanted.name}: no tunings of it, so every candidate is compiled")
        return plain
    return msgspec.structs.replace(plain, selection=_selection(wanted, manifest, its_own))


def _say_outside(out: Output, planned: Planned) -> None:
    """Say what the image of `planned` will lack of FlashInfer, and what mends that."""
    held = library_of(planned)
    for each in planned.manifest.elsewhere:
        if held is None or each.name != held.module.name:
            say_left_out(out, each, of=planned.name, mend="`flashinfer: true` in the matrix")


def _tuned_keys(tunings: Tunings) -> set[bytes]:
    return {tuning_id(kernel.name, key.key) for kernel in tunings.kernels for key in kernel.keys}


def _selection(wanted: Wanted, manifest: Manifest, tunings: Sequence[Tunings]) -> Selection:
    try:
        return select(
            manifest,
            merge(tunings),
            all_candidates=wanted.all_candidates,
            one_winner=wanted.one_winner,
        ).selection
    except InputError as error:
        raise InputError(f"{wanted.name}: {error.message}", error.hint) from error


# --- a shard ------------------------------------------------------------------------------


def build_shard(
    out: Output, fleet: tuple[Planned, ...], part: Part, output: Path, jobs: int | None
) -> Path:
    """Compile what `part` holds of `fleet`; return the shard directory in `output`."""
    from prewarm.ship.shard import entries_of, withdraw_shard, write_shard

    directory = output / f"shard-{part.number}-of-{part.of}"
    withdraw_shard(directory)
    _keep_plans(directory, fleet)
    launches = sorted(_compile(out, fleet, part, directory, jobs), key=lambda each: each.identity)
    tuned = tuned_in(fleet, part)
    records = tuple(_records(out, tuned, directory))
    libraries = tuple(_libraries(out, libraries_of(fleet, part), directory, jobs))
    shard = Shard(
        part=part,
        libc=" ".join(platform.libc_ver()),
        vllm=_release("vllm"),
        deployments=tuple(
            ShardDeployment(
                name=e.name,
                manifest=e.manifest.digest,
                selection=e.selection,
                flashinfer=e.flashinfer,
            )
            for e in fleet
        ),
        launches=tuple(launches),
        records=records,
        tuned=tuple(each.name for each in tuned),
        libraries=libraries,
        entries=entries_of(directory, launches, records, libraries),
    )
    write_shard(directory, shard)
    return directory


def _keep_plans(directory: Path, fleet: Sequence[Planned]) -> None:
    """Put the plans of `fleet`, and no others, into the shard: whoever gathers needs them."""
    kept = {f"{each.name}.yaml" for each in fleet}
    with host_errors(f"write the shard {directory}"):
        (directory / PLANS).mkdir(parents=True, exist_ok=True)
        for path in (directory / PLANS).iterdir():
            if path.name not in kept:
                path.unlink()
    for each in fleet:
        write_manifest(directory / PLANS / f"{each.name}.yaml", each.manifest)


def _compile(
    out: Output, fleet: tuple[Planned, ...], part: Part, directory: Path, jobs: int | None
) -> list[ShardLaunch]:
    """Return the launches of `part`, compiled into `directory`."""
    from prewarm.make.fleet import compile_group

    groups, whole = groups_of(fleet, part), extent(fleet)
    mine = sum(len(group.launches) for group in groups)
    out.say(_shared(whole) + f"; shard {part} compiles {mine} of them into {directory}")
    done, compiled = [], 0
    with out.progress("compiling", mine) as advance:
        for group in groups:
            for launch, now in compile_group(group, directory / CACHES / group.name, jobs):
                done.append(launch)
                compiled += now
                advance(f"{'compiled' if now else 'cached'} {launch.kernel}")
    out.say(f"{compiled} compiled, {mine - compiled} cached")
    return done


def _shared(whole: Extent) -> str:
    return (
        f"{whole.deployments} deployments ask for {whole.launches} launches,"
        f" {whole.distinct} of them distinct"
    )


def _records(out: Output, tuned: Sequence[Planned], directory: Path) -> Iterator[ShardRecord]:
    from prewarm.make.fleet import write_records

    for each in tuned:
        written = write_records(each, directory / RECORDS / each.name)
        out.say(f"{len(written)} autotune records of {each.name}")
        yield from written


def _libraries(
    out: Output, libraries: Sequence[SharedLibrary], directory: Path, jobs: int | None
) -> Iterator[str]:
    for each in libraries:
        build_library(out, each.module, each.target, directory / LIBRARIES / each.name, jobs)
        yield each.name
