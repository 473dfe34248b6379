"""Findings: what is not as it should be, with a code that `docs/findings.md` explains.

P1xx are about integrity, P2xx about fit, P3xx about single launches. `ship` tells what can be
told without Triton, `make` the rest.
"""

from __future__ import annotations

from collections.abc import Iterable

from prewarm.core.errors import IntegrityError
from prewarm.core.record import Record

MISSING = "P101"
UNKNOWN = "P102"
ALTERED = "P103"
UNSAFE = "P104"
INDEX = "P105"
IDENTITY = "P106"
TARGET = "P201"
TRITON_KEY = "P202"
PTXAS = "P203"
KERNEL_SOURCE = "P204"
MOUNT_PATH = "P205"
ENVIRONMENT = "P206"
HOST = "P207"
VLLM = "P208"
OTHER_DIRECTORY = "P209"
READ_ONLY = "P210"
MISS = "P301"
NO_HOST_MODULE = "P302"
NO_RECORD = "P303"
NOT_HELD = "P304"
UNTUNED = "P305"
UNBOUND_LAUNCH = "P306"
UNASKED = "P307"
FLASHINFER_BUILDS = "P308"
FLASHINFER_ELSEWHERE = "P309"

CODES = {
    MISSING: "missing file",
    UNKNOWN: "unknown file",
    ALTERED: "altered file",
    UNSAFE: "unsafe path or link",
    INDEX: "the cache's own index is altered or unreadable",
    IDENTITY: "not the cache that it says it is",
    TARGET: "built for another GPU architecture",
    TRITON_KEY: "built with another Triton",
    PTXAS: "built with another ptxas",
    KERNEL_SOURCE: "a kernel's source differs",
    MOUNT_PATH: "the files point to another directory",
    ENVIRONMENT: "the environment keeps Triton from the entries",
    HOST: "built for another Python ABI, CPU architecture or C library",
    VLLM: "built with another vLLM",
    OTHER_DIRECTORY: "serving looks in another directory",
    READ_ONLY: "the process that serves cannot add entries",
    MISS: "Triton does not find a launch",
    NO_HOST_MODULE: "Triton does not find a host module",
    NO_RECORD: "Triton's autotuner does not find a winner",
    NOT_HELD: "the cache was not built with a launch of this deployment",
    UNTUNED: "the cache has no winner for a tuning key of this deployment",
    UNBOUND_LAUNCH: "a launch is known only when serving starts",
    UNASKED: "this deployment never asks for some entries",
    FLASHINFER_BUILDS: "FlashInfer does not take a library of the cache",
    FLASHINFER_ELSEWHERE: "FlashInfer does not look where the cache has its library",
}


class Finding(Record, kw_only=True):
    """One thing that is not as it should be."""

    code: str
    subject: str
    """The file, directory or property that it is about."""
    expected: str
    found: str
    fix: str
    """The command or edit that mends it."""
    note: bool = False
    """Something to know that is as it was built, or does no harm: no reason to exit 1."""

    def __str__(self) -> str:
        """Return the finding in one line, without the fix."""
        title = CODES[self.code]
        return f"{self.code} {title}: {self.subject}: expected {self.expected}, found {self.found}"


class UnsoundError(IntegrityError):
    """A cache that must not be used, with the finding that says why."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(str(finding), finding.fix)
        # An exception is rebuilt from its arguments when it crosses to another process.
        self.args = (finding,)
        self.finding = finding


def in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return `findings` by code and subject, each once."""
    return tuple(sorted(set(findings), key=lambda f: (f.code, f.subject, f.found)))
