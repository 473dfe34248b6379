"""Verify: will Triton, in the image that this runs in, ask for the keys of a cache, and find them?

The half of `prewarm verify` that is about fit. Keys are not compared with a table of what should
matter: a process set up as a vLLM worker on the target says what it resolves (`look_up`), and
Triton's own lookup has the last word.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

from prewarm.core.asked import candidate_text
from prewarm.core.cache import CacheManifest
from prewarm.core.finding import (
    ENVIRONMENT,
    HOST,
    KERNEL_SOURCE,
    MISS,
    NO_HOST_MODULE,
    NO_RECORD,
    PTXAS,
    TARGET,
    TRITON_KEY,
    VLLM,
    Finding,
    in_order,
)
from prewarm.core.manifest import Launch, Manifest
from prewarm.core.selection import selected_launches
from prewarm.core.target import Target
from prewarm.core.toolchain import UNSET, Toolchain, ptxas_variable
from prewarm.core.tunings import key_text
from prewarm.device.gpu import Gpu
from prewarm.make.compile import launch_text
from prewarm.make.lookup import LookUp
from prewarm.make.place import OVERLAY, same

ENGINES = ("torch", "triton", "vllm")

_REBUILD = "build the cache in the image that will serve: prewarm build --target {} -- SERVE ARGS"
_BYPASSES = (
    "TRITON_ALWAYS_COMPILE",
    "TRITON_CACHE_MANAGER",
    "TRITON_INTERPRET",
    "TRITON_REMOTE_CACHE_BACKEND",
)
"""Variables with which Triton never looks into its directory."""
_FIRST_CONFIG = "VLLM_TRITON_FORCE_FIRST_CONFIG"
"""With this, vLLM takes the first candidate, which is seldom the winner."""
_OFF = ("", "0", "false", "off", "no", "n", "f")
"""How Triton reads a switch that is off."""


def missing_engines() -> tuple[str, ...]:
    """Return those of torch, Triton and vLLM that this Python cannot import."""

    def is_there(name: str) -> bool:
        try:
            return find_spec(name) is not None
        except ImportError:
            return False

    return tuple(name for name in ENGINES if not is_there(name))


def misplaced(
    cached: CacheManifest,
    target: Target | None,
    gpus: tuple[Gpu, ...],
    entries: Path | None,
    overlaid: Path | None = None,
) -> tuple[Finding, ...]:
    """Return what can be told without Triton: the GPU, and where this environment looks.

    `target` is the one that will serve, else the visible `gpus` are; `entries` is the
    directory that TRITON_CACHE_DIR must name, None for an image that is not unpacked, or that
    prewarm's overlay must read: the one `overlaid`, where there is an overlay.
    """
    found = [*_target(cached, target, gpus)]
    if entries is not None and not (overlaid and same(overlaid, entries)):
        found += _directory(entries)
    found += [
        _environment(name, UNSET, os.environ[name]) for name in _BYPASSES if _is_passed_by(name)
    ]
    return in_order(found)


def _is_passed_by(variable: str) -> bool:
    value = os.environ.get(variable, "")
    return value.lower() not in _OFF and not value.startswith(OVERLAY)


def misfits(
    cached: CacheManifest, plan: Manifest, found: LookUp, *, looked_up: bool = True
) -> tuple[Finding, ...]:
    """Return why a serving process here asks for other keys than `cached` has; ptxas first.

    `found` is what `look_up` returns for `plan`, the manifest that was compiled, the directory
    of the cache and its selection. Where nothing that every key depends on differs, each launch
    of the plan and each winner that Triton did not find is told as well, if it was `looked_up`
    in the cache at all.
    """
    built, here = cached.toolchain, found.toolchain
    first = _ptxas(cached, found)
    sources = _sources(cached, found)
    host = _host(built, here)
    others = [
        *_triton(cached, here),
        *_key_environment(built, here),
        *sources,
        *host,
        *_records(cached, found),
        *_vllm(built, here, sources),
    ]
    if looked_up and not keys_differ(cached, found):
        changed = changed_kernels(cached, found)
        launches = {each.digest: each for each in selected_launches(plan, cached.selection)}
        others += _launches(launches, found, changed, bool(host))
        others += _winners(found, changed)
    return (*first, *in_order(others))


def keys_differ(cached: CacheManifest, found: LookUp) -> bool:
    """Return whether what enters every key is another one here than when `cached` was built."""
    built, here = cached.toolchain, found.toolchain
    return bool(
        built.ptxas.text != here.ptxas.text
        or built.triton_key != here.triton_key
        or built.key_environment_differences(here)
    )


def changed_kernels(cached: CacheManifest, found: LookUp) -> frozenset[str]:
    """Return the kernels of `cached` whose source is another one here, or that are not here."""
    here = found.surroundings.sources
    return frozenset(name for name, source in cached.sources.items() if here.get(name) != source)


def _target(
    cached: CacheManifest, target: Target | None, gpus: tuple[Gpu, ...]
) -> Iterator[Finding]:
    asked = (
        [Gpu(name=target.device_name, arch=target.arch)]
        if target is not None
        else dict.fromkeys(gpus)
    )
    for gpu in asked:
        if gpu.arch != cached.target_arch:
            yield Finding(
                code=TARGET,
                subject="GPU",
                expected=f"sm_{cached.target_arch} ({cached.deployment.target})",
                found=f"sm_{gpu.arch} ({gpu.name})",
                fix="prewarm build --target TARGET -- SERVE ARGS, for this GPU;"
                " `prewarm show targets` lists them",
            )


def _directory(entries: Path) -> Iterator[Finding]:
    named = os.environ.get("TRITON_CACHE_DIR")
    if named and not same(Path(named), entries):
        yield _environment("TRITON_CACHE_DIR", str(entries), named)


def _ptxas(cached: CacheManifest, found: LookUp) -> tuple[Finding, ...]:
    built, here = cached.toolchain.ptxas, found.toolchain.ptxas
    if built.text == here.text:
        return ()
    path, variable = found.surroundings.planned_ptxas, ptxas_variable(cached.target_arch)
    fix = f"{variable}={path} in the environment that serves, or " if path else ""
    finding = Finding(
        code=PTXAS,
        subject="ptxas",
        expected=f"{built.version} (chosen by {built.chosen_by})",
        found=f"{here.version} (chosen by {here.chosen_by}: {found.surroundings.ptxas})",
        fix=fix + _REBUILD.format(cached.deployment.target),
    )
    return (finding,)


def _triton(cached: CacheManifest, here: Toolchain) -> Iterator[Finding]:
    built = cached.toolchain
    if built.triton_key != here.triton_key:
        yield Finding(
            code=TRITON_KEY,
            subject="Triton's key of itself",
            expected=f"{built.triton_key} (Triton {built.triton})",
            found=f"{here.triton_key} (Triton {here.triton})",
            fix=_REBUILD.format(cached.deployment.target),
        )


def _key_environment(built: Toolchain, here: Toolchain) -> tuple[Finding, ...]:
    return tuple(_environment(*row) for row in built.key_environment_differences(here))


def _environment(name: str, expected: str, found: str) -> Finding:
    fix = f"unset {name}" if expected == UNSET else f"export {name}={expected}"
    return Finding(
        code=ENVIRONMENT,
        subject=name,
        expected=expected,
        found=found,
        fix=f"{fix}; `prewarm install SOURCE --into DIR --print-env` prints what serving needs",
    )


def _records(cached: CacheManifest, found: LookUp) -> Iterator[Finding]:
    if not cached.autotune_records:
        return
    if not found.surroundings.reads_records:
        now = os.environ.get("TRITON_CACHE_AUTOTUNING", UNSET)
        yield _environment("TRITON_CACHE_AUTOTUNING", "1", now)
    if os.environ.get(_FIRST_CONFIG, "").strip().lower() in ("1", "true"):
        yield _environment(_FIRST_CONFIG, UNSET, os.environ[_FIRST_CONFIG])


def _sources(cached: CacheManifest, found: LookUp) -> tuple[Finding, ...]:
    here = found.surroundings.sources
    return tuple(
        Finding(
            code=KERNEL_SOURCE,
            subject=kernel,
            expected=cached.sources[kernel],
            found=here.get(kernel) or "no such kernel",
            fix=_REBUILD.format(cached.deployment.target),
        )
        for kernel in changed_kernels(cached, found)
    )


def _host(built: Toolchain, here: Toolchain) -> tuple[Finding, ...]:
    rows = [
        ("Python ABI", built.python_abi, here.python_abi, built.python_abi == here.python_abi),
        ("CPU architecture", built.machine, here.machine, built.machine == here.machine),
        ("C library", f"{built.libc} or newer", here.libc, _is_new_enough(built.libc, here.libc)),
    ]
    return tuple(
        Finding(
            code=HOST,
            subject=subject,
            expected=expected,
            found=found or "unknown",
            fix="build the cache in the image that will serve, or in one with an older C library",
        )
        for subject, expected, found, fits in rows
        if not fits
    )


def _is_new_enough(built: str, here: str) -> bool:
    (name, then), (name_here, now) = _library(built), _library(here)
    return name == name_here and now >= then


def _library(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, version = text.partition(" ")
    return name, tuple(map(int, re.findall(r"\d+", version)))


def _vllm(built: Toolchain, here: Toolchain, sources: tuple[Finding, ...]) -> Iterator[Finding]:
    if built.vllm != here.vllm:
        same = "with the same kernels" if not sources else "with other kernels"
        yield Finding(
            code=VLLM,
            subject="vLLM",
            expected=built.vllm,
            found=f"{here.vllm}, {same}",
            fix="prewarm plan --check MANIFEST -- SERVE ARGS, in the image that will serve",
            note=not sources,
        )


def _launches(
    launches: Mapping[str, Launch], found: LookUp, changed: frozenset[str], other_host: bool
) -> Iterator[Finding]:
    modules: Counter[str] = Counter()
    for answer in found.answers:
        if answer.kernel in changed:
            continue
        if not answer.hit and answer.launch in launches:
            yield Finding(
                code=MISS,
                subject=answer.kernel,
                expected=f"an entry for {launch_text(launches[answer.launch])}",
                found=f"{answer.key}: {answer.reason}" if answer.key else str(answer.reason),
                fix="prewarm compile and prewarm pack again, from the manifest that is deployed",
            )
        elif answer.hit and not other_host:
            modules.update(answer.missing)
    for module, count in modules.items():
        yield Finding(
            code=NO_HOST_MODULE,
            subject=module,
            expected="an extension module that loads here",
            found=f"none for {count} launches: a C compiler would be called",
            fix="prewarm compile and prewarm pack again, in the image that will serve",
        )


def _winners(found: LookUp, changed: frozenset[str]) -> Iterator[Finding]:
    for answer in found.records:
        if answer.reason is not None and answer.kernel not in changed:
            yield Finding(
                code=NO_RECORD,
                subject=answer.kernel,
                expected=f"{candidate_text(answer.winner)} for {key_text(answer.tuning_key)}",
                found=f"{answer.key}: {answer.reason}" if answer.key else answer.reason,
                fix="prewarm compile --tunings FILE and prewarm pack again, from the manifest that"
                " is deployed",
            )
