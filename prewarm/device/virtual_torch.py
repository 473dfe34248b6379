"""What torch answers for a GPU that is not there: its `torch.cuda`, tensors on the CPU."""

from __future__ import annotations

import contextlib
import importlib
import mmap
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from torch.overrides import TorchFunctionMode

from prewarm.core.target import Target

_LAZY_BYTES = 1 << 20
"""Zero-filled tensors from this size on are mapped and never touched."""
_LAZY_KEYWORDS = {"size", "dtype", "device"}
_MAP_NORESERVE = 0x4000
_PLENTY_OF_DEVICES = 64
"""Visible devices: more than any node has, so that no local rank is out of range."""


class Stream:
    """A stream on which nothing is ever queued."""

    device = torch.device("cuda", 0)
    cuda_stream = 0
    stream_id = 0
    device_index = 0
    priority = 0

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def synchronize(self) -> None: ...

    def wait_stream(self, _: object) -> None: ...

    def wait_event(self, _: object) -> None: ...

    def query(self) -> bool:
        return True

    def record_event(self, event: Event | None = None) -> Event:
        return event or Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


class Event:
    """An event that has always happened."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def record(self, *_: object) -> None: ...

    def wait(self, *_: object) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, _: Event) -> float:
        return 0.0


class CUDAGraph:
    """A graph whose capture runs the body once and whose replay does nothing."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def capture_begin(self, *_: object, **__: object) -> None: ...

    def capture_end(self) -> None: ...

    def replay(self) -> None: ...

    def reset(self) -> None: ...

    def pool(self) -> tuple[int, int]:
        return (0, 0)


class Generator(torch.Generator):
    """A generator of the CPU whatever device it is asked for."""

    def __new__(cls, device: object = "cpu") -> Self:
        return super().__new__(cls)


_STREAM = Stream()


@contextlib.contextmanager
def _passing(*_: object, **__: object) -> Iterator[None]:
    yield


def _constantly(value: Any) -> Callable[..., Any]:
    """Return a new function: torch's own maps need one object a name."""
    return lambda *_, **__: value


def _properties(target: Target) -> types.SimpleNamespace:
    major, minor = target.capability
    return types.SimpleNamespace(
        name=target.device_name,
        major=major,
        minor=minor,
        total_memory=target.memory,
        multi_processor_count=target.multiprocessors,
        shared_memory_per_block=49152,
        shared_memory_per_block_optin=target.shared_memory_per_block,
        shared_memory_per_multiprocessor=target.shared_memory_per_multiprocessor,
        regs_per_multiprocessor=65536,
        max_threads_per_multi_processor=2048,
        warp_size=32,
        L2_cache_size=target.l2_cache,
        is_integrated=0,
        is_multi_gpu_board=0,
        gcnArchName="",
        uuid="GPU-00000000-0000-0000-0000-000000000000",
    )


def _answers(target: Target) -> Mapping[str, Any]:
    free_and_total = (int(target.memory * 0.99), target.memory)
    return {
        "is_available": _constantly(True),
        "is_initialized": _constantly(True),
        "init": _constantly(None),
        "_lazy_init": _constantly(None),
        "device_count": _constantly(_PLENTY_OF_DEVICES),
        "_device_count_nvml": _constantly(_PLENTY_OF_DEVICES),
        "current_device": _constantly(0),
        "set_device": _constantly(None),
        "get_device_name": _constantly(target.device_name),
        "get_device_capability": _constantly(target.capability),
        "get_device_properties": _constantly(_properties(target)),
        "get_arch_list": _constantly([f"sm_{target.arch}"]),
        "is_bf16_supported": _constantly(True),
        "can_device_access_peer": _constantly(True),
        "mem_get_info": _constantly(free_and_total),
        "memory_allocated": _constantly(0),
        "memory_reserved": _constantly(0),
        "max_memory_allocated": _constantly(0),
        "memory_stats": _constantly({}),
        "reset_peak_memory_stats": _constantly(None),
        "empty_cache": _constantly(None),
        "synchronize": _constantly(None),
        "manual_seed": _constantly(None),
        "manual_seed_all": _constantly(None),
        "current_stream": _constantly(_STREAM),
        "default_stream": _constantly(_STREAM),
        "set_stream": _constantly(None),
        "current_blas_handle": _constantly(0),
        "is_current_stream_capturing": _constantly(False),
        "graph_pool_handle": _constantly((0, 0)),
        "stream": _passing,
        "device": _passing,
        "graph": _passing,
        "Stream": Stream,
        "Event": Event,
        "CUDAGraph": CUDAGraph,
    }


