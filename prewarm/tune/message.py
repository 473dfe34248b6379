"""What a worker on a GPU is asked, and what it tells, one JSON document a line."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from prewarm.core.child import Refusal
from prewarm.core.flashinfer import PrefillCall
from prewarm.core.manifest import Candidate, Constexpr
from prewarm.core.record import Record
from prewarm.core.target import Target
from prewarm.core.toolchain import Toolchain
from prewarm.core.tunings import Size, SizedBy
from prewarm.tune.timings import ConfigTimings, Timings

WINNERS, REFERENCES, FLASHINFER = "winners", "references", "flashinfer"
"""Ways to compute a prefill: Triton with the one choice of configs or the other, FlashInfer."""


class Share(Record, kw_only=True):
    """One tuning key and the configs to measure for it."""

    kernel: str
    key: dict[str, Constexpr]
    configs: tuple[Candidate, ...]
    listed: int
    """How many of them, from the first, are the kernel's own candidates."""
    shared: dict[str, Constexpr] = {}
    """Compile-time arguments outside the key."""
    sized_by: SizedBy | None = None


class Schedule(Record, kw_only=True):
    """How often every config is timed at every size."""

    screening: int = 3
    """Rounds before the first clearly beaten configs are dropped."""
    choosing: int = 9
    """Rounds that choose, the screening among them."""
    confirming: int = 9
    """Rounds that took no part in the choice."""


class Rival(Record, kw_only=True):
    """FlashInfer's prefill, to be measured beside Triton's of the same steps."""

    directory: str
    """What `prewarm compile --flashinfer` filled."""
    call: PrefillCall
    winners: tuple[Candidate, ...]
    """Of each share."""
    references: tuple[Candidate, ...]
    rounds: int = 21


class Task(Record, kw_only=True):
    """What one worker is to measure."""

    gpu: str
    """The entry of CUDA_VISIBLE_DEVICES that names its GPU."""
    target: Target
    toolchain: Toolchain
    """As planned: what chooses the assembler and the kernels' own switches."""
    capture: str
    """Path of the captured steps."""
    cache_dir: str
    shares: tuple[Share, ...]
    """None: only look at the GPU and the toolchain."""
    sizes: tuple[Size, ...] = ()
    """Of the captured steps, in order."""
    checked: tuple[Checked, ...] = ()
    """What a worker before this one found before it died."""
    schedule: Schedule = Schedule()
    seed: int = 0
    rival: Rival | None = None
    """If it is given nothing else is measured."""


class Started(Record, kw_only=True, tag="started"):
    """The worker holds its GPU."""

    gpu: str
    """Its name."""
    uuid: str
    toolchain: Toolchain


class Trying(Record, kw_only=True, tag="trying"):
    """A config is about to run for the first time: if the worker dies now, it was this one."""

    share: int
    config: int


class Checked(Record, kw_only=True, tag="checked"):
    """What the first launch of a config at one size showed."""

    share: int
    config: int
    tokens: int
    sequences: int
    deviation: float = 0.0
    """Largest relative distance of its results from those of the first config that works."""
    floor: float = 0.0
    """A distance that rounding alone explains."""
    failed: str | None = None


class Progress(Record, kw_only=True, tag="progress"):
    """Something was done."""

    text: str


class TimedConfig(Record, kw_only=True):
    """The raw times of one config."""

    choosing: tuple[tuple[float, ...], ...] = ()
    """Microseconds of each round, at each size."""
    confirming: tuple[tuple[float, ...], ...] = ()
    failed: str | None = None


class TimedKey(Record, kw_only=True, tag="timed"):
    """The raw times of every config of one tuning key."""

    share: int
    configs: tuple[TimedConfig, ...]


class Compared(Record, kw_only=True, tag="compared"):
    """One way to compute the prefill of one step."""

    step: int
    way: str
    """Triton's `winners` or `references`, `flashinfer`."""
    rounds: tuple[float, ...]
    """Microseconds of each round."""
    host: float
    """Microseconds that a CPU needs to launch it."""


class Loaded(Record, kw_only=True, tag="loaded"):
    """FlashInfer's first call in a process has ended."""

    seconds: float


def timings_of(share: Share, sizes: Sequence[Size], timed: TimedKey) -> Timings:
    """Return what was `timed` for `share`, as winners are chosen from it."""
    configs = zip(share.configs, timed.configs, strict=True)
    return Timings(
        kernel=share.kernel,
        key=share.key,
        shared=share.shared,
        sized_by=share.sized_by,
        sizes=tuple(sizes),
        configs=tuple(
            ConfigTimings(
                config=config,
                listed=index < share.listed,
                choosing=times.choosing,
                confirming=times.confirming,
                failed=times.failed,
            )
            for index, (config, times) in enumerate(configs)
        ),
    )


Message = Started | Trying | Checked | Progress | TimedKey | Compared | Loaded | Refusal

encode = msgspec.json.Encoder().encode
decode_task = msgspec.json.Decoder(Task).decode
decode_message = msgspec.json.Decoder(Message).decode
