"""The configs that a cache is made of: what tunings choose from a manifest's candidates."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from prewarm.core.digest import canonical_json
from prewarm.core.manifest import (
    Candidate,
    Constexpr,
    Kernel,
    Launch,
    Manifest,
    Specialization,
    launch_with,
    launches_of,
)
from prewarm.core.record import Record
from prewarm.core.tunings import SizedBy, SizeWinner


class Choice(Record, kw_only=True):
    """The configs that one tuning key of one kernel is compiled with."""

    kernel: str
    key: dict[str, Constexpr]
    winner: Candidate | None = None
    """What Triton's autotune record names; None writes no record."""
    time: float = 0.0
    """Microseconds that the record gives it."""
    sized_by: SizedBy | None = None
    sizes: tuple[SizeWinner, ...] = ()
    """For a serving process that looks at the size of a launch."""
    others: tuple[Candidate, ...] = ()
    """Further configs to compile."""

    def configs(self) -> tuple[Candidate, ...]:
        """Return every config that is compiled, once, the winner first."""
        first = () if self.winner is None else (self.winner,)
        every = (*first, *(size.config for size in self.sizes), *self.others)
        return tuple({canonical_json(config): config for config in every}.values())


class Selection(Record, kw_only=True):
    """What tunings choose for one manifest."""

    gpu: str
    """The GPU that they were measured on."""
    foreign: bool = False
    """Whether that is another GPU than the manifest's target."""
    tunings: str
    """Digest of the tunings."""
    all_candidates: bool = False
    """Whether the kernels' own candidates are compiled besides."""
    choices: tuple[Choice, ...]


def selected_launches(manifest: Manifest, selection: Selection | None) -> Iterator[Launch]:
    """Yield every launch of `manifest` that a cache with `selection` holds, once.

    Without a selection, and for a tuning key that it does not name, that is every candidate.
    """
    choices = choices_by_id(selection)
    every = selection is None or selection.all_candidates
    seen: set[str] = set()
    for kernel in manifest.kernels:
        for specialization in kernel.specializations:
            choice = choices.get(tuning_id(kernel.name, specialization.tuning_key))
            for launch in _launches(kernel, specialization, choice, every):
                if launch.digest not in seen:
                    seen.add(launch.digest)
                    yield launch


def tuning_id(kernel: str, key: dict[str, Constexpr]) -> bytes:
    """Return what tells one tuning key of one kernel from every other."""
    return canonical_json([kernel, key])


def choices_by_id(selection: Selection | None) -> dict[bytes, Choice]:
    """Return the choices of `selection` by the `tuning_id` of what they choose for."""
    choices = () if selection is None else selection.choices
    return {tuning_id(choice.kernel, choice.key): choice for choice in choices}


def _launches(
    kernel: Kernel, specialization: Specialization, choice: Choice | None, every: bool
) -> Iterator[Launch]:
    # Of one candidate Triton takes that one, whatever a record says.
    tuned = specialization.candidates is not None and len(kernel.candidates) > 1
    if choice is None or not tuned or every:
        yield from launches_of(kernel, specialization)
    if choice is not None and tuned:
        yield from map(functools.partial(launch_with, kernel, specialization), choice.configs())
