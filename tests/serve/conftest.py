"""Processes as vLLM starts them, with the plugin's entry point where an install puts it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

ENTRY_POINT = "[vllm.general_plugins]\nprewarm = prewarm.serve.plugin:register\n"
METADATA = "Metadata-Version: 2.1\nName: prewarm\nVersion: 0\n"


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """Return a directory for sys.path in which prewarm looks installed."""
    directory = tmp_path_factory.mktemp("site")
    info = directory / "prewarm-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(METADATA)
    (info / "entry_points.txt").write_text(ENTRY_POINT)
    return directory


@pytest.fixture(scope="session")
def process(site, tmp_path_factory):
    """Return a function that runs a script of this directory and returns its JSON and its log."""
    home = tmp_path_factory.mktemp("home")

    def run(script, *arguments, **environment):
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PREWARM", "TRITON_", "PROMETHEUS_"))
        }
        done = subprocess.run(
            [sys.executable, HERE / script, *map(str, arguments)],
            env={
                **inherited,
                "HOME": str(home),
                "PYTHONPATH": os.pathsep.join(map(str, (ROOT, site, HERE))),
                "VLLM_LOGGING_STREAM": "ext://sys.stderr",
                "XDG_CACHE_HOME": inherited.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")),
                **{name: str(value) for name, value in environment.items()},
            },
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return {**json.loads(done.stdout.splitlines()[-1]), "log": done.stderr}

    return run


@pytest.fixture(scope="session")
def built(process, tmp_path_factory):
    """Return an installed cache of the kernels in `served_kernels`; not to be changed."""
    directory = tmp_path_factory.mktemp("installed") / "cäche"
    process("serve_kernels.py", "build", directory)
    return directory


@pytest.fixture
def cache(built, tmp_path):
    """Return an installed cache of a test's own."""
    return shutil.copytree(built, tmp_path / "cache", symlinks=True)


@pytest.fixture
def serve(process, cache, tmp_path):
    """Return a function that runs a scenario of `serve_kernels.py` on the test's own cache."""

    def run(scenario, **environment):
        given = {"PREWARM_CACHE": cache, "PREWARM_OVERLAY": tmp_path / "overlay", **environment}
        return process("serve_kernels.py", scenario, cache, **given)

    return run
