"""FlashInfer's Blackwell kernel, compiled by CuTe-DSL for a GPU that is not there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from prewarm.core.flashinfer import BLACKWELL, PrefillCall
from prewarm.core.flashinfer_file import read_built
from prewarm.core.manifest import Elsewhere
from prewarm.flashinfer.blackwell import function_name
from prewarm.flashinfer.build import build_module
from prewarm.flashinfer.message import Kept, Made, Ready

Asked = Callable[..., Elsewhere]

CALL = """
import sys, torch
from cutlass.cute.runtime import load_module
kernel = getattr(load_module(sys.argv[1], enable_tvm_ffi=True), sys.argv[2])
here = torch.empty(64, 2, 128, dtype=torch.bfloat16)
kernel(*[here] * 9, None, None, 0, 1.0, here, 0)
"""


def test_a_kernel_is_compiled_once_and_can_be_loaded_wherever_it_lies(
    tmp_path: Path, asked: Asked, call: PrefillCall
) -> None:
    """What was loaded refuses memory of the CPU: all of it but the launch ran here."""
    name = "bf16_fp32_q2v8d128_i1f1c0"

    first = [*build_module(asked(BLACKWELL, call), "b200", tmp_path / "built")]
    second = [*build_module(asked(BLACKWELL, call), "b200", tmp_path / "built")]

    assert [type(part) for part in first] == [Ready, Made]
    assert [type(part) for part in second] == [Ready, Kept]
    record = read_built(tmp_path / "built")
    (library,) = record.libraries
    assert (record.arch, record.multiprocessors, library.instances) == ("sm_100a", 148, (name,))
    moved = (tmp_path / "built" / library.file).rename(tmp_path / "moved.o")
    done = subprocess.run(
        [sys.executable, "-c", CALL, str(moved), function_name(call)],
        env={**os.environ, "CUTE_DSL_ARCH": "sm_100a"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "v: Tensor([n2, 8, 128], bfloat16)" in done.stderr
    assert "expected device_type=cuda" in done.stderr
