"""Records every Triton launch at Triton's own binder, instead of launching it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from triton.runtime.autotuner import Autotuner, Config
from triton.runtime.jit import JITFunction

from prewarm.core.manifest import Candidate, Constexpr, Launch
from prewarm.device.triton_seam import constexpr_of, launch_of, specialization_of


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
        self.via = "start-up"
        self.found: dict[tuple[Any, ...], Recorded] = {}
        self._tuned: dict[tuple[Any, ...], list[Recorded]] = {}
        self._tuning: Tuning | None = None
        self._last: Recorded | None = None
        self._candidates: dict[Any, tuple[Candidate, ...]] = {}

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Record instead of launching, in the whole process, inside the block."""
        run, autotune = JITFunction.run, Autotuner.run
        JITFunction.run = lambda fn, *args, **keywords: self._run(fn, args, keywords)
        Autotuner.run = lambda tuner, *args, **keywords: self._autotune(tuner, args, keywords)
        try:
            yield
        finally:
            JITFunction.run, Autotuner.run = run, autotune

    def _run(self, function: Any, args: Sequence[Any], keywords: Mapping[str, Any]) -> None:
        tuning = self._tuning
        asked = specialization_of(function, args, keywords)
        key = (function, asked, tuning and (tuning.key, tuning.candidate))
        found = self.found.get(key)
        if found is None:
            found = Recorded(launch_of(function, args, keywords), tuning, set())
            self.found[key] = found
        found.via.add(self.via)
        self._last = found

    def _autotune(self, tuner: Any, args: Sequence[Any], keywords: Mapping[str, Any]) -> None:
        tuner.nargs = dict(zip(tuner.arg_names, args, strict=False))
        pruned = tuner.prune_configs(keywords)
        names, key = tuple(tuner.keys), _tuning_key(tuner, keywords)
        candidates = self._candidates_of(tuner)

        def record(config: Config) -> Recorded:
            index = tuner.configs.index(config)
            self._tuning = Tuning(names, candidates, key, index)
            try:
                tuner.fn.run(*args, **keywords, **config.all_kwargs())
            finally:
                self._tuning = None
            assert self._last is not None
            return self._last

        first = record(pruned[0])
        asked = (id(first), tuple(map(id, pruned)))
        if asked not in self._tuned:
            self._tuned[asked] = [first, *map(record, pruned[1:])]
        for recorded in self._tuned[asked]:
            recorded.via.add(self.via)

    def _candidates_of(self, tuner: Any) -> tuple[Candidate, ...]:
        if tuner not in self._candidates:
            self._candidates[tuner] = tuple(_candidate(config) for config in tuner.configs)
        return self._candidates[tuner]


def _candidate(config: Config) -> Candidate:
    return Candidate(
        constexprs={name: constexpr_of(value, name) for name, value in config.kwargs.items()},
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        num_ctas=config.num_ctas,
        maxnreg=config.maxnreg,
    )


def _tuning_key(tuner: Any, keywords: Mapping[str, Any]) -> tuple[tuple[str, Constexpr], ...]:
    """Return Triton's own tuning key: the named values, then the dtype of every tensor."""
    given = {**tuner.nargs, **keywords}
    given = {name: value for name, value in given.items() if name in tuner.arg_names}
    values = [(name, constexpr_of(given[name], name)) for name in tuner.keys if name in given]
    dtypes = [
        (f"dtype of {name}", str(value.dtype))
        for name, value in given.items()
        if hasattr(value, "dtype")
    ]
    return (*values, *dtypes)
