"""Triton's host modules (`cuda_utils`, launchers), built so that equal sources give equal bytes.

Triton compiles them under a temporary path, which ends up in `cuda_utils` through `__FILE__`.
Compiler, flags and order are Triton's; only the paths are settled, and nothing but code is kept.
"""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

from prewarm.device.compiler import run_compiler


def build_host_module(  # noqa: PLR0917  (the signature of Triton's knobs.build.impl)
    name: str,
    src: str,
    srcdir: str,
    library_dirs: list[str],
    include_dirs: list[str],
    libraries: list[str],
) -> str:
    """Return the path of extension module `name` built from the C file `src`, byte for byte alike.

    Raises HostError without a C compiler or Python's headers.
    """
    python = sysconfig.get_path("include")
    module = name + sysconfig.get_config_var("EXT_SUFFIX")
    run_compiler(
        [
            os.path.relpath(src, srcdir),
            *("-O3", "-shared", "-fPIC", "-Wno-psabi", "-o", module),
            *(f"-l:{library}" for library in libraries),
            *(f"-L{directory}" for directory in library_dirs),
            *(f"-I{directory}" for directory in (*include_dirs, ".", python)),
            *(f"-ffile-prefix-map={directory}=include" for directory in (*include_dirs, python)),
            *("-Wl,--build-id=none", "-s"),
        ],
        f"Triton's host module {name}",
        Path(srcdir),
    )
    return os.path.join(srcdir, module)
