"""What FlashInfer would compile at the first prefill of a deployment, built into a directory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from prewarm.core.child import Refusal, child
from prewarm.core.document import write_text
from prewarm.core.errors import CompileError, HostError
from prewarm.core.files import host_errors, locked
from prewarm.core.flashinfer import (
    HOPPER,
    RECORD_NAME,
    every_hopper_instance,
    instances_of,
)
from prewarm.core.flashinfer_file import built_document
from prewarm.core.manifest import Elsewhere, Manifest
from prewarm.flashinfer.forecast import forecast
from prewarm.flashinfer.message import Done, Job, Progress, decode_message, encode

_KIB_PER_GIB = 1 << 20


def modules_of(manifest: Manifest) -> tuple[Elsewhere, ...]:
    """Return the FlashInfer modules that the deployment of `manifest` calls."""
    return tuple(each for each in manifest.elsewhere if each.backend.startswith("FlashInfer"))


def build_module(
    asked: Elsewhere, target: str, directory: Path, jobs: int | None = None
) -> Iterator[Progress]:
    """Yield what becomes of each part of the module `asked`, then write `prewarm-flashinfer.json`.

    Of a manifest that does not say how FlashInfer is called, every instance. By default there are
    as many jobs as cores, and no more than memory allows. What an earlier run left in
    `directory` is not compiled again; an interrupt leaves whole files only.

    Raises HostError where a compiler or FlashInfer is missing, CompileError when something does
    not compile, InputError when this FlashInfer does not know an instance.
    """
    directory = Path(os.path.abspath(directory))
    record = directory / RECORD_NAME
    job = Job(
        module=asked.name,
        target=target,
        directory=str(directory),
        calls=asked.calls,
        instances=asked_instances(asked),
        jobs=jobs or default_jobs(asked.name),
    )
    with host_errors(f"write the directory {directory}"):
        directory.mkdir(parents=True, exist_ok=True)
    with locked(directory / ".lock"):
        record.unlink(missing_ok=True)
        with child("prewarm.flashinfer.child", encode(job)) as process:
            for line in process.answers:
                message = decode_message(line)
                if isinstance(message, Refusal):
                    raise message.error()
                if isinstance(message, Done):
                    write_text(record, built_document(message.built))
                    return
                yield message
            code, words = process.wait(), process.last_words()
        raise CompileError(f"the process that builds {asked.name} ended with {code}:\n{words}")


def asked_instances(asked: Elsewhere) -> tuple[str, ...]:
    """Return the instances to build of the module `asked`; raises HostError where none is known.

    All of a module whose manifest does not say how it is called.
    """
    if asked.calls:
        return instances_of(asked.name, asked.calls)
    if asked.name == HOPPER:
        return every_hopper_instance()
    raise HostError(
        f"the manifest does not say how {asked.name} is called, which decides what is compiled",
        "plan again",
    )


def default_jobs(module: str) -> int:
    """Return how many parts to compile at a time: one a core, while there is memory for them."""
    cores = len(os.sched_getaffinity(0))
    return max(1, min(cores, int(_memory() / forecast(module, 1).memory_per_job)))


def _memory() -> float:
    """Return the memory that is available, in GiB; no limit where that is not told."""
    try:
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
    except OSError:
        return float("inf")
    kib = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return kib / _KIB_PER_GIB
