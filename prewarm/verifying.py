"""The steps of `prewarm verify`: integrity, fit, and how a cache fits one deployment."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prewarm.core.errors import HostError, InputError
from prewarm.core.finding import MOUNT_PATH, UNKNOWN, Finding
from prewarm.core.manifest import Manifest
from prewarm.core.manifest_diff import Change, compare
from prewarm.core.record import Record
from prewarm.core.target import Target, target_named
from prewarm.output import Output
from prewarm.render import findings, short

if TYPE_CHECKING:
    from prewarm.core.cache import CacheManifest
    from prewarm.make.deployment import Fit
    from prewarm.make.lookup import LookUp
    from prewarm.ship.verify import Held

_HARMLESS = {UNKNOWN, MOUNT_PATH}
"""Findings about integrity that leave the index, the plan and what is listed as they were."""
_DEPLOYMENT = ("model", "serve arguments", "target", "geometry")
"""Sections of a comparison that say how two deployments differ."""

Told = tuple[tuple[Finding, ...], dict[str, Any]]
"""Findings, and what --json says besides."""


class Asked(Record, kw_only=True):
    """The deployment that is to hit."""

    serve_args: tuple[str, ...]
    closure: int = 50
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class _Cache:
    """The cache that is verified."""

    source: Path
    held: Held
    unsound: tuple[Finding, ...]
    overlaid: Path | None
    """The entries that prewarm's overlay reads first in a process that serves here."""

    @contextlib.contextmanager
    def entries(self) -> Iterator[Path | None]:
        """Yield the directory to look into: a layout is installed for as long as that takes.

        None where the files point to another directory: every launch would be a miss.
        """
        if any(finding.code == MOUNT_PATH for finding in self.unsound):
            yield None
        elif self.held.entries is not None:
            yield self.held.entries
        else:
            from prewarm.ship.install import install

            with tempfile.TemporaryDirectory(prefix="prewarm-") as scratch:
                install(self.source, Path(scratch), on_mismatch="warn")
                link = Path(scratch, "triton")
                yield link if link.exists() else None


def verify(
    out: Output,
    source: Path,
    target: Target | None,
    *,
    fit: bool,
    asked: Asked | None = None,
) -> int:
    """Write what is wrong with the cache at `source`; return 1 if anything is.

    With a deployment that is `asked`, each of its launches is looked up in place of those that
    the cache was built from.
    """
    from prewarm.ship.verify import verify_directory

    if asked is not None and not fit:
        raise InputError("--integrity-only asks nothing of a deployment", "leave one of them out")
    found = verify_directory(source)
    said: dict[str, Any] = {}
    if fit:
        try:
            misfits, said = _misfits(out, source, target, found, asked)
            found += misfits
        except HostError as error:
            if not found:
                raise
            out.say(f"checked: integrity; not checked: fit, because {error}")
    else:
        out.say("checked: integrity; not checked: fit")
    plain = {"findings": found, **said}
    out.product(findings(found) if found else "sound", plain)
    return int(any(not finding.note for finding in found))


def _misfits(
    out: Output,
    source: Path,
    target: Target | None,
    unsound: tuple[Finding, ...],
    asked: Asked | None,
) -> Told:
    """Return what keeps Triton here from the cache at `source`, and how many launches it found.

    A lookup loads the host modules of the cache, so it is left out where those are not what
    was packed.
    """
    from prewarm.device.gpu import visible_gpus
    from prewarm.make.fit import misplaced, missing_engines
    from prewarm.ship.verify import held

    if any(finding.code not in _HARMLESS for finding in unsound):
        out.say("checked: integrity; not checked: fit, before that is mended")
        return (), {}
    cache = _Cache(source, held(source), unsound, _overlaid())
    index, gpus = cache.held.manifest, () if target else visible_gpus()
    if asked is not None:
        found = misplaced(index, target, gpus, None)
        told, said = _fit(out, cache, _serving(index, target), asked)
        return (*told, *found), said
    found = misplaced(index, target, gpus, cache.held.entries, cache.overlaid)
    if missing := missing_engines():
        out.say(
            f"checked: integrity; not checked: whether Triton asks for these keys,"
            f" because {', '.join(missing)} cannot be imported here"
        )
        return found, {}
    told, said = _own_fit(out, cache)
    return (*told, *found), said


