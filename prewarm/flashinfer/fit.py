"""Whether FlashInfer, as it is here, takes the library of a cache for what a deployment calls."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from prewarm.core.cache import FLASHINFER_PYTHON
from prewarm.core.finding import FLASHINFER_BUILDS, FLASHINFER_ELSEWHERE, Finding
from prewarm.core.flashinfer import BuiltModule, instances_of
from prewarm.core.manifest import Manifest
from prewarm.core.record import Record
from prewarm.core.target import target_named
from prewarm.flashinfer import flashinfer_seam
from prewarm.flashinfer.build import modules_of

_NONE = "none"
_PACKAGE = "flashinfer_jit_cache"


class Surroundings(Record, kw_only=True):
    """What decides here whether FlashInfer takes a library, besides how it is called."""

    flashinfer: str
    """`none` where it is not installed."""
    cuda: str
    """CUDA release of torch: `13.0`."""
    machine: str
    libc: str


def surroundings() -> Surroundings:
    """Return those of this process."""
    import torch

    try:
        version = flashinfer_seam.version()
    except metadata.PackageNotFoundError:
        version = _NONE
    return Surroundings(
        flashinfer=version,
        cuda=torch.version.cuda or _NONE,
        machine=platform.machine(),
        libc=" ".join(platform.libc_ver()),
    )


def misfits(built: BuiltModule, deployment: Manifest, here: Surroundings) -> tuple[Finding, ...]:
    """Return why `deployment` would not run on the library `built`; nothing where it is a hit.

    Also nothing for a deployment that calls no module of FlashInfer.
    """
    return tuple(
        Finding(
            code=FLASHINFER_BUILDS,
            subject=f"{module.name}: {what}",
            expected=wanted,
            found=found,
            fix="prewarm compile MANIFEST --cache-dir CACHE --flashinfer DIR, in the image that"
            " will serve, then prewarm pack with --flashinfer DIR",
        )
        for module in modules_of(deployment)
        for what, wanted, found in (
            ("module", module.name, built.module),
            ("instances", *_instances(built, instances_of(module.name, module.calls))),
            (
                "GPU architecture",
                f"sm_{target_named(deployment.deployment.target).arch}a",
                built.arch,
            ),
            *misfits_of(built, here),
        )
        if wanted != found
    )


def misfits_of(built: BuiltModule, here: Surroundings) -> tuple[tuple[str, str, str], ...]:
    """Return in what `built` does not fit `here`: what, as it is here, as it was built."""
    return tuple(
        (what, wanted, found)
        for what, wanted, found in (
            ("release of FlashInfer", here.flashinfer, built.flashinfer),
            ("major release of CUDA", _major(here.cuda), _major(built.cuda)),
            ("CPU architecture", here.machine, built.machine),
            ("C library", *_libc(here.libc, built.libc)),
        )
        if wanted != found
    )


def _instances(built: BuiltModule, asked: tuple[str, ...]) -> tuple[str, str]:
    there = {name for library in built.libraries for name in library.instances}
    missing = sorted({*asked} - there)
    return (", ".join(missing), f"only {', '.join(sorted(there))}") if missing else ("", "")


def _major(release: str) -> str:
    return release.partition(".")[0]


def _libc(here: str, built: str) -> tuple[str, str]:
    """Return what is here and what was built with, the same where the older one built."""
    name, _, release = here.partition(" ")
    built_name, _, built_release = built.partition(" ")
    older = name == built_name and _numbers(built_release) <= _numbers(release)
    return (here, here) if older else (here, built)


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.split(".") if part.isdecimal())


def not_found(directory: Path) -> Iterator[Finding]:
    """Yield a finding where FlashInfer here does not find what is installed in `directory`.

    `directory` is that of an install or the root of a cache tree.
    """
    wanted = directory / FLASHINFER_PYTHON
    spec = find_spec(_PACKAGE)
    found = os.path.dirname(os.path.dirname(spec.origin)) if spec and spec.origin else "nothing"
    if os.path.realpath(found) != os.path.realpath(wanted):
        yield Finding(
            code=FLASHINFER_ELSEWHERE,
            subject=f"{_PACKAGE} on the module path",
            expected=str(wanted),
            found=found,
            fix=f"export PYTHONPATH={wanted}${{PYTHONPATH:+:$PYTHONPATH}},"
            " or serve with prewarm's plugin",
        )
