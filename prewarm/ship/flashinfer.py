"""What was built of FlashInfer, as the part of a cache tree that FlashInfer reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from prewarm.core.cache import FLASHINFER
from prewarm.core.digest import digest_of
from prewarm.core.errors import InputError
from prewarm.core.files import host_errors, relative_path
from prewarm.core.flashinfer import PYTHON, RECORD_NAME, SHIPPED, BuiltModule, instances_of
from prewarm.core.flashinfer_file import built_document, read_built
from prewarm.core.manifest import Manifest
from prewarm.core.record import Record
from prewarm.core.toolchain import Toolchain


class Part(Record, kw_only=True):
    """Files of a cache tree, and what they are."""

    built: BuiltModule
    files: dict[str, bytes]
    """By path in the tree."""


def flashinfer_part(directory: Path, manifest: Manifest, toolchain: Toolchain, arch: int) -> Part:
    """Return what lies in `directory` of FlashInfer for the deployment of `manifest`.

    The record in it says how that deployment calls FlashInfer, whichever it was built for.

    Raises InputError where it was built for something else, is not what its record says, or is
    of a kind that FlashInfer never reads from a file.
    """
    built = read_built(directory)
    rebuild = f"prewarm compile MANIFEST --cache-dir CACHE --flashinfer {directory}"
    if built.module not in SHIPPED:
        raise InputError(
            f"{directory}: {built.module} is compiled in every process that calls it, and"
            " FlashInfer reads no file in its place",
            "prewarm pack without --flashinfer",
        )
    for problem in _problems(built, manifest, toolchain, arch):
        raise InputError(f"{directory}: {problem}", rebuild)
    with host_errors(f"read {directory}"):
        files = {f"{FLASHINFER}/{name}": data for name, data in files_of(directory, built)}
    for library in built.libraries:
        if digest_of(files[f"{FLASHINFER}/{library.file}"]) != library.digest:
            raise InputError(f"{directory}: {library.file} is not the file that was built", rebuild)
    (called,) = (each.calls for each in manifest.elsewhere if each.name == built.module)
    built = msgspec.structs.replace(built, calls=called)
    files[f"{FLASHINFER}/{RECORD_NAME}"] = built_document(built).encode()
    return Part(built=built, files=files)


def _problems(
    built: BuiltModule, manifest: Manifest, toolchain: Toolchain, arch: int
) -> Iterator[str]:
    asked = [each for each in manifest.elsewhere if each.name == built.module]
    if not asked:
        yield f"the deployment of the manifest does not call {built.module}"
    here = {instance for library in built.libraries for instance in library.instances}
    for each in asked:
        if missing := {*instances_of(each.name, each.calls)} - here:
            yield f"{built.module} was built without {', '.join(sorted(missing))}"
    compared = (
        ("GPU architecture", built.arch, f"sm_{arch}a"),
        ("CPU architecture", built.machine, toolchain.machine),
        ("CUDA release", built.cuda, toolchain.cuda),
    )
    for what, found, wanted in compared:
        if found != wanted:
            yield f"{built.module} was built for the {what} {found}, the launches for {wanted}"


def files_of(directory: Path, built: BuiltModule) -> Iterator[tuple[str, bytes]]:
    """Yield what of `directory` is shipped, by its path there; raises OSError, IntegrityError."""
    names = [RECORD_NAME, *(library.file for library in built.libraries)]
    names += [str(path.relative_to(directory)) for path in (directory / PYTHON).glob("*/*.py")]
    for name in sorted(names):
        path = relative_path(name, RECORD_NAME)
        yield str(path), (directory / path).read_bytes()
