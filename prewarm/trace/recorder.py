"""Records every Triton launch at Triton's own binder, instead of launching it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prewarm.core.manifest import START_UP, Candidate, Constexpr, Launch
from prewarm.device import triton_seam


@dataclasses.dataclass(frozen=True)
class Tuning:
    """The autotuner around a launch, and the candidate that it was made for."""

    names: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    key: tuple[tuple[str, Constexpr], ...]
    candidate: int


@dataclasses.dataclass
class Recorded:
    """One launch, its autotuner if it has one, and the kinds of workload that reached it."""

    launch: Launch
    tuning: Tuning | None
    via: set[str]


class Recorder:
    """Collects launches; `via` names the kind of workload under way."""

    def __init__(self) -> None:
        self.via = START_UP
        self.found: dict[tuple[Any, ...], Recorded] = {}
        self.calls = 0
        """Launches, each as often as it was made; an autotuned one counts once."""
        self._tuned: dict[tuple[Any, ...], list[Recorded]] = {}
        self._tuning: Tuning | None = None
        self._last: Recorded | None = None
        self._candidates: dict[Any, tuple[Candidate, ...]] = {}

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Record instead of launching, in the whole process, inside the block."""
        with triton_seam.intercepted(self._run, self._autotune):
            yield

    def _run(self, function: Any, args: Sequence[Any], keywords: Mapping[str, Any]) -> None:
        tuning = self._tuning
        self.calls += tuning is None
        asked = triton_seam.specialization_of(function, args, keywords)
        key = (function, asked, tuning and (tuning.key, tuning.candidate))
        found = self.found.get(key)
        if found is None:
            found = Recorded(triton_seam.launch_of(function, args, keywords), tuning, set())
            self.found[key] = found
        found.via.add(self.via)
        self._last = found

    def _autotune(self, tuner: Any, args: Sequence[Any], keywords: Mapping[str, Any]) -> None:
        self.calls += 1
        configs = triton_seam.pruned_configs(tuner, args, keywords)
        key = triton_seam.tuning_key_of(tuner, args, keywords)
        candidates = self._candidates_of(tuner)

        def record(config: Any) -> Recorded:
            index = tuner.configs.index(config)
            self._tuning = Tuning(tuple(tuner.keys), candidates, key, index)
            try:
                triton_seam.run_with(tuner, config, args, keywords)
            finally:
                self._tuning = None
            assert self._last is not None
            return self._last

        first = record(configs[0])
        asked = (id(first), tuple(map(id, configs)))
        if asked not in self._tuned:
            self._tuned[asked] = [first, *map(record, configs[1:])]
        for recorded in self._tuned[asked]:
            recorded.via.add(self.via)

    def _candidates_of(self, tuner: Any) -> tuple[Candidate, ...]:
        if tuner not in self._candidates:
            self._candidates[tuner] = triton_seam.candidates_of(tuner)
        return self._candidates[tuner]
