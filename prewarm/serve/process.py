"""What the plugin does in one process: Triton's cache, its events and vLLM's workers together."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from prewarm.core.manifest import Launch
from prewarm.serve import metrics, sizes
from prewarm.serve.counts import START_UP, UNBOUND
from prewarm.serve.flashinfer_seam import hear_libraries
from prewarm.serve.installed import InstalledCache
from prewarm.serve.libraries import use_libraries
from prewarm.serve.log import LOG, feature, say_once
from prewarm.serve.observer import Observer
from prewarm.serve.recording import Recording
from prewarm.serve.settings import Settings
from prewarm.serve.summary import summary
from prewarm.serve.unbound import Done, compile_settled, settle
from prewarm.serve.vllm_seam import follow_workers

_AUTOTUNE_RECORDS = "TRITON_CACHE_AUTOTUNING"
_OFF = {"0", "false", "off"}


class Process:
    """A process that vLLM started; it hears of the stages of its worker, if it has one."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._state: Path | None = None
        first = True
        with feature("prewarm's metrics"):
            self._state, first = metrics.state_directory(os.environ)
        record: Recording | None = None
        if settings.record is not None:
            with feature("PREWARM_RECORD"):
                record = Recording(settings.record, new=first)
        cache = InstalledCache(settings.entries) if settings.entries else None
        self._observer = Observer(cache, settings.on_miss, record, self._state)
        self._is_recording = record is not None
        self._first = first
        self._blocks: int | None = None
        self._unbound = Done()
        self._sized: tuple[str, ...] = ()

    def start(self) -> None:
        """Do what has to be done before vLLM imports a kernel."""
        settings = self._settings
        for problem in settings.problems if self._first else ():
            say_once(problem)
        os.environ.update(settings.exported())
        if settings.entries is not None:
            self._read_records()
            with feature("pointing Triton at the installed cache"):
                _use_cache(settings.entries, settings.overlay)
            with feature("pointing FlashInfer at the installed libraries"):
                use_libraries(settings.entries)
        self._listen()
        with feature("telling start-up from inference"):
            follow_workers(self)
        os.register_at_fork(after_in_child=self._observer.counter.begin_again)
        if self._state is not None and "prometheus_client" in sys.modules:
            with feature("prewarm's metrics"):
                metrics.expose(self._state)

    def _read_records(self) -> None:
        os.environ.setdefault(_AUTOTUNE_RECORDS, "1")
        if not _reads_records():
            say_once(
                f"{_AUTOTUNE_RECORDS}={os.environ[_AUTOTUNE_RECORDS]}: Triton reads no autotune"
                " records, and benchmarks what the cache has settled; unset it"
            )

    def _listen(self) -> None:
        with feature("counting"):
            from prewarm.serve import triton_seam

            observer = self._observer
            with feature("counting hits and compiles"):
                triton_seam.hear_lookups(observer.looked_up)
            with feature("explaining misses"):
                triton_seam.note_what_is_asked()
            with feature("counting benchmarks"):
                triton_seam.hear_benchmarks(observer.benchmark)
            with feature("counting host modules"):
                triton_seam.hear_builds(observer.built)
            if self._is_recording:
                with feature("recording tuning keys"):
                    triton_seam.hear_tuning_keys(observer.met_tuning_key)

    # --- a worker's stages ---------------------------------------------------------------

    def made(self, rank: int) -> None:
        """Hear that there is a worker."""
        self._observer.counter.rank = rank

    def loaded(self) -> None:
        """Let kernels take the winner of each size, now that vLLM has imported them."""
        cache = self._observer.cache
        with feature("counting FlashInfer's loads and builds"):
            if self._is_recording or (cache is not None and cache.libraries):
                hear_libraries(self._observer.took_library)
        if cache is None:
            return
        with feature("reading autotune records"):
            self._observer.counter.cache = cache.index.manifest
            if _reads_records():
                _let_read_records(cache.kernels)
        with feature("winners by size"):
            index = cache.index
            choices = () if index.selection is None else index.selection.choices
            imported = [each for each in choices if _is_imported(each.kernel)]
            heard = self._observer.tuned_by_size if self._is_recording else None
            installed = sizes.install(imported, heard)
            self._sized = installed.kernels
            for reason in installed.left.values():
                say_once(f"no winners by size: {reason}")

    def sized(self, gpu_blocks: int) -> None:
        """Hear that the KV cache is laid out."""
        self._blocks = gpu_blocks
        self._observer.sized(gpu_blocks)

    def warming_up(self) -> None:
        """Compile what was unbound until now."""
        counter, cache = self._observer.counter, self._observer.cache
        if cache is not None and self._blocks is not None:
            counter.phase = UNBOUND
            with feature("compiling unbound launches"):
                self._compile_unbound(cache, self._blocks)
        # A worker that warms up once more does not serve meanwhile.
        counter.phase = START_UP

    def _compile_unbound(self, cache: InstalledCache, blocks: int) -> None:
        if not cache.index.unbound:
            return
        settled = settle(cache.launches, cache.plan.unbound, blocks)
        for reason in settled.left:
            say_once(f"unbound launches are left to vLLM: {reason}")
        for launch in settled.launches:
            cache.add(launch)
        rank = self._observer.counter.rank
        self._unbound = compile_settled(settled, _compile, rank, self._state)

    def ready(self) -> None:
        """Say what start-up took; what comes now is inference."""
        self._observer.ready()
        found = self._observer.counter.counts()
        cache = self._observer.cache
        LOG.info(
            "prewarm: %s",
            summary(found, cache.directory if cache else None, self._unbound, self._sized),
        )


def _use_cache(entries: Path, overlay: Path | None) -> None:
    from prewarm.serve.overlay import use_overlay

    use_overlay(entries, overlay)


def _is_imported(kernel: str) -> bool:
    # An import earlier than vLLM's own could choose another ptxas.
    return kernel.partition(":")[0] in sys.modules


def _reads_records() -> bool:
    return os.environ[_AUTOTUNE_RECORDS].lower() not in _OFF


def _let_read_records(kernels: Iterable[str]) -> None:
    """Let autotuners that were made before this plugin was there read their records."""
    from prewarm.serve import triton_seam

    for kernel in filter(_is_imported, kernels):
        triton_seam.read_autotune_records(kernel)


def _compile(launch: Launch) -> bool:
    """Compile `launch` for this GPU, its launcher too; return whether it was there already."""
    from prewarm.device import triton_seam

    entry = triton_seam.compile_launch(launch)
    triton_seam.load_launcher(entry)
    return entry.cached
