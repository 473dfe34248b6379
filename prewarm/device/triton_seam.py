"""Every private name of Triton that prewarm uses, for Triton 3.6.

Import it only in a process whose environment is final: Triton reads some variables when it
is imported.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import functools
import hashlib
import importlib
import math
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal

import msgspec
import triton
import triton.language as tl
from msgspec import UNSET
from triton import knobs
from triton._C.libtriton import get_cache_invalidating_env_vars
from triton.backends.compiler import GPUTarget
from triton.backends.driver import GPUDriver
from triton.backends.nvidia import compiler as nvidia_compiler
from triton.backends.nvidia import driver as nvidia_driver
from triton.compiler import ASTSource, CompiledKernel
from triton.runtime.autotuner import Autotuner, Config
from triton.runtime.build import platform_key
from triton.runtime.cache import (
    FileCacheManager,
    get_cache_key,
    get_cache_manager,
    triton_key,
)
from triton.runtime.driver import driver as active_driver
from triton.runtime.jit import JITCallable, JITFunction

from prewarm.core.cache import AutotuneRecord, HostModule
from prewarm.core.digest import digest_of
from prewarm.core.errors import InputError, UnsupportedError
from prewarm.core.manifest import Argument, Candidate, Constexpr, Launch
from prewarm.core.target import Target
from prewarm.core.toolchain import Ptxas, ptxas_variable
from prewarm.core.tuning_keys import TuningKey

MAX_THREADS_PER_BLOCK = 1024
REGISTERS_PER_BLOCK = 65536

_KEY_VARIABLES = (
    "PTXAS_OPTIONS",
    "TRITON_DEBUG",
    "TRITON_INSTRUMENTATION_MODE",
    "TRITON_LIBDEVICE_PATH",
    "TRITON_MOCK_PTX_VERSION",
)
"""Variables that reach the key through compile options, besides Triton's own list."""

_DTYPE_OF = "dtype of "
"""Begins the name of a tensor's dtype in a manifest's tuning key."""

_OPTIONS_OF_RUN = ("debug", "grid", "instrumentation_mode", "warmup")
"""Keywords that `JITFunction.run` takes or sets itself."""


# --- the driver ---------------------------------------------------------------------------


class VirtualUtils:
    """What Triton asks the driver library about the target."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def get_device_properties(self, device: int) -> dict[str, int]:
        """Return the properties of the target under Triton's names."""
        return {
            "max_shared_mem": self._target.shared_memory_per_block,
            "max_num_regs": REGISTERS_PER_BLOCK,
            "multiprocessor_count": self._target.multiprocessors,
            "warpSize": 32,
            "sm_clock_rate": 0,
            "mem_clock_rate": 0,
            "mem_bus_width": 0,
        }

    def load_binary(
        self, name: str, binary: bytes, shared: int, device: int
    ) -> tuple[int, int, int, int, int]:
        """Return handles that nobody follows, then registers, spills and most threads a block."""
        return (1, 1, 0, 0, MAX_THREADS_PER_BLOCK)

    def set_printf_fifo_size(self, size: int) -> None:
        """Accept any size."""


class VirtualLauncher:
    """Stands for the host launcher of a kernel that never runs."""

    def __init__(self, source: Any, metadata: Any) -> None: ...

    def __call__(self, *args: Any) -> None: ...


