"""The steps that several verbs share, each told as it goes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, TypeVar

from prewarm.core.errors import InputError
from prewarm.core.manifest import Manifest
from prewarm.core.manifest_diff import compare
from prewarm.core.manifest_yaml import read_manifest, render_manifest
from prewarm.core.target import Target
from prewarm.output import Output
from prewarm.render import changes, size

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
    return found


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
