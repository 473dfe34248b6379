"""The steps that several verbs share, each told as it goes."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, TypeVar

from prewarm.core.errors import HostError, InputError
from prewarm.core.finding import MOUNT_PATH, UNKNOWN, Finding
from prewarm.core.manifest import Manifest
from prewarm.core.manifest_diff import compare
from prewarm.core.manifest_yaml import read_manifest, render_manifest
from prewarm.core.target import Target
from prewarm.output import Output
from prewarm.render import changes, findings, size

T = TypeVar("T")


def trace(out: Output, target: Target, serve_args: tuple[str, ...], **options: Any) -> Manifest:
    """Return the manifest of `vllm serve` with `serve_args` on `target`."""
    if not serve_args:
        raise InputError(
            "no deployment given", f"prewarm plan --target {target.name} -- MODEL [ARGS]"
        )
    from prewarm.trace.plan import plan

    out.say(f"tracing vllm serve {' '.join(serve_args)} on a virtual {target.device_name}")
    with out.progress("workloads") as advance:
        found = plan(serve_args, target, progress=advance, **options)
    launches = sum(1 for _ in found.launches())
    out.say(f"planned {launches} launches of {len(found.kernels)} kernels")
    for each in found.unbound:
        out.say(
            f"unbound: {each.argument} follows the {each.follows}, so the first start compiles"
            f" launches of {len(each.kernels)} kernels; {each.pin} among the arguments settles it"
        )
    for work in found.elsewhere:
        out.say(
            f"elsewhere: {work.name} by {work.backend}, not Triton: {work.reason};"
            f" needs {work.needs}; here: {work.present}; cold: {work.cold}"
        )
    return found


def check_output(output: Path | None) -> None:
    """Raise InputError now, and not after minutes of work, where no image may be written."""
    from prewarm.ship.layout import refuse_foreign

    if output is not None:
        refuse_foreign(output)


def compile_launches(
    out: Output, manifest: Manifest, cache_dir: Path, jobs: int | None
) -> dict[str, int]:
    """Compile every launch of `manifest` into `cache_dir`; return how many of each outcome."""
    from prewarm.make.compile import compile_manifest

    launches = tuple(manifest.launches())
    counts = {"compiled": 0, "cached": 0, "unbound": sum(bool(each.unbound) for each in launches)}
    out.say(f"compiling into {cache_dir}")
    with (
        out.progress("compiling", len(launches) - counts["unbound"]) as advance,
        _closing(compile_manifest(manifest, cache_dir, jobs)) as outcomes,
    ):
        for outcome in outcomes:
            kind = type(outcome).__name__.lower()
            counts[kind] = counts.get(kind, 0) + 1
            advance(f"{kind} {outcome.kernel}")
    return counts


@contextlib.contextmanager
def _closing(items: Iterator[T]) -> Iterator[Iterator[T]]:
    """Yield `items`, and let the generator behind them clean up when the block is left."""
    try:
        yield items
    finally:
        if isinstance(items, Generator):
            items.close()


def pack(
    out: Output, manifest: Manifest, cache_dir: Path, output: Path, mount_path: str | None
) -> int:
    """Write the image and its digest; return the exit code."""
    from prewarm.ship.pack import pack as pack_

    packed = pack_(manifest, cache_dir, output, mount_path)
    sizes = packed.sizes
    out.say(
        f"packed {packed.launches} launches into {output}: {size(sizes.compiled)} as compiled,"
        f" {size(sizes.slim)} slim, {size(sizes.layer)} as a layer"
    )
    out.say(f"the first start with it {packed.first_start}")
    out.product(packed.manifest_digest, packed)
    return 0


def verify(out: Output, source: Path, target: Target | None, *, fit: bool) -> int:
    """Write what is wrong with the cache at `source`; return 1 if anything is."""
    from prewarm.ship.verify import verify_directory

    found = verify_directory(source)
    counted: dict[str, int] = {}
    if fit:
        try:
            misfits, counted = _misfits(out, source, target, found)
            found += misfits
        except HostError as error:
            if not found:
                raise
            out.say(f"checked: integrity; not checked: fit, because {error}")
    else:
        out.say("checked: integrity; not checked: fit")
    plain = {"findings": found, **counted}
    out.product(findings(found) if found else "sound", plain)
    return int(any(not finding.note for finding in found))


_HARMLESS = {UNKNOWN, MOUNT_PATH}
"""Findings about integrity that leave the index, the plan and what is listed as they were."""


def _misfits(
    out: Output, source: Path, target: Target | None, unsound: tuple[Finding, ...]
) -> tuple[tuple[Finding, ...], dict[str, int]]:
    """Return what keeps Triton here from the cache at `source`, and how many launches it found.

    A lookup loads the host modules of the cache, so it is left out where those are not what
    was packed.
    """
    from prewarm.device.gpu import visible_gpus
    from prewarm.make.fit import misfits, misplaced, missing_engines
    from prewarm.make.lookup import look_up
    from prewarm.ship.verify import held

    if any(finding.code not in _HARMLESS for finding in unsound):
        out.say("checked: integrity; not checked: fit, before that is mended")
        return (), {}
    cache = held(source)
    gpus = () if target else visible_gpus()
    found = misplaced(cache.manifest, target, gpus, cache.entries)
    if missing := missing_engines():
        out.say(
            f"checked: integrity; not checked: whether Triton asks for these keys,"
            f" because {', '.join(missing)} cannot be imported here"
        )
        return found, {}
    out.say("looking every launch up as a vLLM worker would")
    with _entries(source, cache.entries, unsound) as entries:
        looked = look_up(cache.plan, entries or Path(os.devnull))
    fits = misfits(cache.manifest, cache.plan, looked, looked_up=entries is not None)
    launches = len(looked.answers)
    hits = launches - len(looked.misses)
    if entries is None:
        out.say("checked: integrity, toolchain; not checked: single launches")
        return (*fits, *found), {}
    out.say(f"checked: integrity, toolchain, launches: {hits} of {launches} are hits")
    if unbound := len(cache.manifest.unbound):
        out.say(f"{unbound} more are unbound: the first start compiles them")
    return (*fits, *found), {
        "launches": launches,
        "hits": hits,
        "unbound": len(cache.manifest.unbound),
    }


@contextlib.contextmanager
def _entries(
    source: Path, entries: Path | None, unsound: tuple[Finding, ...]
) -> Iterator[Path | None]:
    """Yield the directory to look into: an image layout is installed for as long as that takes.

    None where the files point to another directory: every launch would be a miss.
    """
    if any(finding.code == MOUNT_PATH for finding in unsound):
        yield None
    elif entries is not None:
        yield entries
    else:
        from prewarm.ship.install import install

        with tempfile.TemporaryDirectory(prefix="prewarm-") as scratch:
            install(source, Path(scratch), on_mismatch="warn")
            link = Path(scratch, "triton")
            yield link if link.exists() else None


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
    """Write what differs between two manifests; return 1 if anything does."""
    found = compare(old, new)
    plain = {"old": old.digest, "new": new.digest, "changes": found}
    if found:
        out.product(changes(found), plain)
    elif old.digest != new.digest:
        out.product("the same launches; only how they were found differs", plain)
    else:
        out.product("no differences", plain)
    return int(old.digest != new.digest)


def default_cache_dir(manifest: Manifest) -> Path:
    """Return where launches of `manifest` are kept between builds."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home, "prewarm", "compiled", manifest.digest.partition(":")[2][:12])


def default_output(manifest: Manifest) -> Path:
    """Return the image that `build` writes when none is named."""
    deployment = manifest.deployment
    return Path(f"{deployment.model.name.rpartition('/')[2]}-{deployment.target}".lower())
