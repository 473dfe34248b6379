"""Tells of misses as PREWARM_ON_MISS says: a line in the log, an error, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from prewarm.core.errors import UnsupportedError
from prewarm.core.manifest import Constexpr, Launch
from prewarm.core.target import target_named
from prewarm.serve.counts import INFERENCE
from prewarm.serve.installed import InstalledCache
from prewarm.serve.log import LOG, feature
from prewarm.serve.misses import (
    Cause,
    MissError,
    Told,
    cause_of_all,
    cause_of_another_gpu,
    cause_of_launch,
    cause_of_tuning,
)
from prewarm.serve.settings import OnMiss

if TYPE_CHECKING:
    from prewarm.serve.triton_seam import Lookup

_UNEXPLAINED = Cause(fields=(), words="why could not be found out")


class Explainer:
    """What this process has said of misses, and what it needs to find their causes."""

    def __init__(self, on_miss: OnMiss) -> None:
        self._on_miss = on_miss
        self._told = Told()
        self._tuned: set[str] = set()
        self._found: set[str] = set()
        self._is_toolchain_read = False
        self._nothing_fits: Cause | None = None

    def compiled(self, lookup: Lookup, cache: InstalledCache, phase: str) -> None:
        """Tell of a launch that `cache` did not hold.

        Raises MissError in inference, where a miss is to be an error.
        """
        if self._on_miss != "off":
            self._tell(
                cache,
                lookup.kernel,
                phase,
                f"was compiled in {lookup.seconds:.1f} s",
                lambda: cause_of_launch(cache, launch_of(lookup), lookup.key),
            )

    def autotuned(
        self,
        kernel: str,
        tuner: Any,
        arguments: Mapping[str, Any],
        cache: InstalledCache,
        phase: str,
    ) -> None:
        """Tell of a tuning key of which `cache` has no winner; raises as `compiled`."""
        if self._on_miss == "off":
            return
        key: dict[str, Constexpr] = {}
        with feature("explaining misses"):
            key = tuning_key_of(tuner, arguments)
        asked = f"{kernel} {key}"
        if asked not in self._tuned:
            self._tell(
                cache,
                kernel,
                phase,
                "is autotuned",
                lambda: cause_of_tuning(cache, kernel, _source_of(tuner), key),
            )
            self._tuned.add(asked)

    def found(self, lookup: Lookup) -> None:
        """Say, once a kernel, that a hit in inference was one: vLLM's JIT monitor does not."""
        if lookup.kernel not in self._found:
            self._found.add(lookup.kernel)
            LOG.info(
                "prewarm: hit in inference: %s was in the cache, found in %.1f ms;"
                " vLLM's JIT monitor calls that a compilation too",
                lookup.kernel,
                lookup.seconds * 1e3,
            )

    def _tell(
        self,
        cache: InstalledCache,
        kernel: str,
        phase: str,
        event: str,
        find: Callable[[], Cause],
    ) -> None:
        cause = _UNEXPLAINED
        with feature("explaining misses"):
            cause = self._cause_of_all(cache) or find()
        if line := self._told.line(kernel, phase, cause, event):
            LOG.warning("prewarm: %s", line)
        if self._on_miss == "error" and phase == INFERENCE:
            # All in the message: a hint is shown by prewarm's own commands alone.
            raise MissError(
                f"inference asked for a kernel that the cache in {cache.directory} does not hold,"
                f" and PREWARM_ON_MISS=error: {kernel}: {cause.words};"
                " build the cache with the arguments of this deployment, or set"
                " PREWARM_ON_MISS=warn"
            )

    def _cause_of_all(self, cache: InstalledCache) -> Cause | None:
        """Return why no entry can be found at all, None where that is not so.

        Not asked before the first miss: Triton asks its ptxas for a version once a process, and
        which ptxas that is may change while vLLM starts.
        """
        if not self._is_toolchain_read:
            self._is_toolchain_read = True
            self._nothing_fits = _cause_of_all(cache)
        return self._nothing_fits


def _cause_of_all(cache: InstalledCache) -> Cause | None:
    from prewarm.device.ptxas import path_of
    from prewarm.device.toolchain import read_toolchain
    from prewarm.serve.triton_seam import active_arch

    arch, index = active_arch(), cache.index
    if another := cause_of_another_gpu(index.target_arch, index.deployment.target, arch):
        return another
    built, here = index.toolchain, read_toolchain(target_named(index.deployment.target))
    path = None if built.ptxas.text == here.ptxas.text else path_of(built.ptxas, arch)
    return cause_of_all(built, here, arch, path)


def _source_of(tuner: Any) -> str:
    from prewarm.device import triton_seam

    return triton_seam.source_digest(tuner)


def tuning_key_of(tuner: Any, arguments: Mapping[str, Any]) -> dict[str, Constexpr]:
    """Return the tuning key of a launch as a manifest has it; raises UnsupportedError."""
    from prewarm.device import triton_seam

    return dict(triton_seam.tuning_key_of(tuner, (), arguments))


def launch_of(lookup: Lookup) -> Launch:
    """Return what was looked up as a launch; raises UnsupportedError where it was none."""
    from prewarm.device import triton_seam

    asked = lookup.asked
    if asked is None:
        raise UnsupportedError(f"{lookup.kernel} was compiled without a launch")
    return triton_seam.launch_of_bound(
        asked.function, asked.bound, asked.specialization, asked.options
    )
