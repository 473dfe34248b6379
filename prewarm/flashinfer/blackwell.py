"""The Blackwell kernels: CuTe-DSL compiles them for a named architecture, and exports objects."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from pathlib import Path

from prewarm.core.digest import digest_of
from prewarm.core.errors import HostError
from prewarm.core.files import host_errors, write_atomic
from prewarm.core.flashinfer import BLACKWELL, BuiltModule, Library, PrefillCall, instance_of
from prewarm.core.target import Target
from prewarm.flashinfer import flashinfer_seam
from prewarm.flashinfer.message import Done, Job, Kept, Made, Message, Ready

KERNELS = "cute"


def build(job: Job, target: Target, work: Path) -> Iterator[Message]:
    """Yield what becomes of the kernel of each call, then the record of them all.

    Raises HostError where the compiler is missing or another one than FlashInfer needs.
    """
    wanted = {instance_of(BLACKWELL, call): call for call in job.calls}
    directory = Path(job.directory)
    files = {name: directory / _place(name, target) for name in sorted(wanted)}
    yield Ready(
        parts=tuple(files),
        built=tuple(name for name, file in files.items() if file.exists()),
        jobs=1,
        compiler=f"nvidia-cutlass-dsl {_compiler()}",
    )
    for name, file in files.items():
        if file.exists():
            yield Kept(part=name)
            continue
        began = time.monotonic()
        _compile(wanted[name], target, file, work)
        yield Made(part=name, seconds=round(time.monotonic() - began, 1))
    yield Done(built=_record(job, target, files, directory))


def _place(name: str, target: Target) -> Path:
    """Return where a kernel is kept: under all that it depends on but the call."""
    versions = f"{flashinfer_seam.version()}-{_compiler()}"
    gpu = f"sm_{target.arch}a-{target.multiprocessors}"
    return Path(KERNELS, f"{versions}-{gpu}", f"{name}.o")


def _compiler() -> str:
    try:
        return flashinfer_seam.cutlass_dsl_version()
    except ImportError as error:
        raise HostError(
            "FlashInfer's Blackwell kernels need nvidia-cutlass-dsl, and it is not installed here",
            "pip install 'flashinfer-python[cu13]'",
        ) from error


def _compile(call: PrefillCall, target: Target, file: Path, work: Path) -> None:
    draft = work / "kernel.o"
    flashinfer_seam.compile_blackwell(call, target.multiprocessors, draft, function_name(call))
    with host_errors(f"write {file}"):
        write_atomic(file, draft.read_bytes())


def function_name(call: PrefillCall) -> str:
    """Return the name of the function in the object of `call`."""
    return f"gdn_prefill_{instance_of(BLACKWELL, call)}"


def _record(job: Job, target: Target, files: dict[str, Path], directory: Path) -> BuiltModule:
    import torch

    libraries = []
    for name, file in files.items():
        data = file.read_bytes()
        libraries.append(
            Library(
                module=BLACKWELL,
                file=str(file.relative_to(directory)),
                instances=(name,),
                digest=digest_of(data),
                size=len(data),
            )
        )
    return BuiltModule(
        module=BLACKWELL,
        arch=f"sm_{target.arch}a",
        flashinfer=flashinfer_seam.version(),
        tvm_ffi=flashinfer_seam.tvm_ffi_version(),
        compiler=f"nvidia-cutlass-dsl {_compiler()}",
        cuda=torch.version.cuda or "",
        machine=platform.machine(),
        libc=" ".join(platform.libc_ver()),
        multiprocessors=target.multiprocessors,
        calls=job.calls,
        libraries=tuple(libraries),
    )