class VirtualDriver(GPUDriver):
    """Triton's driver for a GPU that is not there."""

    def __init__(self, target: Target, launcher: type[Any]) -> None:
        self._target = target
        self.utils = VirtualUtils(target)
        self.launcher_cls = launcher

    @classmethod
    def is_active(cls) -> bool:
        """Return True: whoever made this driver wants it."""
        return True

    def get_current_target(self) -> GPUTarget:
        """Return the target as Triton names it."""
        return GPUTarget("cuda", self._target.arch, 32)

    def get_current_device(self) -> int:
        """Return 0, the only device."""
        return 0

    def set_current_device(self, device: int) -> None:
        """Accept any device."""

    def get_current_stream(self, device: int) -> int:
        """Return 0, the default stream."""
        return 0

    def get_device_capability(self, device: Any = None) -> tuple[int, int]:
        """Return the compute capability of the target."""
        return self._target.capability

    def get_active_torch_device(self) -> Any:
        """Return `cuda:0`, as torch spells it."""
        return importlib.import_module("torch").device("cuda", 0)

    def get_device_interface(self) -> Any:
        """Return `torch.cuda`."""
        return importlib.import_module("torch").cuda

    def map_python_to_cpp_type(self, ty: str) -> str:
        """Return the C type that Triton's launcher uses for the Triton type `ty`."""
        name: str = nvidia_driver.ty_to_cpp(ty)
        return name

    def get_benchmarker(self) -> Any:
        """Return Triton's own `do_bench`; callers that cannot launch replace it."""
        return importlib.import_module("triton.testing").do_bench

    def get_empty_cache_for_benchmark(self) -> Any:
        """Return a tensor of one element: nothing is ever measured here."""
        return importlib.import_module("torch").empty(1)

    def clear_cache(self, cache: Any) -> None:
        """Leave `cache` as it is."""


def activate_virtual_driver(target: Target, *, launchers: bool = False) -> VirtualDriver:
    """Make a virtual `target` the active GPU of Triton in this process, and return its driver.

    With `launchers`, a compiled kernel builds and loads Triton's real host launcher, which
    needs `prewarm.device.libcuda.load_stub` first.
    """
    launcher = nvidia_driver.CudaLauncher if launchers else VirtualLauncher
    driver = VirtualDriver(target, launcher)
    active_driver.set_active(driver)
    return driver


# --- kernels and their names --------------------------------------------------------------


def jit_function(function: Any) -> Any:
    """Return the JITFunction under the autotuner and heuristics that wrap `function`.

    Raises UnsupportedError where there is none.
    """
    inner = function
    while not isinstance(inner, JITCallable):
        inner = getattr(inner, "fn", None)
        if inner is None:
            raise UnsupportedError(f"{function!r} is not a Triton kernel")
    return inner


def kernel_named(name: str) -> Any:
    """Return the JITFunction that `module:function` names, imported.

    Raises InputError when there is no such module or function, UnsupportedError when it
    is no Triton kernel.
    """
    return jit_function(_imported(name))


def autotuner_named(name: str) -> Any:
    """Return the autotuner around the kernel that `module:function` names.

    Raises InputError when there is no such module or function, UnsupportedError when nothing
    tunes it.
    """
    found = _imported(name)
    while not isinstance(found, Autotuner):
        found = getattr(found, "fn", None)
        if found is None:
            raise UnsupportedError(f"{name} has no autotuner")
    return found


