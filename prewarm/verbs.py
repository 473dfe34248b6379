"""The steps that several verbs share, each told as it goes."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from prewarm.core.capture import Capture
from prewarm.core.document import read_text
from prewarm.core.errors import HostError, InputError
from prewarm.core.files import host_errors
from prewarm.core.first_start import first_start, tuned_on
from prewarm.core.flashinfer import SHIPPED
from prewarm.core.manifest import Elsewhere, Manifest
from prewarm.core.manifest_diff import compare
from prewarm.core.manifest_yaml import parse_manifest, read_manifest, render_manifest
from prewarm.core.selection import Selection, selected_launches
from prewarm.core.target import Target, target_named
from prewarm.core.tuning_keys import tuning_keys
from prewarm.core.tunings import Size, Tunings
from prewarm.core.upgrade import upgrade
from prewarm.output import Output
from prewarm.render import size, upgrade_and_changes

if TYPE_CHECKING:
    from prewarm.trace.plan import Planner

T = TypeVar("T")


def trace(
    out: Output,
    target: Target,
    serve_args: tuple[str, ...],
    with_planner: Planner | None = None,
    **options: Any,
) -> Manifest:
    """Return the manifest of `vllm serve` with `serve_args` on `target`.

    Who traces several names the planner that they share.
    """
    if not serve_args:
        raise InputError(
            "no deployment given", f"prewarm plan --target {target.name} -- MODEL [ARGS]"
        )
    from prewarm.trace.plan import plan

    out.say(f"tracing vllm serve {' '.join(serve_args)} on a virtual {target.device_name}")
    with out.progress("workloads") as advance:
        plan_it = with_planner.plan if with_planner else plan
        found = plan_it(serve_args, target, progress=advance, **options)
    launches = sum(1 for _ in found.launches())
    out.say(f"planned {launches} launches of {len(found.kernels)} kernels")
    for each in found.unbound:
        out.say(
            f"unbound: {each.argument} follows the {each.follows}, so the first start compiles"
            f" launches of {len(each.kernels)} kernels; {each.pin} among the arguments settles it"
        )
    say_elsewhere(out, found)
    return found


def say_elsewhere(out: Output, found: Manifest) -> None:
    """Say which GDN work the deployment of `found` does outside Triton."""
    for work in found.elsewhere:
        out.say(
            f"elsewhere: {work.name} by {work.backend}, not Triton: {work.reason};"
            f" needs {work.needs}; here: {work.present}; cold: {work.cold}"
            + (f"; asks for {', '.join(work.instances)}" if work.instances else "")
        )


def planned_or_traced(
    out: Output,
    file: Path | None,
    target: Target | None,
    serve_args: tuple[str, ...],
    verb: str = "audit",
    **options: Any,
) -> Manifest:
    """Return the manifest in `file`, or that of `serve_args` on `target` where there is none.

    Raises InputError unless exactly one of the two is given.
    """
    if file is not None:
        if serve_args or target is not None:
            raise InputError(
                "a manifest has its target and its serve arguments: name no others",
                f"prewarm {verb} {file}",
            )
        return read_manifest(file)
    if target is None or not serve_args:
        raise InputError(
            f"nothing to {verb}: name a target and a deployment, or a manifest",
            f"prewarm {verb} --target b200 -- MODEL [ARGS]",
        )
    return trace(out, target, serve_args, **options)


def audit(out: Output, manifest: Manifest) -> int:
    """Write what start-up leaves to inference; return 1 if it leaves anything."""
    from prewarm import render
    from prewarm.core.audit import audit as audit_

    found = audit_(manifest)
    out.say(
        "audited: Triton kernels of GDN layers and of the model runner; not audited: those of"
        " attention, experts and sampling, which a trace leaves out"
    )
    plain = {"manifest": manifest.digest, "vllm": manifest.toolchain.vllm}
    out.product(render.audit(manifest, found), {**plain, **msgspec.to_builtins(found)})
    return int(bool(found.leaks))


def check_streams(out: Output, manifest: Manifest, **how: Any) -> int:
    """Write what random request streams find in `manifest`; return 1 if they ask for more."""
    from prewarm import render
    from prewarm.prove.closure import closure_of
    from prewarm.trace.check import serve_streams

    out.say(f"serving random request streams on a virtual {manifest.deployment.target}")
    with out.progress("streams") as advance:
        served = serve_streams(manifest, progress=advance, **how)
    found = closure_of(manifest, served.engines, how["seed"])
    out.product(
        render.closure(found),
        {"holds": found.holds, "dead_weight": found.dead_weight, **msgspec.to_builtins(found)},
    )
    return int(not found.holds)


def check_output(output: Path | None) -> None:
    """Raise InputError now, and not after minutes of work, where no image may be written."""
    from prewarm.ship.layout import refuse_foreign

    if output is not None:
        refuse_foreign(output)


_OPTIONS = {
    "all_candidates": "--all-candidates",
    "one_winner": "--one-winner",
    "other_gpu": "--tunings-of-another-gpu",
}


def read_tunings(files: Sequence[Path], **how: bool) -> Tunings | None:
    """Return what stands in `files` together, None without any; then the options ask in vain."""
    if not files:
        for option in (_OPTIONS[name] for name, given in how.items() if given):
            raise InputError(f"{option} says how tunings are used, and there are none", "--tunings")
        return None
    from prewarm.core import tunings_yaml
    from prewarm.core.tunings_merge import merge

    return merge([tunings_yaml.read_tunings(file) for file in files])


def select(
    out: Output, manifest: Manifest, tunings: Tunings | None, **how: bool
) -> Selection | None:
    """Return what `tunings` choose for `manifest`, and say how much that settles."""
    if tunings is None:
        return None
    from prewarm.core.select import select as select_

    selection = select_(manifest, tunings, **how).selection
    keys = tuning_keys(manifest, selection)
    settled = sum(key.winner is not None for key in keys)
    chosen, every = len([*selected_launches(manifest, selection)]), len([*manifest.launches()])
    out.say(
        f"tunings of {tuned_on(selection)} settle {settled} of {len(keys)} tuning keys:"
        f" {chosen} launches, {every} with every candidate"
    )
    return selection


def compile_launches(
    out: Output,
    manifest: Manifest,
    cache_dir: Path,
    jobs: int | None,
    selection: Selection | None = None,
) -> dict[str, int]:
    """Compile what `selection` names into `cache_dir`; return how many of each outcome."""
    from prewarm.make.compile import compile_manifest
    from prewarm.make.message import Recorded

    launches = tuple(selected_launches(manifest, selection))
    counts = {"compiled": 0, "cached": 0, "unbound": sum(bool(each.unbound) for each in launches)}
    records = dict.fromkeys(("written", "kept", "replaced", "removed"), 0)
    out.say(f"compiling into {cache_dir}")
    with (
        out.progress("compiling", len(launches) - counts["unbound"]) as advance,
        _closing(compile_manifest(manifest, cache_dir, jobs, selection)) as outcomes,
    ):
        for outcome in outcomes:
            if isinstance(outcome, Recorded):
                records[outcome.change] += 1
                continue
            kind = type(outcome).__name__.lower()
            counts[kind] = counts.get(kind, 0) + 1
            advance(f"{kind} {outcome.kernel}")
    for change in ("replaced", "removed"):
        if records[change]:
            out.say(f"{change} {records[change]} autotune records of other tunings in {cache_dir}")
    return {**counts, "recorded": sum(records.values()) - records["removed"]}


def build_flashinfer(
    out: Output,
    manifest: Manifest,
    directory: Path | None,
    jobs: int | None,
    *,
    to_pack: bool = False,
) -> dict[str, int]:
    """Build what the deployment asks of FlashInfer into `directory`; return the counts.

    Without a directory, say what is left out, how long it would take and the option that does it.
    `to_pack` leaves out what no image can hold, or has already, as well.
    """
    from prewarm.flashinfer.build import modules_of

    counts: dict[str, int] = {}
    modules = modules_of(manifest)
    if directory is not None and not modules:
        out.say("nothing to build of FlashInfer: this deployment prefills without it")
    for module in modules:
        if directory is None or (to_pack and not module.is_to_ship):
            say_left_out(out, module)
        else:
            counts |= build_library(out, module, manifest.deployment.target, directory, jobs)
    return counts


def build_library(
    out: Output, module: Elsewhere, target: str, directory: Path, jobs: int | None
) -> dict[str, int]:
    """Build what is asked of one module of FlashInfer into `directory`; return the counts."""
    from prewarm.flashinfer.build import build_module

    return _build_module(out, module, build_module(module, target, directory, jobs))


def say_left_out(
    out: Output, module: Elsewhere, *, of: str = "", mend: str = "--flashinfer DIR"
) -> None:
    """Say why a module of FlashInfer is not in the image `of` a deployment, and what mends that."""
    from prewarm.flashinfer.build import asked_instances
    from prewarm.flashinfer.forecast import forecast

    count = len(asked_instances(module))
    takes = forecast(module.name, count)
    if module.spared:
        what = f"which {module.present} brings"
    elif module.name in SHIPPED:
        what = f"which FlashInfer compiles when serving starts; building it takes {takes}: {mend}"
    else:
        what = (
            f"which FlashInfer compiles in every process, {takes}, and reads from no"
            " image; --gdn-prefill-backend triton does without"
        )
    out.say(f"left out{of and ' of '}{of}: {count} of {module.name}, {what}")


def _build_module(out: Output, module: Elsewhere, parts: Iterator[Any]) -> dict[str, int]:
    from prewarm.flashinfer.build import asked_instances
    from prewarm.flashinfer.forecast import forecast
    from prewarm.flashinfer.message import Failed, Kept, Made

    counts = {"flashinfer_compiled": 0, "flashinfer_kept": 0}
    with _closing(parts):
        ready = next(parts)
        left = {*ready.parts} - {*ready.built}
        instances = len(left & {*asked_instances(module)})
        takes = f", {forecast(module.name, instances)}" if left else ""
        out.say(
            f"building {module.name} with {ready.compiler}, {ready.jobs} at a time:"
            f" {len(left)} of {len(ready.parts)} parts are to be compiled{takes}"
        )
        with out.progress(f"building {module.name}", len(ready.parts)) as advance:
            for part in parts:
                match part:
                    case Made():
                        counts["flashinfer_compiled"] += 1
                        advance(f"compiled {part.part} in {part.seconds:.0f} s")
                    case Kept():
                        counts["flashinfer_kept"] += 1
                        advance(f"kept {part.part}")
                    case Failed() | _:
                        advance(f"failed {part.part}")
    return counts


def say_first_start(out: Output, manifest: Manifest, selection: Selection | None) -> None:
    """Say what a first start with the cache of `manifest` and `selection` still does."""
    unbound = sum(bool(each.unbound) for each in selected_launches(manifest, selection))
    out.say(f"the first start with it {first_start(manifest, selection, unbound)}")


@contextlib.contextmanager
def _closing(items: Iterator[T]) -> Iterator[Iterator[T]]:
    """Yield `items`, and let the generator behind them clean up when the block is left."""
    try:
        yield items
    finally:
        if isinstance(items, Generator):
            items.close()


def tune(
    out: Output,
    manifest: Manifest,
    output: Path | None,
    *,
    gpus: str | None,
    sizes: str | None,
    search: int,
    model: str | None,
    work: Path | None,
    prepare_only: bool,
    jobs: int | None,
    flashinfer: Path | None,
) -> int:
    """Measure on the GPUs here, write the tunings and the winners; return the exit code."""
    from prewarm import render
    from prewarm.core.tunings_yaml import write_tunings
    from prewarm.tune.prepare import prepare
    from prewarm.tune.sizes import default_sizes, parse_sizes
    from prewarm.tune.tune import gpus_here
    from prewarm.tune.tune import tune as tune_

    if prepare_only and work is None:
        raise InputError("--prepare-only needs --work DIR")
    if prepare_only and flashinfer is not None:
        raise InputError("--prepare-only prepares nothing of --flashinfer, which is built before")
    if not prepare_only and output is None:
        raise InputError("no file to write the tunings to", "-o tunings/GPU.yaml")
    wanted = parse_sizes(sizes) if sizes else default_sizes(manifest)
    asked = tuple(filter(None, (gpus or "").split(",")))
    chosen = () if prepare_only else gpus_here(target_named(manifest.deployment.target), asked)
    with contextlib.ExitStack() as stack:
        directory = work or Path(stack.enter_context(tempfile.TemporaryDirectory("-prewarm-tune")))
        how = {"search": search, "model": model}
        steps = _captured(out, manifest, wanted, directory / "capture.json", **how)
        if prepare_only:
            with out.progress("compiling") as advance:
                prepare(manifest, steps, directory / "cache", jobs, advance)
            out.product(str(directory), {"path": str(directory), "steps": len(steps.steps)})
            return 0
        with out.progress("tuning") as advance:
            found = tune_(
                manifest,
                steps,
                wanted,
                chosen,
                directory=directory,
                jobs=jobs,
                flashinfer=flashinfer,
                tell=advance,
            )
    assert output is not None
    write_tunings(output, found)
    out.product(render.tunings(found), {"path": str(output), "digest": found.digest})
    return 0


def _captured(
    out: Output,
    manifest: Manifest,
    sizes: tuple[Size, ...],
    file: Path,
    **how: Any,
) -> Capture:
    """Return the captured steps of `sizes`: those in `file`, or new ones, which are kept there."""
    from prewarm.core.capture_file import check_capture, read_capture, write_capture
    from prewarm.trace.capture import capture

    if file.exists():
        found = read_capture(file)
        check_capture(found, manifest, sizes, str(file))
        return found
    out.say(f"capturing {len(sizes)} prefill steps on a virtual {manifest.deployment.target}")
    with out.progress("capturing") as advance:
        made = capture(manifest, sizes, progress=advance, **how)
    with host_errors(f"make the directory {file.parent}"):
        file.parent.mkdir(parents=True, exist_ok=True)
    write_capture(file, made)
    return made


def pack(
    out: Output,
    manifest: Manifest,
    cache_dir: Path,
    output: Path,
    mount_path: str | None,
    *,
    flashinfer: Path | None = None,
) -> int:
    """Write the image and its digest; return the exit code."""
    from prewarm.ship.pack import pack as pack_

    packed = pack_(manifest, cache_dir, output, mount_path, flashinfer)
    sizes = packed.sizes
    out.say(
        f"packed {packed.launches} launches into {output}: {size(sizes.compiled)} as compiled,"
        f" {size(sizes.slim)} slim, {size(sizes.layer)} as a layer"
    )
    out.say(f"the first start with it {packed.first_start}")
    out.product(packed.manifest_digest, packed)
    return 0


def check(out: Output, file: Path, found: Manifest) -> int:
    """Write what would change in the manifest `file`; return 1 if anything would."""
    rendered = render_manifest(found)
    if file.exists() and file.read_bytes() == rendered.encode():
        out.say(f"{file} is up to date")
        return 0
    out.say(f"{file} would change")
    if not file.exists():
        out.product(f"{file} does not exist", {"changes": [], "old": None, "new": found.digest})
        return 1
    return max(1, differences(out, read_manifest(file), found))


def differences(out: Output, old: Manifest, new: Manifest) -> int:
    """Write what differs between two manifests, and what that costs; return 1 if anything does."""
    found, again = compare(old, new), upgrade(old, new)
    plain = {
        "old": old.digest,
        "new": new.digest,
        "changes": found,
        "upgrade": {**msgspec.to_builtins(again), "verdict": again.verdict()},
    }
    if found:
        out.product(upgrade_and_changes(again, found), plain)
    elif old.digest != new.digest:
        out.product("the same launches; only how they were found differs", plain)
    else:
        out.product("no differences", plain)
    return int(old.digest != new.digest)


def read_document(file: Path) -> Manifest | Tunings:
    """Return the manifest or the tunings in `file`; raises InputError."""
    from prewarm.core import tunings_yaml

    text = read_text(file, "the document")
    if tunings_yaml.holds_tunings(text):
        return tunings_yaml.parse_tunings(text, str(file))
    return parse_manifest(text, str(file))


def plain_document(found: Manifest | Tunings) -> dict[str, Any]:
    """Return a document as it stands in its file, as plain data."""
    return {"schema": found.schema, "digest": found.digest, **msgspec.to_builtins(found)}


def draw(out: Output, found: object, picture: Path) -> None:
    """Draw tunings into the file `picture`.

    Raises InputError for what is not tunings or another kind of file, HostError where
    matplotlib is missing.
    """
    if not isinstance(found, Tunings):
        raise InputError("--plot draws tunings, and this is something else")
    if picture.suffix.lower() not in (".svg", ".png"):
        raise InputError(
            f"{picture}: a picture is an .svg or a .png", f"--plot {picture.with_suffix('.svg')}"
        )
    try:
        from prewarm.plot import write_plot
    except ImportError as error:
        raise HostError(
            f"matplotlib draws the picture, and it cannot be imported here: {error}",
            "pip install 'prewarm[plot]'",
        ) from error
    write_plot(picture, found)
    out.say(f"drawn into {picture}")


def default_cache_dir(manifest: Manifest) -> Path:
    """Return where launches of `manifest` are kept between builds."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home, "prewarm", "compiled", manifest.digest.partition(":")[2][:12])


def default_output(manifest: Manifest) -> Path:
    """Return the image that `build` writes when none is named."""
    deployment = manifest.deployment
    return Path(f"{deployment.model.name.rpartition('/')[2]}-{deployment.target}".lower())