def _own_fit(out: Output, cache: _Cache) -> Told:
    """Return how the cache fits the deployment that it was built for."""
    from prewarm.make.fit import misfits
    from prewarm.make.lookup import look_up

    index, plan = cache.held.manifest, cache.held.plan
    out.say("looking every launch up as a vLLM worker would")
    with cache.entries() as entries:
        looked = look_up(plan, entries or Path(os.devnull), index.selection)
    fits = misfits(index, plan, looked, looked_up=entries is not None)
    fits += _flashinfer(out, cache, plan)
    if entries is None:
        out.say("checked: integrity, toolchain; not checked: single launches")
        return fits, {}
    launches = len(looked.answers)
    hits = launches - len(looked.misses)
    out.say(f"checked: integrity, toolchain, launches: {hits} of {launches} are hits")
    winners = len(looked.records)
    found_winners = sum(answer.reason is None for answer in looked.records)
    if winners:
        out.say(f"autotune records: {found_winners} of {winners} name their winner")
    if unbound := len(index.unbound):
        out.say(f"{unbound} more are unbound: the first start compiles them")
    return fits, {
        "launches": launches,
        "hits": hits,
        "unbound": len(index.unbound),
        "winners": winners,
        "records": found_winners,
    }


# --- one deployment -----------------------------------------------------------------------


def _serving(index: CacheManifest, target: Target | None) -> Target:
    """Return the GPU that will serve: `target`, unless none of its keys could be in the cache."""
    if target is not None and target.arch == index.target_arch:
        return target
    return target_named(index.deployment.target)


def _fit(out: Output, cache: _Cache, target: Target, asked: Asked) -> Told:
    """Return how the cache fits the deployment that is `asked`, traced here."""
    from prewarm.make.deployment import fit
    from prewarm.make.lookup import look_up

    deployment, directory = _traced(out, target, asked)
    index, plan = cache.held.manifest, cache.held.plan
    changes = tuple(each for each in compare(plan, deployment) if each.section in _DEPLOYMENT)
    out.say("looking every launch up as a vLLM worker would")
    with cache.entries() as entries:
        looked = look_up(plan, entries or Path(os.devnull), index.selection, deployment)
    found = fit(
        index,
        plan,
        deployment,
        looked,
        serve_args=asked.serve_args,
        looked_up=entries is not None,
    )
    _say_fit(out, cache.held.entries, looked, found, changes)
    said = _counts(found) | {
        "deployment": {
            "serve_args": asked.serve_args,
            "target": target.name,
            "toolchain": looked.toolchain,
            "ptxas": looked.surroundings.ptxas,
            "cache_directory": directory,
            "differs": changes,
            "launches": found.launches,
            "tuning_keys": found.tuning_keys,
            "unasked": found.unasked,
        }
    }
    others = _flashinfer(out, cache, deployment)
    places = _place(cache, directory, deployment, writes=found.writes)
    return (*found.findings, *others, *places), said


def _flashinfer(out: Output, cache: _Cache, deployment: Manifest) -> tuple[Finding, ...]:
    """Return what keeps FlashInfer here from the library of the cache; say so where nothing does.

    Nothing of a cache without one: it was built so.
    """
    built = cache.held.manifest.flashinfer
    if built is None or not _calls_library(cache, deployment):
        return ()
    from prewarm.flashinfer.fit import misfits, surroundings

    found = misfits(built, deployment, surroundings())
    out.say(f"FlashInfer's {built.module}: {'a miss' if found else 'a hit'}")
    return found


def _calls_library(cache: _Cache, deployment: Manifest) -> bool:
    """Return whether the cache has a library of FlashInfer and `deployment` calls FlashInfer."""
    from prewarm.flashinfer.build import modules_of

    return cache.held.manifest.flashinfer is not None and bool(modules_of(deployment))


