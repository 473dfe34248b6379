"""The toolchain: what besides kernels and arguments must be equal for an entry to be found."""

from __future__ import annotations

from prewarm.core.record import Record

UNSET = "(unset)"
"""Stands for the value of a variable that is not set."""

_BLACKWELL = 100


def ptxas_variable(arch: int) -> str:
    """Return the environment variable that names Triton's ptxas for `arch`."""
    return "TRITON_PTXAS_BLACKWELL_PATH" if arch >= _BLACKWELL else "TRITON_PTXAS_PATH"


class Ptxas(Record, kw_only=True):
    """The assembler that the serving process resolves for the target's architecture."""

    version: str
    """Its release, for people: `12.9.86`."""
    text: str
    """Digest of the whole `ptxas --version` output: that text enters every compile key."""
    chosen_by: str
    """Who chose it: `triton` (its own copy) or the environment variable that named another."""


class Toolchain(Record, kw_only=True):
    """What the serving process resolves, taken after its model runner exists."""

    vllm: str
    torch: str
    cuda: str
    triton: str
    triton_key: str
    """Digest of Triton's own `triton_key()`: its compiler, its language and its shared library."""
    ptxas: Ptxas
    python_abi: str
    """`cpython-311`: host launchers are extension modules of this ABI."""
    machine: str
    """CPU architecture of the host, as `uname -m` says it."""
    libc: str
    """C library that host launchers are linked to: `glibc 2.36`."""
    key_environment: dict[str, str] = {}
    """Environment variables that enter compile keys, with their values."""
    environment: dict[str, str] = {}
    """Environment variables read while tracing that were set, with their values."""

    def differences(self, other: Toolchain) -> tuple[tuple[str, str, str], ...]:
        """Return (field, ours, theirs) where a field that decides hits differs; ptxas first."""
        found: list[tuple[str, str, str]] = []
        if self.ptxas.text != other.ptxas.text:
            found.append(("ptxas", self.ptxas.version, other.ptxas.version))
        for name in ("triton_key", "triton", "python_abi", "machine", "vllm", "torch", "cuda"):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                found.append((name, ours, theirs))
        variables = self.key_environment_differences(other)
        return (
            *found,
            *((f"environment {name}", ours, theirs) for name, ours, theirs in variables),
        )

    def key_environment_differences(self, other: Toolchain) -> tuple[tuple[str, str, str], ...]:
        """Return (variable, ours, theirs) where one that enters keys differs, UNSET for none."""
        ours, theirs = self.key_environment, other.key_environment
        pairs = (
            (name, ours.get(name, UNSET), theirs.get(name, UNSET))
            for name in sorted(ours.keys() | theirs.keys())
        )
        return tuple(pair for pair in pairs if pair[1] != pair[2])
