"""Why the installed cache did not hold what was asked for, in words that are not said for ever."""

from __future__ import annotations

from collections.abc import Mapping

from prewarm.core.asked import asked_of, constexpr_text, differences, in_words, nearest
from prewarm.core.errors import MismatchError
from prewarm.core.manifest import Constexpr, Launch, Manifest
from prewarm.core.record import Record
from prewarm.core.toolchain import Ptxas, Toolchain, ptxas_variable
from prewarm.serve.counts import START_UP
from prewarm.serve.installed import InstalledCache

MOST_ALIKE = 3
"""How many misses of one kernel for one cause are told in one phase."""

_IN_KEYS = ("ptxas", "triton_key", "triton")
_ENVIRONMENT = "environment "


class MissError(MismatchError):
    """Inference asked for what the installed cache does not hold, and was not to compile it."""


class Cause(Record, kw_only=True):
    """Why one launch or one tuning key was missed."""

    fields: tuple[str, ...]
    """What differs; misses of a kernel with the same fields have the same cause."""
    words: str
    everywhere: bool = False
    """Whether it keeps every launch from its entry, and is told once for all of them."""


def cause_of_launch(cache: InstalledCache, launch: Launch, key: str) -> Cause:
    """Return why `cache` did not hold `launch`, for which Triton asked under `key`.

    Raises InputError where the cache cannot be read.
    """
    if changed := _other_source(cache, launch.kernel, launch.source):
        return changed
    found = nearest(asked_of(launch), cache.known(launch.kernel))
    if found is None:
        return Cause(fields=("kernel",), words="the cache holds no launch of this kernel")
    known, asked = found
    if differing := differences(asked, asked_of(launch)):
        return Cause(
            fields=tuple(each.field for each in differing),
            words="; ".join(in_words(each, unbound=cache.plan.unbound) for each in differing),
        )
    cached = cache.keys.get(known.digest)
    look = f"prewarm verify {cache.directory} says more"
    if cached is None:
        words = "it was compiled at start-up and is not in the overlay any more"
    elif cached == key:
        words = f"its entry {key} is not in {cache.entries}, or cannot be used: {look}"
    else:
        words = f"its key is {cached} in the cache and {key} here: {look}"
    return Cause(fields=("entry",), words=words)


def cause_of_tuning(
    cache: InstalledCache, kernel: str, source: str, key: Mapping[str, Constexpr]
) -> Cause:
    """Return why `kernel` is autotuned for the tuning key `key`; raises InputError."""
    if changed := _other_source(cache, kernel, source):
        return changed
    here = _tuning_asked(key)
    found = nearest(here, ((None, asked) for asked in _known_keys(cache.plan, kernel)))
    differing = differences(found[1], here) if found else ()
    if differing:
        return Cause(
            fields=tuple(each.field for each in differing),
            words="; ".join(map(in_words, differing)),
        )
    if any(record.kernel == kernel for record in cache.index.autotune_records):
        words = f"its autotune record was not found: prewarm verify {cache.directory} says more"
    else:
        words = "the cache holds no winner for this tuning key: prewarm build --tunings FILE"
    return Cause(fields=("record",), words=words)


def _other_source(cache: InstalledCache, kernel: str, source: str) -> Cause | None:
    planned = cache.index.sources.get(kernel)
    if planned is None or planned == source:
        return None
    words = "its source here is not the one that was planned: build again with this vLLM"
    return Cause(fields=("source",), words=words)


def _tuning_asked(key: Mapping[str, Constexpr]) -> dict[str, str]:
    return {f"tuning key {name}": constexpr_text(value) for name, value in key.items()}


def _known_keys(plan: Manifest, kernel: str) -> list[dict[str, str]]:
    return [
        _tuning_asked(specialization.tuning_key)
        for each in plan.kernels
        if each.name == kernel
        for specialization in each.specializations
    ]


def cause_of_all(built: Toolchain, here: Toolchain, arch: int, ptxas: str | None) -> Cause | None:
    """Return why every key here is another than in the cache, None where nothing makes it so.

    `ptxas` is the path of the planned assembler, where this machine has it.
    """
    rows = [
        f"{name} is {there} in the cache and {ours} here"
        for name, there, ours in built.differences(here)
        if name in _IN_KEYS or name.startswith(_ENVIRONMENT)
    ]
    if not rows:
        return None
    fix = _ptxas_fix(built.ptxas, here.ptxas, arch, ptxas)
    return _nothing_fits("; ".join(rows) + (f": {fix}" if fix else ""))


def cause_of_another_gpu(built_for: int, target: str, arch: int) -> Cause | None:
    """Return why a cache of another architecture holds nothing for this GPU, None if it is not."""
    if built_for == arch:
        return None
    return _nothing_fits(f"it was built for sm_{built_for} ({target}), and this GPU is sm_{arch}")


def _nothing_fits(words: str) -> Cause:
    return Cause(
        fields=("toolchain",), words=f"no entry of the cache fits here: {words}", everywhere=True
    )


def _ptxas_fix(built: Ptxas, here: Ptxas, arch: int, path: str | None) -> str | None:
    if built.text == here.text:
        return None
    return f"set {ptxas_variable(arch)}={path}" if path else "build the cache again in this image"


class Told:
    """How often each cause was told."""

    def __init__(self) -> None:
        self._times: dict[tuple[str, str, tuple[str, ...]], int] = {}

    def line(self, kernel: str, phase: str, cause: Cause, event: str) -> str | None:
        """Return the line that tells of a miss, None where others like it were told before."""
        alike = ("", "", cause.fields) if cause.everywhere else (kernel, phase, cause.fields)
        most = 1 if cause.everywhere else MOST_ALIKE
        times = self._times[alike] = self._times.get(alike, 0) + 1
        if times > most:
            return None
        last = " (the next ones like this are only counted)" if times == most else ""
        when = "at start-up" if phase == START_UP else f"in {phase}"
        return f"miss {when}: {kernel} {event}: {cause.words}{last}"
