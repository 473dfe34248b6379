"""The proof without a GPU: a process set up as a vLLM worker finds all and makes nothing."""

import ctypes
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from prewarm.core.manifest_yaml import write_manifest

WORKER = Path(__file__).with_name("serve_sample.py")
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1


def drop_override():
    """Let file modes bind root too."""
    if os.geteuid() == 0 and ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE):
        os._exit(77)


def serve(manifest, cache_dir, scratch, **environment):
    write_manifest(scratch / "plan.yaml", manifest)
    done = subprocess.run(
        [sys.executable, WORKER, scratch / "plan.yaml"],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_CACHE_DIR": str(cache_dir), **environment},
        preexec_fn=drop_override,
        timeout=300,
    )
    if done.returncode == 77:
        pytest.skip("this container may not drop capabilities")
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def read_only(compiled):
    directories = [compiled("b200"), *compiled("b200").iterdir()]
    for directory in directories:
        directory.chmod(0o555)
    yield compiled("b200")
    for directory in directories:
        directory.chmod(0o755)


@pytest.mark.parametrize("tools", [[], ["file"]], ids=["no tools", "the file command"])
def test_a_worker_on_a_read_only_cache_without_a_compiler_finds_all_and_makes_nothing(
    sample, read_only, tmp_path, tools
):
    for tool in tools:
        path = shutil.which(tool) or pytest.skip(f"this machine has no {tool}")
        (tmp_path / tool).symlink_to(path)
    counts = serve(sample("b200"), read_only, tmp_path, PATH=str(tmp_path), CC="/nonexistent/cc")
    assert counts == {"hits": 5, "compiles": 0, "builds": 0, "launchers": 5, "writable": False}


def test_the_same_worker_on_an_empty_cache_makes_everything(sample, tmp_path):
    counts = serve(sample("b200"), tmp_path / "empty", tmp_path)
    assert counts == {"hits": 0, "compiles": 5, "builds": 4, "launchers": 5, "writable": True}
