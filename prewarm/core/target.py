"""Targets: the GPUs that a cache can be built for, as data (`targets.yaml`)."""

from __future__ import annotations

import difflib
import functools
from importlib import resources

from prewarm.core.document import parse_yaml
from prewarm.core.errors import HostError, InputError
from prewarm.core.record import Record

SCHEMA = "prewarm/targets/v1"


class Target(Record, kw_only=True):
    """What vLLM, torch and Triton ask a GPU about itself before they choose kernels."""

    name: str
    """What the user types: `b200`."""
    device_name: str
    """What `torch.cuda.get_device_name` answers: `NVIDIA B200`."""
    capability: tuple[int, int]
    """CUDA compute capability: `(10, 0)`."""
    multiprocessors: int
    shared_memory_per_block: int
    """Most shared memory a block may opt in to, in bytes."""
    shared_memory_per_multiprocessor: int
    """In bytes."""
    memory: int
    """Device memory in bytes."""
    l2_cache: int
    """In bytes."""

    @property
    def arch(self) -> int:
        """Triton's number of the architecture: 100 for compute capability 10.0."""
        return self.capability[0] * 10 + self.capability[1]

    @property
    def host_architecture(self) -> str | None:
        """The CPU that this GPU is soldered to, or None where any will do."""
        return "aarch64" if self.name.startswith("gb") else None


class _Targets(Record, kw_only=True):
    schema: str
    targets: tuple[Target, ...]


@functools.cache
def targets() -> dict[str, Target]:
    """Return every known target by name."""
    text = resources.files("prewarm.core").joinpath("targets.yaml").read_text("utf-8")
    return {t.name: t for t in parse_yaml(text, _Targets, SCHEMA, "targets.yaml").targets}


def target_named(name: str) -> Target:
    """Return the target called `name`; raises InputError with the names that exist."""
    known = targets()
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    hint = f"--target {close[0]}" if close else None
    raise InputError(f"unknown target {name!r}; known targets: {', '.join(known)}", hint)


def check_host(target: Target, machine: str) -> None:
    """Raise HostError where hosts of `target` are of another CPU architecture than `machine`.

    Triton's key of itself and the host launchers follow the CPU: nothing that is planned or
    compiled on one would be found on the other.
    """
    wanted = target.host_architecture
    if wanted is not None and wanted != machine:
        raise HostError(
            f"{target.device_name} sits on {wanted} hosts and this machine is {machine}:"
            " Triton's keys and its host launchers are others there",
            f"run the same command in the {wanted} image that will serve",
        )
