"""All configs of some tuning keys on one GPU: do they compute the same, and how fast."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from prewarm.core.capture import Capture, Step
from prewarm.core.errors import TuneError
from prewarm.core.manifest import Candidate
from prewarm.core.selection import tuning_id
from prewarm.core.tunings import Size
from prewarm.tune.message import (
    Checked,
    Progress,
    Schedule,
    Share,
    TimedConfig,
    TimedKey,
    Trying,
    timings_of,
)
from prewarm.tune.replay import Launchable, Replay
from prewarm.tune.results import Outcome, compare_results, judged, reason_of
from prewarm.tune.statistics import survivors
from prewarm.tune.timing import Launcher, Stopwatch
from prewarm.tune.timings import Timings

Tell = Callable[[Progress | Trying | Checked], object]


class Bench:
    """The raw times of a worker's shares, as they come in."""

    def __init__(
        self, capture: Capture, shares: Sequence[Share], sizes: Sequence[Size], tell: Tell
    ) -> None:
        self._capture = capture
        self._shares = shares
        self._sizes = sizes
        self._tell = tell
        self._mine = {tuning_id(share.kernel, share.key): i for i, share in enumerate(shares)}
        self._l2 = torch.cuda.get_device_properties(0).L2_cache_size
        self._working: dict[bytes, Candidate] = {}
        self._checked: dict[tuple[int, int], dict[tuple[int, int], Checked]] = {}
        self._failed: list[list[str | None]] = []
        self._alive: list[list[int]] = []
        self._times = {group: self._no_times() for group in ("choosing", "confirming")}

    def _no_times(self) -> list[list[list[list[float]]]]:
        """Return an empty list of rounds for each share, config and step."""
        steps = self._capture.steps
        return [[[[] for _ in steps] for _ in share.configs] for share in self._shares]

    def measure(
        self, schedule: Schedule, seed: int, known: Sequence[Checked] = ()
    ) -> Iterator[TimedKey]:
        """Yield the times of every share, after all rounds."""
        self._check(known)
        self._time("choosing", schedule.screening, seed)
        self._eliminate()
        self._time("choosing", schedule.choosing - schedule.screening, seed + 1)
        self._eliminate()
        self._time("confirming", schedule.confirming, seed + 2)
        yield from map(self._timed_key, range(len(self._shares)))

    def _timed_key(self, share: int) -> TimedKey:
        configs = range(len(self._shares[share].configs))
        return TimedKey(share=share, configs=tuple(self._timed(share, each) for each in configs))

    def _timed(self, share: int, config: int) -> TimedConfig:
        return TimedConfig(
            choosing=tuple(map(tuple, self._times["choosing"][share][config])),
            confirming=tuple(map(tuple, self._times["confirming"][share][config])),
            failed=self._failed[share][config],
        )

    # --- results --------------------------------------------------------------------------

    def _check(self, known: Sequence[Checked]) -> None:
        for each in known:
            self._note(each)
        for step in steps_to_check(self._capture.steps):
            self._tell(Progress(text=f"comparing results at {_size_text(step)}"))
            replay = Replay(step)
            for launch in replay.launches:
                self._check_launch(step, launch)
                self._default(launch)()
                torch.cuda.synchronize()
        self._failed = [
            judged(
                [self._outcome(index, config) for config in range(len(share.configs))], share.listed
            )
            for index, share in enumerate(self._shares)
        ]
        self._alive = [
            [index for index, failed in enumerate(each) if failed is None] for each in self._failed
        ]

    def _check_launch(self, step: Step, launch: Launchable) -> None:
        share = self._share_of(launch)
        if share is None:
            return
        size = step.tokens, step.sequences
        left = [
            (index, config)
            for index, config in enumerate(self._shares[share].configs)
            if size not in self._checked.get((share, index), {})
            and self._outcome(share, index).failed is None
        ]
        reference = self._working_config(launch)

        def trying(config: int) -> None:
            self._tell(Trying(share=share, config=config))

        for index, outcome in compare_results(launch, reference, left, trying):
            checked = Checked(
                share=share,
                config=index,
                tokens=step.tokens,
                sequences=step.sequences,
                deviation=outcome.deviation,
                floor=outcome.floor,
                failed=outcome.failed,
            )
            self._tell(checked)
            self._note(checked)

    def _note(self, checked: Checked) -> None:
        by_size = self._checked.setdefault((checked.share, checked.config), {})
        by_size[checked.tokens, checked.sequences] = checked

    def _outcome(self, share: int, config: int) -> Outcome:
        """Return the worst of what was seen of a config."""
        seen = self._checked.get((share, config), {}).values()
        return Outcome(
            deviation=max((c.deviation for c in seen), default=0.0),
            floor=max((c.floor for c in seen), default=0.0),
            failed=next((c.failed for c in seen if c.failed), None),
        )

    # --- times ----------------------------------------------------------------------------

    def _time(self, group: str, rounds: int, seed: int) -> None:
        if rounds <= 0:
            return
        for number, step in enumerate(self._capture.steps):
            replay = Replay(step)
            for launch in replay.launches:
                self._default(launch)()
            launches = [
                self._default(each) if (share := self._share_of(each)) is None else share
                for each in replay.launches
            ]
            runs = self._launchers(replay)
            self._launch_each(runs)
            alive = sum(map(len, self._alive))
            self._tell(Progress(text=f"{group}: {alive} configs at {_size_text(step)}"))
            watch = Stopwatch(launches, self._l2)
            watch.settle(runs)
            for turn in range(rounds):
                found = watch.round(runs, seed * 1000 + turn)
                for (share, config), microseconds in found.items():
                    self._times[group][share][config][number].append(microseconds)

    def _launch_each(self, runs: Mapping[int, Mapping[int, Sequence[Launcher]]]) -> None:
        """Launch every config once: the first launch loads it, and may be one that kills."""
        for share, configs in runs.items():
            for config, launchers in configs.items():
                self._tell(Trying(share=share, config=config))
                for launch in launchers:
                    launch()
                torch.cuda.synchronize()

    def _launchers(self, replay: Replay) -> dict[int, dict[int, list[Launcher]]]:
        """Return share to config to what launches it, for the launches of this step in order."""
        runs: dict[int, dict[int, list[Launcher]]] = {}
        for launch in replay.launches:
            share = self._share_of(launch)
            if share is not None:
                each = runs.setdefault(share, {config: [] for config in self._alive[share]})
                for config, launchers in each.items():
                    launchers.append(launch.with_config(self._shares[share].configs[config]))
        return runs

    def _eliminate(self) -> None:
        for share, timed in enumerate(map(self._timings, range(len(self._shares)))):
            self._alive[share] = list(survivors(timed))

    def _timings(self, share: int) -> Timings:
        asked = self._shares[share]
        return timings_of(asked, self._sizes, self._timed_key(share))

    # --- launches -------------------------------------------------------------------------

    def _share_of(self, launch: Launchable) -> int | None:
        return self._mine.get(tuning_id(launch.launch.kernel, launch.launch.tuning_key))

    def _default(self, launch: Launchable) -> Launcher:
        """Return what launches it with a config that works."""
        if not launch.is_tuned:
            return launch.with_config()
        return launch.with_config(self._working_config(launch))

    def _working_config(self, launch: Launchable) -> Candidate:
        """Return the first of the kernel's own candidates that works."""
        name = tuning_id(launch.launch.kernel, launch.launch.tuning_key)
        if name not in self._working:
            self._working[name] = self._find_working(launch)
        return self._working[name]

    def _find_working(self, launch: Launchable) -> Candidate:
        kernel = next(k for k in self._capture.kernels if k.name == launch.launch.kernel)
        reason = "it has none"
        for config in kernel.candidates:
            try:
                launch.with_config(config)()
                torch.cuda.synchronize()
            except torch.AcceleratorError:
                raise
            except Exception as error:  # noqa: BLE001 (whatever Triton raises, another may do)
                reason = reason_of(error)
            else:
                return config
        raise TuneError(f"no candidate of {launch.launch.kernel} runs on this GPU: {reason}")


def _size_text(step: Step) -> str:
    return f"{step.tokens} tokens in {step.sequences} sequence{'s' * (step.sequences > 1)}"


def steps_to_check(steps: Sequence[Step]) -> list[Step]:
    """Return the steps at which results are compared, each once.

    The smallest; the one next to 1,024 tokens with the most sequences; and of the steps with
    the fewest sequences the one next to 4,096 tokens, because pipelines fill only in long loops.
    """
    fewest = min(step.sequences for step in steps)
    alone = [step for step in steps if step.sequences == fewest]
    chosen = (
        min(steps, key=lambda step: (step.tokens, step.sequences)),
        min(steps, key=lambda step: (abs(step.tokens - 1024), -step.sequences)),
        min(alone, key=lambda step: abs(step.tokens - 4096)),
    )
    return [step for at, step in enumerate(chosen) if not any(step is s for s in chosen[:at])]