def _place(
    cache: _Cache, directory: str | None, deployment: Manifest, *, writes: bool
) -> tuple[Finding, ...]:
    """Return what keeps `deployment` from the cache's directory; of a layout that is unknown."""
    from prewarm.make.place import not_read, not_writable

    entries = cache.held.entries
    if entries is None:
        return ()
    unread = tuple(not_read(entries, directory, cache.overlaid))
    if _calls_library(cache, deployment) and not cache.overlaid:
        from prewarm.flashinfer.fit import not_found

        unread += tuple(not_found(entries.parent))
    return unread if cache.overlaid else (*unread, *not_writable(entries, writes=writes))


def _traced(out: Output, target: Target, asked: Asked) -> tuple[Manifest, str | None]:
    from prewarm.trace.plan import plan_to_serve
    from prewarm.verbs import say_elsewhere

    words = " ".join(asked.serve_args)
    out.say(f"tracing vllm serve {words} on a virtual {target.device_name}")
    with out.progress("workloads") as advance:
        deployment, directory = plan_to_serve(
            asked.serve_args, target, closure=asked.closure, seed=asked.seed, progress=advance
        )
    say_elsewhere(out, deployment)
    return deployment, directory


def _counts(found: Fit) -> dict[str, Any]:
    unbound = found.count("unbound")
    return {
        "launches": len(found.launches) - unbound,
        "hits": found.count("hit"),
        "unbound": unbound,
        "winners": sum(each.chosen for each in found.tuning_keys),
        "records": sum(each.settled for each in found.tuning_keys),
    }


def _say_fit(
    out: Output, entries: Path | None, looked: LookUp, found: Fit, changes: tuple[Change, ...]
) -> None:
    tools = looked.toolchain
    variables = ", ".join(f"{name}={value}" for name, value in tools.key_environment.items())
    out.say(
        f"serving here: ptxas {tools.ptxas.version} ({looked.surroundings.ptxas}, chosen by"
        f" {tools.ptxas.chosen_by}), Triton {tools.triton} (key {tools.triton_key}),"
        f" {tools.python_abi} on {tools.machine} with {tools.libc},"
        f" environment in keys: {variables or 'none'}"
    )
    for change in changes:
        out.say(
            f"another deployment than that of the cache: {change.section} {change.item}:"
            f" {change.old} → {change.new}"
        )
    if entries is not None:
        from prewarm.make.place import described, user

        out.say(f"{entries} is {described(entries)}; this is {user(os.geteuid())}")
    for each in found.launches:
        why = f": {each.reason}" if each.reason else ""
        out.detail(f"{each.state:<7} {each.key or '(no key yet)':<52} {short(each.kernel)}{why}")
    counts = _counts(found)
    misses = counts["launches"] - counts["hits"]
    out.say(
        f"checked: integrity, toolchain, this deployment: {counts['hits']} of"
        f" {counts['launches']} launches are hits, {misses} misses;"
        f" {counts['unbound']} more are unbound"
    )
    if found.tuning_keys:
        out.say(
            f"autotune records: {counts['records']} of {len(found.tuning_keys)} tuning keys"
            " find their winner"
        )


def _overlaid() -> Path | None:
    """Return the entries that prewarm's overlay reads first in a process that serves here."""
    from prewarm.make.place import OVERLAY
    from prewarm.serve.settings import CACHE, read_settings

    managed = os.environ.get("TRITON_CACHE_MANAGER", "").startswith(OVERLAY)
    if not (managed and os.environ.get(CACHE)) and not _has_plugin():
        return None
    settings = read_settings(os.environ)
    return None if settings is None else settings.entries


def _has_plugin() -> bool:
    """Return whether vLLM here loads prewarm's plugin."""
    group = entry_points(group="vllm.general_plugins")
    names = {each.name for each in group if each.value.startswith("prewarm.")}
    allowed = os.environ.get("VLLM_PLUGINS")
    return bool(names if allowed is None else names & {*allowed.split(",")})
