"""Raw times of one tuning key: every config, every size, every round."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import zip_longest

from prewarm.core.manifest import Candidate, Constexpr
from prewarm.core.record import Record
from prewarm.core.tunings import Size, SizedBy

Rounds = tuple[tuple[float, ...], ...]
"""At each size of the run, microseconds of each round; none where the key is not asked for."""


class ConfigTimings(Record, kw_only=True):
    """The times of one config. Rounds of one size are interleaved with those of the others."""

    config: Candidate
    listed: bool = True
    """Whether it is one of the kernel's own candidates."""
    choosing: Rounds = ()
    """Those that choose; fewer where it was clearly beaten."""
    confirming: Rounds = ()
    """Those that take no part in the choice; none where it was beaten before."""
    failed: str | None = None
    """Why it cannot be used."""

    @property
    def all_rounds(self) -> Rounds:
        """Both groups, one after the other."""
        pairs = zip_longest(self.choosing, self.confirming, fillvalue=())
        return tuple((*choosing, *confirming) for choosing, confirming in pairs)


class Timings(Record, kw_only=True):
    """The times of every config of one tuning key."""

    kernel: str
    key: dict[str, Constexpr]
    shared: dict[str, Constexpr] = {}
    """Compile-time arguments outside the key."""
    sized_by: SizedBy | None = None
    sizes: tuple[Size, ...]
    """Of the run."""
    configs: tuple[ConfigTimings, ...]
    """The kernel's own candidates in its order, then those beyond."""

    @property
    def asked(self) -> tuple[int, ...]:
        """Indexes of the sizes at which the key is asked for, which is where anything was timed."""
        timed = [at for each in self.configs for at, times in enumerate(each.all_rounds) if times]
        return tuple(sorted(set(timed)))

    @property
    def rounds(self) -> tuple[int, ...]:
        """How often each config was timed at each size at which the key is asked for."""
        asked = self.asked
        return tuple(_fewest(each.all_rounds, asked) for each in self.configs)

    @property
    def finalists(self) -> tuple[int, ...]:
        """Indexes of the usable configs that were timed most often: nobody dropped them."""
        rounds = self.rounds
        most = max((rounds[index] for index in self.usable), default=0)
        return tuple(index for index in self.usable if rounds[index] == most)

    @property
    def usable(self) -> tuple[int, ...]:
        """Indexes of the configs that ran at every size at which the key is asked for."""
        counted = enumerate(zip(self.configs, self.rounds, strict=True))
        return tuple(i for i, (each, rounds) in counted if rounds and each.failed is None)

    def are_confirmed(self, configs: Iterable[int]) -> bool:
        """Return whether all of `configs` have rounds that took no part in the choice."""
        asked = self.asked
        return all(_fewest(self.configs[index].confirming, asked) for index in configs)

    @property
    def weights(self) -> tuple[float, ...]:
        """What the sizes count at which the key is asked for; all the same where none counts."""
        weights = tuple(self.sizes[at].weight for at in self.asked)
        return weights if any(weights) else tuple(1.0 for _ in weights)


def _fewest(rounds: Rounds, sizes: Iterable[int]) -> int:
    return min((len(rounds[at]) if at < len(rounds) else 0 for at in sizes), default=0)
