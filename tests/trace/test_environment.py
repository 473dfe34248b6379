"""The manifest names the variables that decide kernels, and no secret."""

from __future__ import annotations

import json
import os
import subprocess
import sys


def _found(read: list[str], **environment: str) -> dict[str, str]:
    code = (
        "import json, os, sys\n"
        "from prewarm.trace.environment import Watch\n"
        "watch = Watch()\n"
        "os.environ['VLLM_SET_LATER'] = '1'\n"
        f"for name in {read!r}: os.environ.get(name)\n"
        "json.dump(watch.found, sys.stdout)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        env={**os.environ, **environment},
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def test_what_is_set_and_read_is_found() -> None:
    """Not what is only set, nor what the process set itself."""
    found = _found(["FLA_USE_TMA", "VLLM_SET_LATER"], FLA_USE_TMA="1", FLA_TRIL_PRECISION="ieee")

    assert found == {"FLA_USE_TMA": "1"}


def test_secrets_addresses_and_paths_are_never_kept() -> None:
    """Whatever reads them."""
    private = {
        "VLLM_API_KEY": "k",
        "HF_TOKEN": "t",
        "VLLM_HOST_IP": "h",
        "TRITON_CACHE_DIR": "c",
        "VLLM_SOMETHING": "/a/path",
        "HOME_OF_USER": "u",
    }

    assert _found(list(private), **private) == {}
