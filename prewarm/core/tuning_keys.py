"""The questions that Triton's autotuners ask: a record answers one, else it benchmarks."""

from __future__ import annotations

from collections.abc import Iterator

from prewarm.core.manifest import Candidate, Constexpr, Kernel, Manifest
from prewarm.core.record import Record
from prewarm.core.selection import Choice, Selection, choices_by_id, tuning_id


class TuningKey(Record, kw_only=True):
    """A tuning key that an autotuner settles once a process, and what a cache tells it."""

    kernel: str
    key: dict[str, Constexpr]
    """As in the manifest."""
    candidates: tuple[int, ...]
    """Indexes into the kernel's candidates after pruning: those that it would benchmark."""
    choice: Choice | None = None

    @property
    def winner(self) -> Candidate | None:
        """What the autotune record names; None where there is to be no record."""
        return None if self.choice is None else self.choice.winner


def tuning_keys(manifest: Manifest, selection: Selection | None) -> tuple[TuningKey, ...]:
    """Return every tuning key of `manifest` once for each list of candidates left by pruning.

    A kernel of one candidate has none: its autotuner looks nothing up.
    """
    choices = choices_by_id(selection)
    return tuple(
        TuningKey(
            kernel=kernel.name,
            key=key,
            candidates=candidates,
            choice=choices.get(tuning_id(kernel.name, key)),
        )
        for kernel in manifest.kernels
        if len(kernel.candidates) > 1
        for key, candidates in _asked(kernel)
    )


def _asked(kernel: Kernel) -> Iterator[tuple[dict[str, Constexpr], tuple[int, ...]]]:
    seen: set[tuple[bytes, tuple[int, ...]]] = set()
    for specialization in kernel.specializations:
        candidates = specialization.candidates
        if candidates is None:
            continue
        question = (tuning_id(kernel.name, specialization.tuning_key), candidates)
        if question not in seen:
            seen.add(question)
            yield specialization.tuning_key, candidates