def _imported(name: str) -> Any:
    module, _, path = name.partition(":")
    try:
        return functools.reduce(getattr, path.split("."), importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise InputError(f"cannot import the kernel {name}: {error}", "prewarm plan …") from error


def kernel_name(function: Any) -> str:
    """Return the importable `module:function` of the Triton kernel `function`.

    Raises UnsupportedError when another process could not import it by that name.
    """
    inner = jit_function(function)
    name = f"{inner.__module__}:{inner.__qualname__}"
    try:
        found = kernel_named(name)
    except InputError:
        found = None
    if found is not inner:
        raise UnsupportedError(f"the Triton kernel {name} cannot be imported by name")
    return name


def source_length(function: Any) -> int:
    """Return the length of the kernel's source text, callees not counted."""
    return len(jit_function(function).src)


def source_digest(function: Any) -> str:
    """Return the digest of Triton's key of `function`: source, first line, globals, callees."""
    return f"sha256:{jit_function(function).cache_key}"


# --- launches, to and from Triton's binder ------------------------------------------------


def constexpr_of(value: Any, where: str) -> Constexpr:
    """Return the compile-time `value` as a manifest spells it.

    Raises UnsupportedError for what a manifest cannot hold; `where` names the argument.
    """
    if isinstance(value, JITCallable):
        return {"function": kernel_name(value)}
    if isinstance(value, tl.dtype):
        return {"dtype": str(value)}
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float and math.isfinite(value):
        return value
    raise UnsupportedError(f"{where}: a manifest cannot hold the compile-time value {value!r}")


def value_of(constexpr: Constexpr) -> Any:
    """Return the Python object that the manifest's `constexpr` stands for; raises InputError."""
    if not isinstance(constexpr, dict):
        return constexpr
    match constexpr:
        case {"function": name}:
            return kernel_named(name)
        case {"dtype": name} if tl.dtype.is_dtype(name):
            return tl.dtype(name)
    raise InputError(f"{constexpr} is neither a Triton dtype nor a function")


def launch_of(function: Any, args: Sequence[Any], keywords: Mapping[str, Any]) -> Launch:
    """Return the launch that `function.run(*args, **keywords)` would look up.

    Call it where `JITFunction.run` is called: below autotuners and heuristics. Triton's own
    binder reads the arguments. Raises UnsupportedError for what a manifest cannot hold.
    """
    inner = jit_function(function)
    passed = {k: v for k, v in keywords.items() if k not in _OPTIONS_OF_RUN}
    return launch_of_bound(inner, *_binder(inner)(*args, **passed))


def launch_of_bound(
    function: Any,
    bound: Mapping[str, Any],
    specialization: Sequence[tuple[Any, Any]],
    options: Mapping[str, Any],
) -> Launch:
    """Return the launch of the JITFunction `function` that its binder settled like this.

    Raises UnsupportedError for what a manifest cannot hold.
    """
    passed = {k: v for k, v in options.items() if k not in _OPTIONS_OF_RUN}
    return Launch(
        kernel=kernel_name(function),
        source=source_digest(function),
        arguments=_arguments(function, bound, specialization),
        options={k: constexpr_of(v, k) for k, v in sorted(passed.items())},
    )


def specialization_of(function: Any, args: Sequence[Any], keywords: Mapping[str, Any]) -> str:
    """Return the text by which Triton tells the launches of `function` apart in memory."""
    passed = {k: v for k, v in keywords.items() if k not in _OPTIONS_OF_RUN}
    _, specialization, options = _binder(function)(*args, **passed)
    return f"{specialization} {options}"


@dataclasses.dataclass(frozen=True)
class Call:
    """A launch as its caller made it."""

    kernel: str
    source: str
    arguments: Mapping[str, Any]
    """Every argument by name, in the kernel's order, as Triton bound it."""
    constexprs: tuple[str, ...]
    """Names of the compile-time arguments."""
    options: Mapping[str, Constexpr]
    """What the caller passed besides arguments: `num_warps`, `num_stages`."""
    grid: tuple[int, int, int]


def call_of(function: Any, args: Sequence[Any], keywords: Mapping[str, Any]) -> Call:
    """Return what `function.run(*args, **keywords)` would launch, its grid worked out.

    Call it where `launch_of` is called; it raises the same.
    """
    inner = jit_function(function)
    passed = {k: v for k, v in keywords.items() if k not in _OPTIONS_OF_RUN}
    bound, _, options = _binder(inner)(*args, **passed)
    grid = keywords["grid"]
    blocks = tuple(grid(bound) if callable(grid) else grid)
    return Call(
        kernel=kernel_name(inner),
        source=source_digest(inner),
        arguments=bound,
        constexprs=tuple(p.name for p in inner.params if p.is_constexpr),
        options={k: constexpr_of(v, k) for k, v in sorted(options.items())},
        grid=(*map(int, blocks), 1, 1)[:3],  # type: ignore[arg-type]
    )


def _binder(function: Any) -> Any:
    return function.device_caches[active_driver.active.get_current_device()][4]


def _arguments(
    function: Any, bound: Mapping[str, Any], specialization: Sequence[tuple[Any, Any]]
) -> dict[str, Argument]:
    rows = zip(function.params, bound.values(), specialization, strict=True)
    return {p.name: _argument(p, value, kind, attribute) for p, value, (kind, attribute) in rows}


def _argument(parameter: Any, value: Any, kind: Any, attribute: Any) -> Argument:
    if not isinstance(kind, str) or kind.startswith(("tensordesc", "nvTmaDesc")):
        raise UnsupportedError(f"{parameter.name}: a manifest cannot hold an argument of {kind}")
    specialized = not parameter.is_constexpr
    return Argument(
        type=kind,
        value=constexpr_of(value, parameter.name) if kind == "constexpr" else UNSET,
        divisible_by_16=specialized and attribute == "D",
        equal_to_1=specialized and type(attribute) is int and attribute == 1,
        seen=_seen(value, kind),
    )


def _seen(value: Any, kind: str) -> str | None:
    if kind == "constexpr" or isinstance(value, _Pointer):
        return None
    if kind.startswith("*"):
        return f"{tuple(value.shape)} by {tuple(value.stride())}"
    return str(value)


# --- autotuners ---------------------------------------------------------------------------


@contextlib.contextmanager
def intercepted(run: Callable[..., None], autotune: Callable[..., None]) -> Iterator[None]:
    """Call `run(function, args, keywords)` for every launch of this process, launching nothing.

    `autotune(tuner, args, keywords)` stands for every call of an autotuner.
    """
    before = JITFunction.run, Autotuner.run
    JITFunction.run = lambda function, *args, **keywords: run(function, args, keywords)
    Autotuner.run = lambda tuner, *args, **keywords: autotune(tuner, args, keywords)
    try:
        yield
    finally:
        JITFunction.run, Autotuner.run = before


def pruned_configs(tuner: Any, args: Sequence[Any], keywords: Mapping[str, Any]) -> list[Any]:
    """Return the configs that `tuner` would measure for these arguments, in its order."""
    tuner.nargs = dict(zip(tuner.arg_names, args, strict=False))
    return list(tuner.prune_configs(keywords))


def run_with(tuner: Any, config: Any, args: Sequence[Any], keywords: Mapping[str, Any]) -> None:
    """Run what `tuner` wraps with `config`, as the tuner itself does."""
    tuner.fn.run(*args, **keywords, **config.all_kwargs())


def config_of(candidate: Candidate) -> Any:
    """Return `candidate` as Triton's autotuner holds it; raises InputError as `value_of`."""
    return triton.Config(
        {name: value_of(value) for name, value in candidate.constexprs.items()},
        num_warps=candidate.num_warps,
        num_stages=candidate.num_stages,
        num_ctas=candidate.num_ctas,
        maxnreg=candidate.maxnreg,
    )


def candidates_of(tuner: Any) -> tuple[Candidate, ...]:
    """Return every config of `tuner`, in its order; raises UnsupportedError as `constexpr_of`."""
    return tuple(map(_candidate, tuner.configs))


def _candidate(config: Any) -> Candidate:
    return Candidate(
        constexprs={name: constexpr_of(value, name) for name, value in config.kwargs.items()},
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        num_ctas=config.num_ctas,
        maxnreg=config.maxnreg,
    )


def tuning_key_of(
    tuner: Any, args: Sequence[Any], keywords: Mapping[str, Any]
) -> tuple[tuple[str, Constexpr], ...]:
    """Return Triton's own tuning key: the named values, then the dtype of every tensor."""
    given = {**dict(zip(tuner.arg_names, args, strict=False)), **keywords}
    given = {name: value for name, value in given.items() if name in tuner.arg_names}
    values = [(name, constexpr_of(given[name], name)) for name in tuner.keys if name in given]
    dtypes = [
        (f"{_DTYPE_OF}{name}", str(value.dtype))
        for name, value in given.items()
        if hasattr(value, "dtype")
    ]
    return (*values, *dtypes)


def tuning_key_tuple(tuner: Any, key: Mapping[str, Constexpr]) -> tuple[Any, ...]:
    """Return the tuning key that `tuner` makes of a call whose `tuning_key_of` was `key`."""
    values = [value_of(key[name]) for name in tuner.keys if name in key]
    dtypes = [dtype for name, dtype in key.items() if name.startswith(_DTYPE_OF)]
    return (*values, *dtypes)


class _Pointer:
    """A tensor as Triton's binder sees it: a dtype and an address."""

    def __init__(self, dtype: str, address: int) -> None:
        self.dtype = dtype
        self._address = address

    def data_ptr(self) -> int:
        return self._address


def _stand_in(argument: Argument) -> Any:
    """Return a value that Triton's binder specializes as `argument` says."""
    if argument.type == "constexpr":
        return value_of(None if argument.value is UNSET else argument.value)
    if argument.type.startswith("*"):
        dtype = re.sub(r"^\*k?", "", argument.type)
        return _Pointer(dtype, 16 if argument.divisible_by_16 else 1)
    if argument.type == "u1":
        return True
    if argument.type.startswith(("fp", "bf")):
        return 0.5
    if argument.equal_to_1:
        return 1
    base = {"i64": 1 << 40, "u64": 1 << 63}.get(argument.type, 32)
    return base if argument.divisible_by_16 else base + 1


@dataclasses.dataclass(frozen=True)
class Bound:
    """A launch as Triton's own binder settled it."""

    function: Any
    arguments: Mapping[str, Any]
    keywords: Mapping[str, Any]
    """What the caller passes besides arguments: `num_warps`, `num_stages`."""
    source: Any
    options: Any
    key: str
    """Name of the directory that Triton's cache gives the entry."""


def bind(launch: Launch) -> Bound:
    """Return `launch` bound by Triton for the active driver's target.

    Raises InputError when the kernel here is not the one that was planned: another source,
    other parameters, or arguments that its binder reads in another way.
    """
    function = kernel_named(launch.kernel)
    if source_digest(function) != launch.source:
        raise InputError(
            f"the source of {launch.kernel} here is not the one that was planned"
            f" ({source_digest(function)}, not {launch.source})",
            "plan again with this vLLM: prewarm plan …",
        )
    if tuple(function.arg_names) != tuple(launch.arguments):
        raise InputError(
            f"{launch.kernel} takes {', '.join(function.arg_names)};"
            f" the launch has {', '.join(launch.arguments)}"
        )
    arguments = {name: _stand_in(argument) for name, argument in launch.arguments.items()}
    keywords = {name: value_of(value) for name, value in launch.options.items()}
    bound, specialization, rest = _binder(function)(**arguments, **keywords)
    read = _arguments(function, bound, specialization)
    for name, argument in launch.arguments.items():
        if read[name].identity() != argument.identity():
            raise InputError(
                f"{launch.kernel}: Triton reads the argument {name} as {read[name].identity()},"
                f" the launch says {argument.identity()}"
            )
    run_keywords = {
        **keywords,
        "debug": function.debug or knobs.runtime.debug,
        "instrumentation_mode": knobs.compilation.instrumentation_mode,
    }
    backend = function.device_caches[active_driver.active.get_current_device()][3]
    options, signature, constexprs, attributes = function._pack_args(
        backend, run_keywords, bound, specialization, rest
    )
    source = ASTSource(function, signature, constexprs, attributes)
    text = get_cache_key(source, backend, options, get_cache_invalidating_env_vars())
    return Bound(function, arguments, keywords, source, options, _directory_of(text))


def _directory_of(key: str) -> str:
    digest = hashlib.sha256(key.encode()).digest()
    return base64.b32encode(digest).decode().rstrip("=")


def cache_key_of(launch: Launch) -> str:
    """Return the name of the directory in which Triton looks for `launch`; raises InputError."""
    return bind(launch).key


# --- Triton's own compile and lookup ------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Entry:
    """What Triton's cache holds for a launch."""

    key: str
    cached: bool
    """Whether it was there before."""
    kernel: Any
    """Triton's CompiledKernel."""


class WouldCompileError(Exception):
    """Triton found no entry and would have compiled."""


class WouldBuildError(Exception):
    """Triton found no host module and would have called a C compiler."""


def compile_launch(launch: Launch) -> Entry:
    """Return the entry of `launch` in Triton's cache, compiled by Triton if it was not there.

    Raises InputError as `bind` does; whatever the compiler raises passes through.
    """
    bound = bind(launch)
    heard: list[bool] = []
    with _listener(lambda *, cache_hit, **_: heard.append(cache_hit)):
        kernel = triton.compile(
            bound.source,
            target=active_driver.active.get_current_target(),
            options=bound.options.__dict__,
        )
    return Entry(key=_key_of(kernel), cached=heard == [True], kernel=kernel)


class UnwrittenCache(FileCacheManager):
    """Triton's cache manager, but looking leaves no empty directory behind."""

    def __init__(self, key: str, override: bool = False, dump: bool = False) -> None:
        self.key = key
        self.cache_dir = os.path.join(knobs.cache.dir, key)


def look_only(libcuda: Path) -> None:
    """Let Triton in this process look up entries and host modules, and make neither.

    Afterwards a miss raises WouldCompileError or WouldBuildError.
    """
    knobs.cache.manager_class = UnwrittenCache
    knobs.runtime.add_stages_inspection_hook = _refuse_to_compile
    build_host_modules_with(_refuse_to_build, libcuda)


def find_launch(launch: Launch) -> Entry:
    """Return the entry of `launch` as Triton's own `JITFunction.run` finds it, after `look_only`.

    Raises WouldCompileError when it finds none, InputError as `bind` does.
    """
    bound = bind(launch)
    bound.function.device_caches.clear()
    kernel = bound.function.run(**bound.arguments, **bound.keywords, grid=(1,), warmup=True)
    return Entry(key=_key_of(kernel), cached=True, kernel=kernel)


def _key_of(kernel: CompiledKernel) -> str:
    return base64.b32encode(bytes.fromhex(kernel.hash)).decode().rstrip("=")


def _refuse_to_compile(*_: Any) -> None:
    raise WouldCompileError


@contextlib.contextmanager
def _listener(listener: Callable[..., None]) -> Iterator[None]:
    before, knobs.compilation.listener = knobs.compilation.listener, listener
    try:
        yield
    finally:
        knobs.compilation.listener = before


# --- autotune records ---------------------------------------------------------------------


RecordChange = Literal["written", "kept", "replaced"]


@dataclasses.dataclass(frozen=True)
class FoundRecord:
    """What Triton's autotuner finds on disk for one tuning key."""

    record: AutotuneRecord
    """The file that it asks for, be it there or not."""
    path: Path
    there: bool
    timings: Mapping[Any, Any]
    """Triton's configs to their times in ms; empty where there is no file or no sense in it."""

    @property
    def winner(self) -> Candidate | None:
        """The config that Triton takes; None where it would benchmark."""
        timings = self.timings
        return _candidate(min(timings, key=timings.__getitem__)) if timings else None


class WouldBenchmarkError(Exception):
    """Triton's autotuner found no record and would have measured its candidates."""


def find_autotune_record(asked: TuningKey) -> FoundRecord:
    """Return what Triton's own lookup finds for `asked`; nothing is written.

    Raises InputError where the kernel is not here, UnsupportedError where Triton keeps no
    record of it, or under a key that only real arguments decide.
    """
    tuner, key, configs = _question(asked)
    with knobs.cache.scope():
        knobs.cache.manager_class = manager = _listening_cache()
        tuner.configs_timings = {}
        there = True
        try:
            tuner.check_disk_cache(key, configs, _refuse_to_benchmark)
        except WouldBenchmarkError:
            there = False
        except (ArithmeticError, LookupError, TypeError, ValueError):
            tuner.configs_timings = {}
    (path,) = manager.asked
    record = AutotuneRecord(kernel=asked.kernel, key=path.parent.name, file=path.name)
    return FoundRecord(record, path, there, tuner.configs_timings)


def write_autotune_record(
    asked: TuningKey, winner: Candidate, time: float
) -> tuple[AutotuneRecord, RecordChange]:
    """Let Triton write the record by which `winner`, of `time` microseconds, settles `asked`.

    Returns the record and what became of it: an equal one is kept, any other replaced.
    Raises as `find_autotune_record`, and OSError where nothing can be written.
    """
    tuner, key, configs = _question(asked)
    config, milliseconds = _config(tuner, winner), time / 1000
    # Triton keeps the median, then the quantiles 0.2 and 0.8.
    timings = {config: [milliseconds] * 3}
    before = find_autotune_record(asked)
    if before.timings == timings:
        return before.record, "kept"
    before.path.unlink(missing_ok=True)

    def measured() -> None:
        tuner.configs_timings, tuner.cache[key] = timings, config

    tuner.check_disk_cache(key, configs, measured)
    return before.record, "replaced" if before.there else "written"


def remove_autotune_record(asked: TuningKey) -> AutotuneRecord | None:
    """Remove the record that settles `asked` and return it, None where there is none.

    Raises InputError where the kernel is not here.
    """
    try:
        found = find_autotune_record(asked)
    except UnsupportedError:
        return None
    if not found.there:
        return None
    found.path.unlink()
    with contextlib.suppress(OSError):
        found.path.parent.rmdir()
    return found.record


def _question(asked: TuningKey) -> tuple[Any, tuple[Any, ...], list[Any]]:
    """Return the autotuner, its tuning key and the candidates that pruning leaves it."""
    tuner = autotuner_named(asked.kernel)
    key = tuning_key_tuple(tuner, asked.key)
    if not key or any(config.pre_hook for config in tuner.configs):
        raise UnsupportedError(f"{asked.kernel}: Triton keeps no autotune record of it")
    if tuner.perf_model:
        raise UnsupportedError(
            f"{asked.kernel}: its candidates are in an order that only real arguments decide"
        )
    configs = [tuner.configs[index] for index in asked.candidates if index < len(tuner.configs)]
    return tuner, key, configs


def _config(tuner: Any, candidate: Candidate) -> Config:
    """Return `candidate` as Triton writes it, its names in the order of the kernel's own list."""
    values = candidate.constexprs
    order = list(tuner.configs[0].kwargs)
    names = (*(n for n in order if n in values), *sorted(values.keys() - {*order}))
    ordered = {name: values[name] for name in names}
    return config_of(msgspec.structs.replace(candidate, constexprs=ordered))


def _listening_cache() -> Any:
    """Return a cache manager that writes nothing and keeps which files it was asked for."""

    class Listening(UnwrittenCache):
        asked: ClassVar[list[Path]] = []

        def get_file(self, filename: str) -> str | None:
            self.asked.append(Path(self.cache_dir, filename))
            found: str | None = super().get_file(filename)
            return found

    return Listening


def _refuse_to_benchmark() -> None:
    raise WouldBenchmarkError


# --- host modules -------------------------------------------------------------------------

BuildImpl = Callable[[str, str, str, list[str], list[str], list[str]], str]
"""Triton's `knobs.build.impl`: name, source, its directory, library and include directories,
libraries; returns the path of the extension module."""


def _refuse_to_build(name: str, *_: Any) -> str:
    raise WouldBuildError(name)


def build_host_modules_with(build: BuildImpl, libcuda: Path) -> None:
    """Let Triton build its host modules with `build`, linked to the driver library in `libcuda`."""
    knobs.build.impl = build
    knobs.nvidia.libcuda_path = str(libcuda)


def host_modules_of(entry: Entry) -> tuple[HostModule, ...]:
    """Return the host modules that a launch of `entry` loads, built if they were not there.

    Each is stored under every key that a process on this kind of machine may ask for. Raises
    what the build function raises.
    """
    with _recorded(_store_for_all) as found:
        nvidia_driver.CudaUtils()
        nvidia_driver.CudaLauncher(entry.kernel.src, entry.kernel.metadata)
    return tuple(found)


def _platform_keys() -> tuple[str, ...]:
    """Return the values that Triton's `platform_key()` has on this kind of machine.

    The last part is what Python learns about its own executable from the `file` command:
    it is empty in an image where that command is not installed.
    """
    machine, system, bits, _ = platform_key().split(",")
    return tuple(f"{machine},{system},{bits},{linkage}" for linkage in ("ELF", ""))


def _store_for_all(source: str, name: str, path: Path) -> Iterator[HostModule]:
    for key in _platform_keys():
        manager = get_cache_manager(hashlib.sha256((source + key).encode()).hexdigest())
        if not manager.has_file(path.name):
            manager.put(path.read_bytes(), path.name, binary=True)
        yield HostModule(name=name, key=_directory_of(source + key), file=path.name)


def _as_found(source: str, name: str, path: Path) -> Iterator[HostModule]:
    yield HostModule(name=name, key=_directory_of(source + platform_key()), file=path.name)


def load_launcher(entry: Entry) -> None:
    """Load the host launcher of `entry` as a launch does, built if it is not there.

    Raises what the build raises.
    """
    active_driver.active.launcher_cls(entry.kernel.src, entry.kernel.metadata)


def load_utilities() -> None:
    """Load Triton's `cuda_utils`, built if it is not there; raises what the build raises."""
    nvidia_driver.CudaUtils()


def find_host_modules(entry: Entry) -> tuple[tuple[HostModule, ...], tuple[str, ...]]:
    """Return the host modules of `entry` that Triton finds, and the names of those it would build.

    After `look_only`.
    """
    with _recorded(_as_found) as found:
        missing = [
            *_would_build(nvidia_driver.CudaUtils),
            *_would_build(nvidia_driver.CudaLauncher, entry.kernel.src, entry.kernel.metadata),
        ]
    return tuple(found), tuple(missing)


def _would_build(load: Callable[..., Any], *args: Any) -> tuple[str, ...]:
    try:
        load(*args)
    except WouldBuildError as error:
        return (str(error),)
    return ()


@contextlib.contextmanager
def _recorded(
    report: Callable[[str, str, Path], Iterator[HostModule]],
) -> Iterator[list[HostModule]]:
    compile_module = nvidia_driver.compile_module_from_src
    found: list[HostModule] = []

    def record(src: str, name: str, *args: Any, **keywords: Any) -> ModuleType:
        module: ModuleType = compile_module(src, name, *args, **keywords)
        found.extend(report(src, name, Path(str(module.__file__))))
        return module

    nvidia_driver.compile_module_from_src = record
    try:
        yield found
    finally:
        nvidia_driver.compile_module_from_src = compile_module


# --- the toolchain ------------------------------------------------------------------------


def triton_key_digest() -> str:
    """Return the digest of Triton's key of itself: compiler, backends, language, shared library."""
    return digest_of(triton_key().encode())


def key_environment() -> dict[str, str]:
    """Return the variables of this process that enter compile keys, as Triton reads them."""
    extra = {name: os.environ[name] for name in _KEY_VARIABLES if os.environ.get(name)}
    return dict(sorted({**get_cache_invalidating_env_vars(), **extra}.items()))


def own_ptxas(arch: int) -> str:
    """Return the path of the ptxas for `arch` that came with Triton."""
    name = "ptxas-blackwell" if ptxas_variable(arch).endswith("BLACKWELL_PATH") else "ptxas"
    return os.path.join(os.path.dirname(nvidia_compiler.__file__), "bin", name)


def ptxas_text(path: str) -> str:
    """Return what the assembler at `path` says about its version, as Triton reads it."""
    return subprocess.check_output([path, "--version"]).decode("utf-8")


def ptxas_of_text(text: str, chosen_by: str) -> Ptxas:
    """Return the record of an assembler whose version text is `text`."""
    release = re.search(r"\bV(\d+(?:\.\d+)+)", text)
    return Ptxas(
        version=release.group(1) if release else text.strip(),
        text=digest_of(text.encode()),
        chosen_by=chosen_by,
    )


def ptxas_path(arch: int) -> str:
    """Return the path of the assembler that Triton runs for `arch`."""
    return str(nvidia_compiler.get_ptxas(arch).path)


def cache_directory() -> str | None:
    """Return the directory that Triton in this process is told to use, None where it is not."""
    told = os.environ.get("TRITON_CACHE_DIR") or knobs.cache.__dict__.get("dir")
    return str(knobs.cache.dir) if told else None


def reads_autotune_records() -> bool:
    """Return whether autotuners that are made in this process read their records."""
    return bool(knobs.autotuning.cache)


def resolved_ptxas(arch: int) -> Ptxas:
    """Return the assembler whose version text enters this process's keys for `arch`.

    Triton asks once a process; the answer stands, whatever the environment says later.
    """
    chosen = nvidia_compiler.get_ptxas(arch).path
    own = os.path.realpath(chosen) == os.path.realpath(own_ptxas(arch))
    text = nvidia_compiler.get_ptxas_version(arch)
    return ptxas_of_text(text, "triton" if own else ptxas_variable(arch))
