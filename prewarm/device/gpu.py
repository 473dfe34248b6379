"""The real GPUs of this machine, asked of the driver library itself: no torch, no Triton."""

from __future__ import annotations

import ctypes

from prewarm.core.record import Record

_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
_NAME_LENGTH = 256


class Gpu(Record, kw_only=True):
    """A GPU that this process may use."""

    name: str
    arch: int
    """Triton's number of the architecture: 100 for compute capability 10.0."""


def visible_gpus() -> tuple[Gpu, ...]:
    """Return the GPUs that CUDA shows to this process; none where there is no driver."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
        count = ctypes.c_int()
        if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
            return ()
    except (OSError, AttributeError):
        return ()
    return tuple(_gpu(cuda, ordinal) for ordinal in range(count.value))


def _gpu(cuda: ctypes.CDLL, ordinal: int) -> Gpu:
    name = ctypes.create_string_buffer(_NAME_LENGTH)
    cuda.cuDeviceGetName(name, _NAME_LENGTH, ordinal)
    major, minor = (
        _attribute(cuda, each, ordinal) for each in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR)
    )
    return Gpu(name=name.value.decode("utf-8", "replace"), arch=major * 10 + minor)


def _attribute(cuda: ctypes.CDLL, attribute: int, ordinal: int) -> int:
    value = ctypes.c_int()
    cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, ordinal)
    return value.value
