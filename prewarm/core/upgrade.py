"""What a new vLLM asks to be done again, from the manifests of the old one and the new one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from prewarm.core.asked import (
    Asked,
    asked_of,
    config_fields,
    constexpr_text,
    differences,
    nearest,
    pairs,
)
from prewarm.core.manifest import Constexpr, Kernel, Launch, Manifest, launches_of
from prewarm.core.record import Record
from prewarm.core.selection import tuning_id
from prewarm.core.target import target_named
from prewarm.core.toolchain import Toolchain
from prewarm.core.tuning_keys import TuningKey, tuning_keys

_WHOLE = {"ptxas": "ptxas", "triton_key": "Triton's key"}
"""Fields of a toolchain that enter every compile key."""
_HOST = {"python_abi": "the Python ABI", "machine": "the CPU architecture"}
"""Fields that every host module depends on."""
_CANDIDATES, _GONE = "its candidates", "no longer asked for"


class Reason(Record, kw_only=True):
    """Why some launches of a kernel are no longer the same."""

    text: str
    launches: int


class KernelUpgrade(Record, kw_only=True):
    """What becomes of the entries of one kernel, as long as Triton itself is the same."""

    kernel: str
    stay: int = 0
    """Entries whose key is the same."""
    change: int = 0
    """Entries that are asked for in another way."""
    come: int = 0
    """Entries that none of the old ones corresponds to."""
    go: int = 0
    """Entries that are no longer asked for, and that none of the new ones corresponds to."""
    reasons: tuple[Reason, ...] = ()


class TuningUpgrade(Record, kw_only=True):
    """Whether what was measured for one tuning key still holds."""

    kernel: str
    key: dict[str, Constexpr]
    """As in the new manifest."""
    reasons: tuple[str, ...] = ()
    """Why it must be tuned again; empty where it need not."""


class Upgrade(Record, kw_only=True):
    """What must be done again for a new manifest where all was done for an old one."""

    everything: tuple[str, ...] = ()
    """What enters every key and differs; with any of it no entry can be kept."""
    host: tuple[str, ...] = ()
    """What every host module depends on and differs."""
    kernels: tuple[KernelUpgrade, ...]
    tunings: tuple[TuningUpgrade, ...]
    """One of every tuning key of the new manifest."""
    entries: int
    """Entries of the new manifest; a launch known only at start-up has none."""
    compile_again: int
    tune_again: int

    def verdict(self) -> str:
        """Return what is to be done, in one line."""
        entries = f"compile again: {self.compile_again} of {self.entries} entries"
        launchers = "build again: every host module"
        tunings = f"tune again: {self.tune_again} of {len(self.tunings)} tuning keys"
        parts = [f"{entries}{_because(self.everything)}"]
        if self.host:
            parts.append(f"{launchers}{_because(self.host)}")
        return "; ".join([*parts, tunings])


def _because(differing: Sequence[str]) -> str:
    if not differing:
        return ""
    verb = "differ" if len(differing) > 1 else "differs"
    return f" ({' and '.join(differing)} {verb})"


def upgrade(old: Manifest, new: Manifest) -> Upgrade:
    """Return what must be done again for `new` where all was done for `old`."""
    before = {kernel.name: kernel for kernel in old.kernels}
    after = {kernel.name: kernel for kernel in new.kernels}
    kernels = tuple(
        _kernel(name, before.get(name), after.get(name))
        for name in dict.fromkeys((*after, *before))
    )
    everything = tuple(_everything(old, new))
    tunings = tuple(_tunings(old, new))
    entries = sum(not launch.unbound for launch in new.launches())
    changed = sum(kernel.change + kernel.come for kernel in kernels)
    return Upgrade(
        everything=everything,
        host=tuple(_differing(_HOST, old.toolchain, new.toolchain)),
        kernels=kernels,
        tunings=tunings,
        entries=entries,
        compile_again=entries if everything else changed,
        tune_again=sum(bool(each.reasons) for each in tunings),
    )


def _everything(old: Manifest, new: Manifest) -> Iterator[str]:
    if _target(old)[1] != _target(new)[1]:
        yield "the GPU architecture"
    yield from _differing(_WHOLE, old.toolchain, new.toolchain)
    for name, _, _ in old.toolchain.key_environment_differences(new.toolchain):
        yield name


def _target(manifest: Manifest) -> tuple[str, int]:
    """Return the name and the architecture of the GPU."""
    target = target_named(manifest.deployment.target)
    return target.device_name, target.arch


def _differing(fields: Mapping[str, str], old: Toolchain, new: Toolchain) -> Iterator[str]:
    for field, _, _ in old.differences(new):
        if field in fields:
            yield fields[field]


def _kernel(name: str, old: Kernel | None, new: Kernel | None) -> KernelUpgrade:
    if old is None or new is None:
        count = len(_bound(_launches(old or new)))
        text = "a new kernel" if old is None else _GONE
        reasons = (Reason(text=text, launches=count),) if count else ()
        come, go = (count, 0) if old is None else (0, count)
        return KernelUpgrade(kernel=name, come=come, go=go, reasons=reasons)
    counts: Counter[str] = Counter()
    reasons_: Counter[str] = Counter()
    for was, is_now, reason in _fates(old, new):
        fate = _fate(was, is_now, stays=not reason)
        if fate is not None:
            counts[fate] += 1
            reasons_[reason] += 1 if reason else 0
    return KernelUpgrade(
        kernel=name,
        **counts,
        reasons=tuple(Reason(text=t, launches=n) for t, n in reasons_.items() if t),
    )


def _fate(was: Launch | None, is_now: Launch | None, *, stays: bool) -> str | None:
    """Return which count of a `KernelUpgrade` it is; None where no entry is concerned."""
    had, has = (each is not None and not each.unbound for each in (was, is_now))
    if had and has:
        return "stay" if stays else "change"
    if has:
        return "come"
    return "go" if had else None


def _fates(old: Kernel, new: Kernel) -> Iterator[tuple[Launch | None, Launch | None, str]]:
    """Yield each old launch beside the new one in its place, and why they are not the same."""
    before, after = _launches(old), _launches(new)
    asked_before, asked_after = [*map(asked_of, before)], [*map(asked_of, after)]
    config = config_fields(old, new)
    source = ["its source"] if old.source != new.source else []
    for i, j in pairs(asked_before, asked_after):
        if j is None and i is not None:
            texts = _texts(asked_before[i], _like(asked_before[i], asked_after), config)
            yield before[i], None, _CANDIDATES if texts == [_CANDIDATES] else _GONE
        elif j is not None:
            known = _like(asked_after[j], asked_before) if i is None else asked_before[i]
            texts = _texts(known, asked_after[j], config)
            yield None if i is None else before[i], after[j], ", ".join([*source, *texts])


def _like(asked: Asked, among: Sequence[Asked]) -> Asked:
    """Return the one of `among` that is most like `asked`."""
    found = nearest(asked, ((None, each) for each in among))
    return {} if found is None else found[1]


def _texts(was: Asked, is_now: Asked, config: frozenset[str]) -> list[str]:
    found = differences(was, is_now)
    told = [
        f"{each.field}: {each.known} → {each.here}" for each in found if each.field not in config
    ]
    return told or ([_CANDIDATES] if found else [])


def _launches(kernel: Kernel | None) -> list[Launch]:
    """Return every launch of `kernel`, once."""
    if kernel is None:
        return []
    every = (each for one in kernel.specializations for each in launches_of(kernel, one))
    return [*{launch.digest: launch for launch in every}.values()]


def _bound(launches: Sequence[Launch]) -> list[Launch]:
    return [launch for launch in launches if not launch.unbound]


def _tunings(old: Manifest, new: Manifest) -> Iterator[TuningUpgrade]:
    measured, everywhere = tuning_keys(old, None), [*_not_comparable(old, new)]
    before = {kernel.name: kernel for kernel in old.kernels}
    after = {kernel.name: kernel for kernel in new.kernels}
    asked = {tuning_id(each.kernel, each.key): each for each in tuning_keys(new, None)}
    for each in asked.values():
        mine = [known for known in measured if known.kernel == each.kernel]
        reasons = [*everywhere, *_changed(before.get(each.kernel), after[each.kernel])]
        if mine:
            reasons += _key(each, mine)
        yield TuningUpgrade(kernel=each.kernel, key=each.key, reasons=tuple(reasons))


def _not_comparable(old: Manifest, new: Manifest) -> Iterator[str]:
    """Yield why no time that was measured for `old` counts for `new`."""
    if _target(old)[0] != _target(new)[0]:
        yield "another GPU"
    before, after = old.toolchain.triton, new.toolchain.triton
    if before != after:
        yield f"Triton: {before} → {after}"


def _changed(old: Kernel | None, new: Kernel) -> Iterator[str]:
    if old is None or not old.candidates:
        yield "never tuned before"
        return
    if old.source != new.source:
        yield "its source"
    if old.candidates != new.candidates:
        yield _CANDIDATES


def _key(asked: TuningKey, measured: Sequence[TuningKey]) -> list[str]:
    """Return in what the key differs from the one of `measured` that is most like it."""
    here = _as_asked(asked)
    found = nearest(here, ((None, _as_asked(each)) for each in measured))
    assert found is not None
    return [f"{d.field}: {d.known} → {d.here}" for d in differences(found[1], here)]


def _as_asked(key: TuningKey) -> Asked:
    return {name: constexpr_text(value) for name, value in key.key.items()}
