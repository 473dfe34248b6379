"""The Hopper library: FlashInfer's sources by its own commands, with the instances asked for.

The dispatch in it names all instances. Those that are left out are small functions that raise,
so that it loads with every symbol bound and says what it lacks if it is ever asked.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from prewarm.core.digest import digest_of
from prewarm.core.document import write_text
from prewarm.core.errors import CompileError, InputError
from prewarm.core.flashinfer import AOT, HOPPER, PYTHON, BuiltModule, Library
from prewarm.core.target import Target
from prewarm.flashinfer import flashinfer_seam
from prewarm.flashinfer.flashinfer_seam import Part
from prewarm.flashinfer.message import Done, Failed, Job, Kept, Made, Message, Ready
from prewarm.flashinfer.objects import make_object, object_file, run_whole
from prewarm.flashinfer.toolkit import Toolkit, cxx_compiler, runtime_library

OBJECTS = "objects"
_STUB_FLAGS = ("-std=c++17", "-O1", "-fPIC")
_LINK_FLAGS = ("-shared", "-s", "-Wl,--build-id=none")


def torch_cuda() -> str:
    """Return the CUDA release that torch was built with: `13.0`."""
    import torch

    return torch.version.cuda or ""


def build(job: Job, target: Target, toolkit: Toolkit, work: Path) -> Iterator[Message]:
    """Yield what becomes of each part of the library, then the record of it.

    Raises CompileError naming what did not compile, InputError for an instance that this
    FlashInfer does not know.
    """
    cxx = cxx_compiler()
    runtime = runtime_library(toolkit, torch_cuda())
    parts = flashinfer_seam.hopper_parts()
    wanted, left_out = _divided(parts, job.instances)
    directory = Path(job.directory)
    objects = {part: _object(part, directory / OBJECTS, toolkit, work) for part in wanted}
    yield Ready(
        parts=tuple(part.name for part in wanted),
        built=tuple(part.name for part, file in objects.items() if file.exists()),
        jobs=job.jobs,
        compiler=f"nvcc {toolkit.version}",
    )
    failed = []
    for message in _compile(objects, job.jobs, work):
        failed += [message] if isinstance(message, Failed) else []
        yield message
    if failed:
        raise CompileError(
            f"{len(failed)} of {len(wanted)} parts of {HOPPER} did not compile:\n"
            + "\n".join(each.reason for each in failed),
            "the others are kept; the same command tries only these again",
        )
    library = directory / AOT / flashinfer_seam.library_place(HOPPER)
    files = [*objects.values(), _stubs(left_out, job.instances, cxx, work)]
    run_whole([cxx, *map(str, files), *_LINK_FLAGS, str(runtime)], library, f"linking {HOPPER}")
    _check(library)
    path, text = flashinfer_seam.finder(AOT)
    write_text(directory / PYTHON / path, text)
    yield Done(built=_record(job, target, toolkit, library, directory))


def _divided(parts: Sequence[Part], instances: Sequence[str]) -> tuple[list[Part], list[Part]]:
    """Return the parts to compile, the slowest first, and those to leave out."""
    unknown = {*instances} - {part.name for part in parts if part.instance}
    if unknown:
        raise InputError(
            f"FlashInfer {flashinfer_seam.version()} has no instance {', '.join(sorted(unknown))}",
            "plan again with the FlashInfer that will serve",
        )
    wanted = [part for part in parts if not part.instance or part.name in instances]
    left_out = [part for part in parts if part not in wanted]
    return sorted(wanted, key=lambda part: (not part.instance, part.name)), left_out


def _object(part: Part, directory: Path, toolkit: Toolkit, work: Path) -> Path:
    command = [each.replace(str(work), "") for each in part.compiler]
    versions = (toolkit.text, flashinfer_seam.version(), flashinfer_seam.tvm_ffi_version())
    return object_file(directory, part.source, command, versions)


def _compile(objects: dict[Part, Path], jobs: int, work: Path) -> Iterator[Made | Kept | Failed]:
    missing = {part: file for part, file in objects.items() if not file.exists()}
    for part in objects:
        if part not in missing:
            yield Kept(part=part.name)
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        for done in as_completed(
            [pool.submit(_make, part, file) for part, file in missing.items()]
        ):
            yield done.result()


def _make(part: Part, file: Path) -> Made | Failed:
    began = time.monotonic()
    try:
        make_object(file, part.source, part.compiler)
    except CompileError as error:
        return Failed(part=part.name, reason=error.message)
    return Made(part=part.name, seconds=round(time.monotonic() - began, 1))


def _stubs(left_out: Sequence[Part], instances: Sequence[str], cxx: str, work: Path) -> Path:
    source, file = work / "left_out.cpp", work / "left_out.o"
    message = (
        f"this {HOPPER} was built by prewarm with {', '.join(instances)} only:"
        " build it again for a deployment that asks for another instance"
    )
    source.write_text(flashinfer_seam.stubs(left_out, message), "utf-8")
    run_whole([cxx, *_STUB_FLAGS, "-c", str(source)], file, "what stands for other instances")
    return file


def _check(library: Path) -> None:
    try:
        flashinfer_seam.load_library(library)
    except (OSError, RuntimeError, AttributeError) as error:
        os.unlink(library)
        raise CompileError(f"{HOPPER} was linked and does not load: {error}") from error


def _record(
    job: Job, target: Target, toolkit: Toolkit, library: Path, directory: Path
) -> BuiltModule:
    data = library.read_bytes()
    return BuiltModule(
        module=HOPPER,
        arch=f"sm_{target.arch}a",
        flashinfer=flashinfer_seam.version(),
        tvm_ffi=flashinfer_seam.tvm_ffi_version(),
        compiler=f"nvcc {toolkit.version}",
        cuda=torch_cuda(),
        machine=platform.machine(),
        libc=" ".join(platform.libc_ver()),
        calls=job.calls,
        libraries=(
            Library(
                module=HOPPER,
                file=str(library.relative_to(directory)),
                instances=tuple(sorted(job.instances)),
                digest=digest_of(data),
                size=len(data),
            ),
        ),
    )