def _accelerator_answers(target: Target) -> Mapping[str, Any]:
    return {
        "is_available": _constantly(True),
        "device_count": _constantly(_PLENTY_OF_DEVICES),
        "current_accelerator": _constantly(torch.device("cuda")),
        "current_device_index": _constantly(0),
        "set_device_index": _constantly(None),
        "current_stream": _constantly(_STREAM),
        "set_stream": _constantly(None),
        "synchronize": _constantly(None),
        "empty_cache": _constantly(None),
        "memory_stats": _constantly({}),
        "memory_allocated": _constantly(0),
        "memory_reserved": _constantly(0),
        "max_memory_allocated": _constantly(0),
        "reset_peak_memory_stats": _constantly(None),
        "get_memory_info": _constantly((int(target.memory * 0.99), target.memory)),
        "device_index": _passing,
    }


def _is_cuda(device: object) -> bool:
    if isinstance(device, torch.device):
        return device.type == "cuda"
    if isinstance(device, str):
        return device.startswith("cuda")
    return isinstance(device, int) and not isinstance(device, bool)


def untouched(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Return a zero tensor whose memory is address space only until someone writes to it.

    A KV cache of a real deployment is larger than the machine that plans it.
    """
    size = dtype.itemsize
    for extent in shape:
        size *= extent
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    mapping = mmap.mmap(-1, max(size, 1), flags=flags)
    return torch.frombuffer(mapping, dtype=torch.uint8)[:size].view(dtype).view(*shape)


def _shape_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[int, ...] | None:
    size = kwargs.get("size", args[0] if len(args) == 1 and not isinstance(args[0], int) else args)
    try:
        return tuple(int(extent) for extent in size)
    except (TypeError, ValueError):
        return None


class OnCpu(TorchFunctionMode):
    """Put on the CPU whatever is asked for on a CUDA device."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in _STAYS:
            return args[0]
        if func is _TO and len(args) > 1 and _is_cuda(args[1]):
            args = (args[0], "cpu", *args[2:])
        if kwargs:
            kwargs = dict(kwargs)
            kwargs.pop("pin_memory", None)
            if _is_cuda(kwargs.get("device")):
                kwargs["device"] = "cpu"
        if func in _MAKES:
            lazy = _lazily(func, args, kwargs or {})
            if lazy is not None:
                return lazy
        return func(*args, **kwargs) if kwargs else func(*args)


# Looked up once: this is called for whatever is done to a tensor.
_STAYS = {torch.Tensor.pin_memory, torch.Tensor.cuda}
_TO = torch.Tensor.to
_MAKES = {torch.zeros, torch.empty, torch.zeros_like}


def _lazily(
    func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> torch.Tensor | None:
    """Return what `func` makes, where that is large and plain, as memory that nobody touched."""
    if any(kwargs[name] for name in kwargs.keys() - _LAZY_KEYWORDS):
        return None
    device, dtype = kwargs.get("device"), kwargs.get("dtype")
    if func is torch.zeros_like:
        like = args[0]
        shape, dtype, device = tuple(like.shape), dtype or like.dtype, device or like.device
        if not like.is_contiguous():
            return None
    else:
        found = _shape_of(args, kwargs)
        if found is None:
            return None
        shape = found
        device = device or torch.get_default_device()
    dtype = torch.bool if dtype is bool else dtype or torch.get_default_dtype()
    if torch.device(device).type == "meta":
        return None
    if torch.Size(shape).numel() * dtype.itemsize < _LAZY_BYTES:
        return None
    return untouched(shape, dtype)


def _not_compiled(model: Callable[..., Any] | None = None, **_: object) -> Any:
    """Stand for `torch.compile`, which runs what it is given: dynamo is off."""
    return (lambda function: function) if model is None else model


def install(target: Target) -> None:
    """Make this process's torch answer as if it sat on `target`; there is no way back.

    Call it before vLLM is imported: vLLM reads the device while its modules load.
    """
    # Dynamo maps torch's own objects to rules while it loads: it must meet the real ones.
    importlib.import_module("torch._dynamo")
    for name, answer in _answers(target).items():
        setattr(torch.cuda, name, answer)
    for name, answer in _accelerator_answers(target).items():
        setattr(torch.accelerator, name, answer)
    setattr(torch.cuda.graphs, "CUDAGraph", CUDAGraph)  # noqa: B010
    setattr(torch, "Event", Event)  # noqa: B010
    setattr(torch, "Stream", Stream)  # noqa: B010
    setattr(torch, "Generator", Generator)  # noqa: B010
    torch._dynamo.config.disable = True
    setattr(torch, "compile", _not_compiled)  # noqa: B010
    # It reads the stream before any mode is asked.
    setattr(torch.Tensor, "record_stream", _constantly(None))  # noqa: B010
    # Little is computed, so threads that wait for work would cost more than they do; and a
    # process that has them cannot be forked.
    torch.set_num_threads(1)
    OnCpu().__enter__()
