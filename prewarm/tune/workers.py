"""One worker process a GPU: tuning keys are shared out, those of a dead worker go elsewhere."""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from prewarm.core.child import Refusal, child
from prewarm.core.errors import TuneError
from prewarm.tune.message import (
    Checked,
    Message,
    Progress,
    Share,
    Started,
    Task,
    TimedConfig,
    TimedKey,
    Trying,
    decode_message,
    encode,
)

WORKER = "prewarm.tune.worker"
_ATTEMPTS = 3
"""Workers that may die over one tuning key."""
_ERROR = re.compile(r"[\w.]+(Error|Exception): ")
"""How a traceback ends, but for the advice that CUDA's errors have in the lines behind it."""

MakeTask = Callable[[str, tuple[Share, ...], tuple[Checked, ...]], Task]


@dataclasses.dataclass
class _Batch:
    """Shares, by their place in the whole, that one worker takes."""

    shares: list[int]
    avoid: str | None = None
    """The GPU whose worker died over them."""
    attempts: int = 0


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What the workers found."""

    keys: tuple[TimedKey, ...]
    """One for each share, in their order."""
    started: tuple[Started, ...]
    """Every worker that held its GPU."""


def measure(
    shares: Sequence[Share],
    gpus: Sequence[str],
    task: MakeTask,
    tell: Callable[[str], object] = lambda text: None,
    worker: str = WORKER,
) -> Measurement:
    """Return the times of all `shares`, measured by one `worker` process on each of `gpus`.

    `task(gpu, shares, checked)` makes what a worker is asked, `checked` being what workers
    before it found. A worker that dies is told of, the config that it died over counts as
    failed, and its keys go to another GPU, where there is one. Raises the PrewarmError of a
    worker, TuneError when a key outlives no worker.
    """
    pool = _Pool(shares, gpus, task, tell, worker)
    threads = [threading.Thread(target=pool.serve, args=(gpu,), daemon=True) for gpu in gpus]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return pool.measurement()


def probe(task: Task, worker: str = WORKER) -> Started:
    """Return how a worker starts on the GPU of `task`; raises the PrewarmError that ends it."""
    how = "it said nothing"
    for message in answers(task, worker):
        match message:
            case Refusal():
                raise message.error()
            case Started():
                return message
            case str():
                how = message
            case _:
                pass
    raise TuneError(f"the worker on GPU {task.gpu} died at once: {how}")


class _Pool:
    """Batches that wait, GPUs that take them, and what was found."""

    def __init__(
        self,
        shares: Sequence[Share],
        gpus: Sequence[str],
        task: MakeTask,
        tell: Callable[[str], object],
        worker: str,
    ) -> None:
        self._shares = shares
        self._task = task
        self._tell = tell
        self._worker = worker
        self._waiting = _batches(shares, len(gpus))
        self._gpus = set(gpus)
        self._busy = 0
        self._changed = threading.Condition()
        self._found: dict[int, TimedKey] = {}
        self._killed: dict[tuple[int, int], str] = {}
        self._checked: list[Checked] = []
        self._started: list[Started] = []
        self._error: BaseException | None = None

    def measurement(self) -> Measurement:
        """Return what was found; raises what stopped it."""
        if self._error is not None:
            raise self._error
        keys = tuple(self._found[index] for index in range(len(self._shares)))
        return Measurement(keys=keys, started=tuple(self._started))

    def serve(self, gpu: str) -> None:
        """Take batches for `gpu` until none is left."""
        while (batch := self._take(gpu)) is not None:
            try:
                self._work(gpu, batch)
            except BaseException as error:  # noqa: BLE001 (carried to the caller's thread)
                self._error = self._error or error
            with self._changed:
                self._busy -= 1
                self._changed.notify_all()

    def _take(self, gpu: str) -> _Batch | None:
        """Return a batch for `gpu`, waiting for one that a worker elsewhere may give back."""
        with self._changed:
            while self._error is None and gpu in self._gpus:
                alone = self._gpus == {gpu}
                batch = next((b for b in self._waiting if alone or b.avoid != gpu), None)
                if batch is not None:
                    self._waiting.remove(batch)
                    self._busy += 1
                    return batch
                if not self._waiting and not self._busy:
                    return None
                self._changed.wait()
            return None

    def _work(self, gpu: str, batch: _Batch) -> None:
        kept = {share: self._unharmful(share) for share in batch.shares}
        asked = tuple(_only(self._shares[share], configs) for share, configs in kept.items())
        last: Started | Trying | Progress | None = None
        how = ""
        known = tuple(self._known(batch.shares, kept))
        for message in answers(self._task(gpu, asked, known), self._worker):
            match message:
                case Refusal():
                    raise message.error()
                case TimedKey(share=place):
                    share = batch.shares[place]
                    self._found[share] = self._whole(message, share, kept[share])
                case Checked(share=place, config=config):
                    share = batch.shares[place]
                    whole = msgspec.structs.replace(
                        message, share=share, config=kept[share][config]
                    )
                    self._checked.append(whole)
                case Started() | Trying() | Progress():
                    last = message
                    self._hear(gpu, message)
                case str():
                    how = message
                case _:
                    pass
        left = [share for share in batch.shares if share not in self._found]
        if not left:
            return
        if isinstance(last, Trying):
            share = batch.shares[last.share]
            self._killed[share, kept[share][last.config]] = f"a worker died over it: {_end(how)}"
        self._give_back(gpu, left, batch, last, how)

    def _unharmful(self, share: int) -> list[int]:
        configs = range(len(self._shares[share].configs))
        return [config for config in configs if (share, config) not in self._killed]

    def _known(self, shares: Sequence[int], kept: Mapping[int, Sequence[int]]) -> Iterator[Checked]:
        """Yield what workers have found of `shares`, in the numbers of the next worker."""
        for each in self._checked:
            if each.share in kept and each.config in kept[each.share]:
                yield msgspec.structs.replace(
                    each,
                    share=shares.index(each.share),
                    config=kept[each.share].index(each.config),
                )

    def _hear(self, gpu: str, message: Started | Trying | Progress) -> None:
        if isinstance(message, Started):
            self._started.append(message)
        elif isinstance(message, Progress):
            self._tell(message.text if len(self._gpus) == 1 else f"GPU {gpu}: {message.text}")

    def _give_back(self, gpu: str, left: list[int], batch: _Batch, last: object, how: str) -> None:
        """Let the keys that a dead worker held go elsewhere; raises TuneError in the end."""
        self._tell(f"the worker on GPU {gpu} died ({_end(how)}): {len(left)} keys go elsewhere")
        attempts = batch.attempts + (not isinstance(last, Trying))
        if attempts >= _ATTEMPTS:
            names = "\n".join(f"  {self._shares[share].kernel}" for share in left)
            raise TuneError(f"{attempts} workers died over\n{names}\nthe last one said: {how}")
        with self._changed:
            if last is None and len(self._gpus) > 1:
                self._gpus.discard(gpu)
            self._waiting.append(_Batch(left, gpu, attempts))

    def _whole(self, timed: TimedKey, share: int, kept: Sequence[int]) -> TimedKey:
        """Return `timed` for all configs of the share, those that killed a worker as failed."""
        by_config = dict(zip(kept, timed.configs, strict=True))
        configs = tuple(
            by_config.get(index) or TimedConfig(failed=self._killed[share, index])
            for index in range(len(self._shares[share].configs))
        )
        return TimedKey(share=share, configs=configs)


def _batches(shares: Sequence[Share], gpus: int) -> list[_Batch]:
    """Return the shares in as many batches as there are GPUs, about as many configs in each."""
    batches = [_Batch([]) for _ in range(min(gpus, len(shares)))]
    for index in sorted(range(len(shares)), key=lambda i: -len(shares[i].configs)):
        lightest = min(batches, key=lambda b: sum(len(shares[i].configs) for i in b.shares))
        lightest.shares.append(index)
    return batches


def answers(task: Task, worker: str) -> Iterator[Message | str]:
    """Yield what a `worker` tells of `task`; at the end, how it ended, if it died."""
    with child(worker, encode(task)) as process:
        for line in process.answers:
            yield decode_message(line)
        code = process.wait()
        if code:
            words = process.last_words()[-2000:].strip()
            yield f"it ended with {code}" + (f": {words}" if words else "")


def _only(share: Share, configs: Sequence[int]) -> Share:
    return Share(
        kernel=share.kernel,
        key=share.key,
        configs=tuple(share.configs[index] for index in configs),
        listed=sum(index < share.listed for index in configs),
    )


def _end(text: str) -> str:
    """Return the line in which a process names the error that ended it, else its last one."""
    lines = text.strip().splitlines() or ["it said nothing"]
    return next(filter(_ERROR.match, reversed(lines)), lines[-1])
