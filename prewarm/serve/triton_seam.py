"""Every private name of Triton that prewarm touches in the serving process, for Triton 3.6."""

from __future__ import annotations

import base64
import dataclasses
import functools
import importlib
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from triton import knobs
from triton.runtime import build as triton_build
from triton.runtime.autotuner import Autotuner, Config
from triton.runtime.cache import CacheManager, FileCacheManager
from triton.runtime.driver import driver as active_driver
from triton.runtime.jit import JITFunction

from prewarm.core.errors import InputError, UnsupportedError
from prewarm.core.manifest import Candidate
from prewarm.serve.log import feature

if TYPE_CHECKING:
    from prewarm.serve.overlay import Overlay

Picked = tuple[Any, Mapping[str, Any]]
"""A config of Triton's, and the keywords that it adds to a launch."""
Pick = Callable[[tuple[Any, ...], dict[str, Any]], Picked | None]
"""From the arguments of a launch to its config; None leaves the launch to Triton."""


def autotuner_named(name: str) -> Any:
    """Return the autotuner around the kernel that `module:function` names, imported.

    Raises InputError when there is no such function, UnsupportedError when nothing tunes it, or
    when its launches do more than take the best config.
    """
    found = _imported(name)
    while not isinstance(found, Autotuner):
        found = getattr(found, "fn", None)
        if found is None:
            raise UnsupportedError(f"{name} has no autotuner")
    if reason := _unusual(found):
        raise UnsupportedError(f"{name}: {reason}")
    return found


