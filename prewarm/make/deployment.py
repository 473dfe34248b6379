"""Verify for one deployment: what of all that it asks for a cache has, and why not the rest.

Triton's own lookup says what hits; `prewarm.core.coverage` says in what the nearest entry differs.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import msgspec

from prewarm.core.asked import UNBOUND, Difference, in_words
from prewarm.core.cache import CacheManifest
from prewarm.core.coverage import Lack, keys_lacking, launches_lacking, launches_unasked
from prewarm.core.finding import (
    NOT_HELD,
    UNASKED,
    UNBOUND_LAUNCH,
    UNTUNED,
    VLLM,
    Finding,
    in_order,
)
from prewarm.core.manifest import Constexpr, Launch, Manifest, Unbound
from prewarm.core.record import Record
from prewarm.core.selection import selected_launches, tuning_id
from prewarm.core.tuning_keys import tuning_keys
from prewarm.make.fit import changed_kernels, keys_differ, misfits
from prewarm.make.lookup import LookUp
from prewarm.make.message import Answer, RecordAnswer

_SOURCE = "the kernel's source is another one here"


class LaunchState(Record, kw_only=True):
    """What becomes of one launch of a deployment when it is first asked for."""

    launch: str
    """Digest of the launch."""
    kernel: str
    state: Literal["hit", "miss", "unbound"]
    """A miss compiles. What is unbound the first start compiles, whatever a cache holds."""
    held: bool
    """Whether the cache was built with this launch."""
    key: str | None = None
    """The directory that Triton looks in."""
    reason: str | None = None
    """Why it is a miss."""
    nearest: str | None = None
    """Key of the entry that is most like it, where the cache was not built with it."""
    differences: tuple[Difference, ...] = ()
    """In what that one differs."""


class TuningState(Record, kw_only=True):
    """What an autotuner does when a deployment first asks with one tuning key."""

    kernel: str
    tuning_key: dict[str, Constexpr]
    settled: bool
    """Whether it finds its winner; otherwise it benchmarks."""
    chosen: bool
    """Whether the cache was built with a winner for it."""
    candidates: int
    """How many it would benchmark."""
    key: str | None = None
    """The directory that it looks in."""
    reason: str | None = None
    differences: tuple[Difference, ...] = ()
    """In what the nearest tuning key that has a winner differs."""


class Fit(Record, kw_only=True):
    """How a cache fits one deployment."""

    launches: tuple[LaunchState, ...]
    tuning_keys: tuple[TuningState, ...]
    unasked: int
    """Entries that the deployment never asks for."""
    findings: tuple[Finding, ...]

    def count(self, state: str) -> int:
        """Return how many launches are in `state`."""
        return sum(each.state == state for each in self.launches)

    @property
    def writes(self) -> bool:
        """Whether serving adds to the cache: an entry, or an autotune record."""
        hits = self.count("hit") == len(self.launches)
        return not (hits and all(each.settled for each in self.tuning_keys))


def fit(
    cached: CacheManifest,
    plan: Manifest,
    deployment: Manifest,
    found: LookUp,
    *,
    serve_args: Sequence[str],
    looked_up: bool = True,
) -> Fit:
    """Return what `deployment` finds of the cache `cached`, and what to do about the rest.

    `plan` is the manifest that the cache was compiled from, `deployment` one that was traced
    here from `serve_args`; `found` is what `look_up` returns for both and the selection of the
    cache. Findings begin with what every key depends on, ptxas first. Where the directory cannot
    be looked up in, `looked_up` is False and nothing is a hit.
    """
    everything = None
    if not looked_up:
        everything = "Triton finds no file of this directory"
    elif keys_differ(cached, found):
        everything = "what enters every key is another one here"
    states = tuple(_launch_states(cached, plan, deployment, found, everything))
    keys = tuple(_tuning_states(cached, plan, deployment, found, everything))
    unasked = len(launches_unasked(plan, cached.selection, deployment))
    build = f"prewarm build --target {deployment.deployment.target}"
    words = shlex.join(serve_args)
    own = (
        *_not_held(
            states, changed_kernels(cached, found), deployment.unbound, f"{build} -- {words}"
        ),
        *_untuned(keys, cached, f"{build} --tunings FILE -- {words}"),
        *_unbound(states, deployment.unbound),
        *_unasked(unasked, len(cached.launches), f"{build} -- {words}"),
    )
    whole = misfits(cached, plan, found, looked_up=looked_up)
    return Fit(
        launches=states,
        tuning_keys=keys,
        unasked=unasked,
        findings=(*map(_harmless_vllm, whole), *in_order(own)),
    )


def _harmless_vllm(finding: Finding) -> Finding:
    """Return the finding of another vLLM as a note: the launches were traced with this one."""
    if finding.code != VLLM:
        return finding
    return msgspec.structs.replace(
        finding, note=True, fix="nothing: the launches were traced with the vLLM that is here"
    )


# --- launches -----------------------------------------------------------------------------


def _launch_states(
    cached: CacheManifest,
    plan: Manifest,
    deployment: Manifest,
    found: LookUp,
    everything: str | None,
) -> Iterator[LaunchState]:
    lacking = launches_lacking(plan, cached.selection, deployment)
    answers = {each.launch: each for each in found.answers}
    keys = {each.launch: each.key for each in cached.launches}
    pins = (*plan.unbound, *deployment.unbound)
    for launch in selected_launches(deployment, cached.selection):
        answer, lack = answers.get(launch.digest), lacking.get(launch.digest)
        state = _state(launch, answer, lack)
        yield LaunchState(
            launch=launch.digest,
            kernel=launch.kernel,
            state=state,
            held=lack is None,
            key=answer.key if answer else None,
            reason=_reason(answer, lack, everything, pins) if state == "miss" else None,
            nearest=keys.get(lack.nearest) if lack and lack.nearest else None,
            differences=lack.differences if lack and state == "miss" else (),
        )


def _state(
    launch: Launch, answer: Answer | None, lack: Lack | None
) -> Literal["hit", "miss", "unbound"]:
    if launch.unbound:
        return "miss" if lack is not None else "unbound"
    return "hit" if answer is not None and answer.hit and not answer.missing else "miss"


def _reason(
    answer: Answer | None, lack: Lack | None, everything: str | None, pins: Sequence[Unbound]
) -> str | None:
    if lack is not None and not (answer and answer.hit):
        return _in_words(lack, pins)
    return everything or (answer.reason if answer else None)


def _in_words(lack: Lack, pins: Sequence[Unbound]) -> str:
    if not lack.known:
        return "the cache has nothing of this kernel"
    if lack.source_differs:
        return _SOURCE
    return "; ".join(_told(each, pins) for each in lack.differences)


def _told(difference: Difference, pins: Sequence[Unbound]) -> str:
    """Return the difference in words; a pin mends it where it is pinned on one side alone."""
    pinned = UNBOUND in {difference.known, difference.here}
    return in_words(difference, unbound=pins if pinned else ())


def _not_held(
    states: Iterable[LaunchState],
    changed: frozenset[str],
    unbound: Sequence[Unbound],
    rebuild: str,
) -> Iterator[Finding]:
    groups: dict[str, list[LaunchState]] = {}
    for each in states:
        if each.state == "miss" and not each.held and each.kernel not in changed:
            groups.setdefault(each.reason or "", []).append(each)
    for reason, group in groups.items():
        yield Finding(
            code=NOT_HELD,
            subject=_counted(each.kernel for each in group),
            expected=f"an entry for {_number(len(group), 'launch', 'launches')}",
            found=reason,
            fix=_mend(group[0], unbound, rebuild),
        )


def _mend(state: LaunchState, unbound: Sequence[Unbound], rebuild: str) -> str:
    """Return what makes `state` a hit: other serve arguments, or another build."""
    fixed = {each.field: each.known for each in state.differences if each.here == UNBOUND}
    pins = [f"{each.pin} {fixed[each.argument]}" for each in unbound if each.argument in fixed]
    if pins:
        return f"{' '.join(pins)} among the serve arguments, or {rebuild} {' '.join(pins)}"
    return rebuild


def _unbound(states: Iterable[LaunchState], unbound: Sequence[Unbound]) -> Iterator[Finding]:
    waiting = [each.kernel for each in states if each.state == "unbound"]
    if waiting:
        why = ", ".join(f"`{each.argument}` follows the {each.follows}" for each in unbound)
        pins = ", ".join(sorted({each.pin for each in unbound}))
        yield Finding(
            code=UNBOUND_LAUNCH,
            subject=_counted(waiting),
            expected="entries",
            found=f"{_number(len(waiting), 'launch', 'launches')} that the first start compiles:"
            f" {why}",
            fix=f"{pins} among the arguments of `prewarm build` and of serving",
            note=True,
        )


def _unasked(unasked: int, entries: int, rebuild: str) -> Iterator[Finding]:
    if unasked:
        yield Finding(
            code=UNASKED,
            subject="entries",
            expected="those that this deployment asks for",
            found=f"{unasked} of {entries} that it never does",
            fix=f"nothing; for a smaller layer: {rebuild}",
            note=True,
        )


# --- tuning keys --------------------------------------------------------------------------


def _tuning_states(
    cached: CacheManifest,
    plan: Manifest,
    deployment: Manifest,
    found: LookUp,
    everything: str | None,
) -> Iterator[TuningState]:
    lacking = {
        tuning_id(each.asked.kernel, each.asked.key): each.lack
        for each in keys_lacking(plan, cached.selection, deployment)
    }
    records = {tuning_id(each.kernel, each.tuning_key): each for each in found.records}
    for each in tuning_keys(deployment, cached.selection):
        identity = tuning_id(each.kernel, each.key)
        record, lack = records.get(identity), lacking.get(identity)
        reason = _why_benchmarked(cached, record, lack, everything)
        yield TuningState(
            kernel=each.kernel,
            tuning_key=each.key,
            settled=reason is None,
            chosen=lack is None,
            candidates=len(each.candidates),
            key=record.key if record else None,
            reason=reason,
            differences=lack.differences if lack else (),
        )


def _why_benchmarked(
    cached: CacheManifest,
    record: RecordAnswer | None,
    lack: Lack | None,
    everything: str | None,
) -> str | None:
    if lack is None:
        return everything or (record.reason if record else None)
    if cached.selection is None:
        return "the cache was built without tunings"
    if not lack.known:
        return "the tunings of the cache have no winner of this kernel"
    if lack.source_differs:
        return _SOURCE
    return "; ".join(map(in_words, lack.differences))


def _untuned(
    states: Iterable[TuningState], cached: CacheManifest, rebuild: str
) -> Iterator[Finding]:
    groups: dict[str, list[TuningState]] = {}
    for each in states:
        if not each.chosen:
            groups.setdefault(each.reason or "", []).append(each)
    for reason, group in groups.items():
        candidates = sum(each.candidates for each in group)
        yield Finding(
            code=UNTUNED,
            subject=_counted(each.kernel for each in group),
            expected=f"an autotune record for {_number(len(group), 'tuning key', 'tuning keys')}",
            found=f"{reason}: {candidates} candidates are benchmarked at first use",
            fix=f"prewarm tune MANIFEST -o FILE where the GPU is, then {rebuild}",
            note=cached.selection is None,
        )


def _counted(kernels: Iterable[str]) -> str:
    """Return the kernels by their functions, each with how often it is among them."""
    counts = Counter(kernel.rpartition(":")[2] for kernel in kernels)
    return ", ".join(name if n == 1 else f"{name} ({n})" for name, n in sorted(counts.items()))


def _number(count: int, one: str, several: str) -> str:
    return f"{count} {one if count == 1 else several}"
