"""Triton's autotune records of a cache: written, found, and those of other tunings removed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from prewarm.core.asked import candidate_text
from prewarm.core.child import Refusal
from prewarm.core.errors import InputError, PrewarmError
from prewarm.core.files import host_error
from prewarm.core.manifest import Candidate, Manifest
from prewarm.core.tuning_keys import TuningKey
from prewarm.device import triton_seam
from prewarm.make.entries import withdraw_index
from prewarm.make.message import Job, RecordAnswer, Recorded


def check_candidates(manifest: Manifest, asked: Sequence[TuningKey]) -> None:
    """Raise InputError where a record would be kept under a key that serving does not ask for."""
    settled = {each.kernel for each in asked if each.winner is not None}
    changed = [
        kernel.name
        for kernel in manifest.kernels
        if kernel.name in settled
        and triton_seam.candidates_of(triton_seam.autotuner_named(kernel.name)) != kernel.candidates
    ]
    if changed:
        raise InputError(
            "the manifest was planned with other candidates of\n  " + "\n  ".join(changed),
            "plan again with this vLLM",
        )


def settle_records(job: Job, asked: Sequence[TuningKey]) -> Iterator[Recorded | Refusal]:
    """Yield what became of each record, so that the cache holds those of the selection alone.

    The index of other tunings goes first: it must not describe records that are not its own.
    """
    withdraw_index(Path(job.cache_dir), job.selection)
    try:
        for each in asked:
            yield from _settle(each)
    except OSError as error:
        yield Refusal.of(host_error(error, "write the cache"))


def _settle(asked: TuningKey) -> Iterator[Recorded]:
    choice = asked.choice
    if choice is None or choice.winner is None:
        if removed := triton_seam.remove_autotune_record(asked):
            yield Recorded(record=removed, change="removed")
    else:
        record, change = triton_seam.write_autotune_record(asked, choice.winner, choice.time)
        yield Recorded(record=record, change=change)


def look_up_records(asked: Sequence[TuningKey]) -> Iterator[RecordAnswer]:
    """Yield what Triton's autotuner finds for every tuning key that has a winner."""
    for each in asked:
        if each.winner is not None:
            yield _answer(each, each.winner)


def _answer(asked: TuningKey, winner: Candidate) -> RecordAnswer:
    key, reason = None, None
    try:
        found = triton_seam.find_autotune_record(asked)
    except PrewarmError as error:
        reason = error.message
    else:
        key = found.record.key
        if found.winner != winner:
            reason = _says(found)
    return RecordAnswer(
        kernel=asked.kernel, tuning_key=asked.key, winner=winner, key=key, reason=reason
    )


def _says(found: triton_seam.FoundRecord) -> str:
    if not found.there:
        return "there is no record of this key"
    if found.winner is None:
        return "the record cannot be read"
    return f"the record names {candidate_text(found.winner)}"