def _imported(name: str) -> Any:
    module, _, path = name.partition(":")
    try:
        return functools.reduce(getattr, path.split("."), importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise InputError(f"cannot import the kernel {name}: {error}") from error


def _unusual(tuner: Any) -> str | None:
    if Autotuner.run.__module__ != Autotuner.__module__ or "run" in vars(tuner):
        return "something else replaces its autotuner's run"
    if tuner.user_defined_pre_hook or tuner.user_defined_post_hook:
        return "its autotuner has a hook"
    if any(config.pre_hook for config in tuner.configs):
        return "a candidate has a hook"
    return None


def names_of_arguments(tuner: Any) -> tuple[str, ...]:
    """Return the names of the kernel's parameters, in its order."""
    return tuple(tuner.arg_names)


def names_of_key(tuner: Any) -> tuple[str, ...]:
    """Return the names whose values are the tuning key."""
    return tuple(tuner.keys)


def names_of_tensors(tuner: Any) -> tuple[str, ...]:
    """Return the names of the parameters that can be tensors: their dtypes enter the key."""
    function = tuner.fn
    while not isinstance(function, JITFunction):
        function = function.fn
    return tuple(each.name for each in function.params if not each.is_constexpr)


def tuning_key_of(tuner: Any, args: tuple[Any, ...], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tuning key that Triton makes of a launch, as a manifest names its parts."""
    given = {**dict(zip(tuner.arg_names, args, strict=False)), **keywords}
    given = {name: value for name, value in given.items() if name in tuner.arg_names}
    dtypes = {f"dtype of {n}": str(v.dtype) for n, v in given.items() if hasattr(v, "dtype")}
    return {**{name: given[name] for name in tuner.keys if name in given}, **dtypes}


def picked(tuner: Any, candidate: Candidate) -> Picked:
    """Return `candidate` as Triton's config, the tuner's own one where it lists it.

    Raises UnsupportedError for a compile-time value that is a dtype or a function.
    """
    if any(isinstance(value, dict) for value in candidate.constexprs.values()):
        raise UnsupportedError(f"{candidate.constexprs} holds more than plain values")
    config = Config(
        dict(candidate.constexprs),
        num_warps=candidate.num_warps,
        num_stages=candidate.num_stages,
        num_ctas=candidate.num_ctas,
        maxnreg=candidate.maxnreg,
    )
    own = next((each for each in tuner.configs if each == config), config)
    return own, own.all_kwargs()


def replace_run(tuner: Any, pick: Pick) -> None:
    """Let launches of `tuner` take the config that `pick` says, as they take a cached one."""
    names = tuner.arg_names

    def run(*args: Any, **keywords: Any) -> Any:
        found = pick(args, keywords)
        if found is None:
            return Autotuner.run(tuner, *args, **keywords)
        tuner.nargs = dict(zip(names, args, strict=False))
        tuner.best_config, chosen = found
        result = tuner.fn.run(*args, **keywords, **chosen)
        tuner.nargs = None
        return result

    tuner.run = run


def restore_run(tuner: Any) -> None:
    """Undo `replace_run`."""
    del tuner.run


# --- the cache ----------------------------------------------------------------------------


def own_directory() -> str:
    """Return the directory that Triton itself would read and write at this moment."""
    return str(knobs.cache.dir)


def is_autotune_record(data: bytes) -> bool:
    """Return whether Triton's autotuner can take a winner from the record in `data`."""
    try:
        timings = {Config(**config): time for config, time in json.loads(data)["configs_timings"]}
        min(timings, key=timings.__getitem__)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return False
    return True


def set_cache_manager(manager: type[Any]) -> None:
    """Let Triton in this process look up and store through `manager`, whatever its environment."""
    knobs.cache.manager_class = manager


def cache_manager_of(overlay: Overlay) -> type[Any]:
    """Return a cache manager that looks up and stores in the layers of `overlay`."""

    class OverlayCache(CacheManager):
        """Dumps and overrides of kernels are no cache: they stay Triton's own."""

        def __new__(cls, key: str, override: bool = False, dump: bool = False) -> Any:
            if override or dump:
                return FileCacheManager(key, override, dump)
            return super().__new__(cls)

        def __init__(self, key: str, override: bool = False, dump: bool = False) -> None:
            self._entry = overlay.entry(key)

        def has_file(self, filename: str) -> bool:
            return self._entry.file(filename) is not None

        def get_file(self, filename: str) -> str | None:
            return self._entry.file(filename)

        def get_group(self, filename: str) -> dict[str, str] | None:
            return self._entry.group(filename)

        def put(self, data: Any, filename: str, binary: bool = True) -> str:
            # Stages arrive as modules, which later stages change.
            return self._entry.store(filename, data if isinstance(data, bytes) else str(data))

        def put_group(self, filename: str, group: dict[str, str]) -> str:
            return self._entry.store_group(filename, group)

    return OverlayCache


# --- what Triton does besides launching ---------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Asked:
    """A launch as Triton's binder settled it; it may hold tensors."""

    function: Any
    bound: Mapping[str, Any]
    specialization: Sequence[tuple[Any, Any]]
    options: Mapping[str, Any]
    """What the caller passed besides arguments."""


@dataclasses.dataclass(frozen=True)
class Lookup:
    """A kernel that was not in memory, and what became of it."""

    kernel: str
    """`module:function`, or GENERATED."""
    key: str
    """Name of the directory that Triton's cache gives the entry."""
    found: bool
    """Whether it was in the cache; else it was compiled."""
    seconds: float
    asked: Asked | None
    """None where Triton compiled without a launch."""


GENERATED = "torch._inductor"
"""Stands for all kernels that torch.compile wrote: each has a name of its own, and no source."""


class _Asking(threading.local):
    last: Asked | None = None


_ASKING = _Asking()


class _Link:
    """Ours and whoever else listens: what stands in the slot of Triton's compile listener.

    A listener set later may call the one that it found before; an event reaches ours once.
    """

    _hearing = threading.local()

    def __init__(self, ours: Callable[..., None], others: Callable[..., None] | None) -> None:
        self.ours = ours
        self.others = others

    def __call__(self, **event: Any) -> None:
        if getattr(self._hearing, "now", False):
            self._tell_others(event)
            return
        self._hearing.now = True
        try:
            self._tell_others(event)
        finally:
            self._hearing.now = False
            self.ours(**event)

    def _tell_others(self, event: Mapping[str, Any]) -> None:
        if self.others is not None:
            self.others(**event)


class _Slot:
    """Triton's slot for one compile listener, which ours never leaves."""

    def __init__(self, ours: Callable[..., None]) -> None:
        self._ours = ours

    def __get__(self, knobs: Any, owner: type) -> _Link:
        others = None if knobs is None else vars(knobs).get("listener")
        return _Link(self._ours, others)

    def __set__(self, knobs: Any, listener: Any) -> None:
        # What was read from here and is put back is not to be wrapped again.
        vars(knobs)["listener"] = listener.others if isinstance(listener, _Link) else listener


def hear_lookups(heard: Callable[[Lookup], None]) -> None:
    """Call `heard` for every kernel that was not in memory, whoever else listens; once a process.

    Raises AttributeError where this Triton has no compile listener.
    """
    _ = knobs.compilation.listener

    def listener(**event: Any) -> None:
        lookup = None
        with feature("counting hits and compiles"):
            lookup = _lookup_of(**event)
        if lookup is not None:
            heard(lookup)

    type(knobs.compilation).listener = _Slot(listener)


def _lookup_of(*, src: Any, metadata: Any, times: Any, cache_hit: bool, **_: Any) -> Lookup:
    asked, _ASKING.last = _ASKING.last, None
    function = getattr(src, "fn", None)
    return Lookup(
        kernel=kernel_label(function) if function is not None else str(src.name),
        key=_directory(metadata["hash"]),
        found=bool(cache_hit),
        seconds=times.total / 1e6,
        asked=asked if asked is not None and asked.function is function else None,
    )


def note_what_is_asked() -> None:
    """Let lookups know the launch that they are for; once a process.

    Raises AttributeError where this Triton settles launches in another way.
    """
    pack = JITFunction._pack_args

    def noting(function: Any, *settled: Any) -> Any:
        with feature("explaining misses"):
            _, _, bound, specialization, options = settled
            _ASKING.last = Asked(function, bound, specialization, dict(options))
        return pack(function, *settled)

    JITFunction._pack_args = noting


def kernel_label(function: Any) -> str:
    """Return `module:function` of a kernel or of what tunes one, GENERATED for Inductor's."""
    while not isinstance(function, JITFunction) and hasattr(function, "fn"):
        function = function.fn
    name = f"{function.__module__}:{getattr(function, '__qualname__', function)}"
    return GENERATED if name.startswith(f"{GENERATED}.") else name


def _directory(digest: str) -> str:
    return base64.b32encode(bytes.fromhex(digest)).decode().rstrip("=")


def hear_benchmarks(
    around: Callable[[str, Any, dict[str, Any]], AbstractContextManager[None]],
) -> None:
    """Run every benchmark of a config inside `around(kernel, tuner, arguments)`; once a process.

    Raises AttributeError where this Triton's autotuner benchmarks in another way.
    """
    bench = Autotuner._bench

    def noting(tuner: Any, *args: Any, **keywords: Any) -> Any:
        with around(kernel_label(tuner), tuner, _arguments(tuner, keywords)):
            return bench(tuner, *args, **keywords)

    Autotuner._bench = noting


def hear_tuning_keys(heard: Callable[[str, Any, dict[str, Any]], None]) -> None:
    """Call `heard(kernel, tuner, arguments)` for each tuning key that a tuner has not in memory.

    Once a process. Raises AttributeError where this Triton's autotuner prunes in another way.
    """
    prune = Autotuner.prune_configs

    def noting(tuner: Any, keywords: dict[str, Any], *args: Any) -> Any:
        heard(kernel_label(tuner), tuner, _arguments(tuner, keywords))
        return prune(tuner, keywords, *args)

    Autotuner.prune_configs = noting


def _arguments(tuner: Any, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the launch that `tuner` looks at, in the order of its call."""
    passed = {**(getattr(tuner, "nargs", None) or {}), **keywords}
    return {name: value for name, value in passed.items() if name in tuner.arg_names}


def hear_builds(heard: Callable[[str, float], None]) -> None:
    """Call `heard(name, seconds)` for every host module that a C compiler built; once a process.

    Raises AttributeError where this Triton builds them in another way.
    """
    build = triton_build._build

    def noting(*args: Any, **keywords: Any) -> Any:
        began = time.monotonic()
        path = build(*args, **keywords)
        heard(str(args[0] if args else keywords.get("name")), time.monotonic() - began)
        return path

    triton_build._build = noting


def read_autotune_records(kernel: str) -> None:
    """Let the autotuner around `kernel`, if there is one, keep and read its records.

    Whether it does was settled when it was made. Raises InputError when there is no such kernel.
    """
    found = _imported(kernel)
    while found is not None and not isinstance(found, Autotuner):
        found = getattr(found, "fn", None)
    if found is not None:
        found.cache_results = True


def active_arch() -> int:
    """Return Triton's number of the architecture of the GPU that this process uses."""
    return int(active_driver.active.get_current_target().arch)
