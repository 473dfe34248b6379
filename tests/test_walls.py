"""Which room may import which, and that `ship` needs no torch, Triton or vLLM."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOMS = {
    "core": set(),
    "device": {"core"},
    "flashinfer": {"core", "device"},
    "trace": {"core", "device", "flashinfer"},
    "make": {"core", "device"},
    "tune": {"core", "device", "make", "flashinfer"},
    "ship": {"core"},
    "serve": {"core", "device"},
    "prove": {"core", "device", "trace", "serve"},
}
HALL = {
    "cli",
    "__main__",
    "verbs",
    "fleet",
    "gathering",
    "verifying",
    "proving",
    "shipping",
    "appending",
    "starting",
    "render",
    "plot",
    "output",
}
"""The modules between the rooms: argv, the steps of verbs, what people read."""
HEAVY = {"torch", "triton", "vllm", "transformers", "numpy", "flashinfer"}
MAY_BE_HEAVY = {"device", "flashinfer", "trace", "make", "tune", "serve", "prove"}

MODULES = sorted((Path(__file__).parent.parent / "prewarm").rglob("*.py"))


def room_of(path: Path) -> str:
    parts = path.parts[path.parts.index("prewarm") + 1 :]
    return parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Return the dotted names that the module at `path` imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def prewarm_rooms(path: Path) -> set[str]:
    ours = (name.split(".") for name in imports(path) if name.split(".")[0] == "prewarm")
    return {parts[1] for parts in ours if len(parts) > 1} - {"__version__"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(path.parents[2])))
def test_a_room_imports_only_what_it_may(path):
    room = room_of(path)
    if room not in ROOMS:
        assert room in HALL | {"__init__"}
        return

    assert prewarm_rooms(path) - {room} <= ROOMS[room]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(path.parents[2])))
def test_only_some_rooms_know_torch_triton_and_vllm(path):
    heavy = {name.split(".")[0] for name in imports(path)} & HEAVY

    assert not heavy or room_of(path) in MAY_BE_HEAVY


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(path.parents[2])))
def test_vllm_is_known_to_its_seams_alone(path):
    of_trace = ("vllm_seam.py", "vllm_releases.py", "vllm_second_runner.py")
    seams = {*(("trace", name) for name in of_trace), ("serve", "vllm_seam.py")}
    seam = path.parts[-2:] in seams

    assert seam or not any(name.split(".")[0] == "vllm" for name in imports(path))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(path.parents[2])))
def test_triton_is_known_to_its_seams_alone(path):
    seam = path.parts[-2:] in {("device", "triton_seam.py"), ("serve", "triton_seam.py")}
    version_only = path.parts[-2:] == ("device", "toolchain.py")
    names = {name for name in imports(path) if name.split(".")[0] == "triton"}

    assert seam or not names or (version_only and names == {"triton"})


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(path.parents[2])))
def test_flashinfer_is_known_to_its_seams_alone(path):
    seams = {("flashinfer", "flashinfer_seam.py"), ("serve", "flashinfer_seam.py")}
    seam = path.parts[-2:] in seams

    assert seam or not any(name.split(".")[0] == "flashinfer" for name in imports(path))


def test_the_table_of_rooms_is_the_house():
    there = {room_of(path) for path in MODULES}

    assert there == set(ROOMS) | HALL | {"__init__"}


BARE = """
import importlib.abc, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names}:
            raise ImportError(f"the wall: {{name}}")
sys.meta_path.insert(0, Refuse())
import prewarm.ship.install, prewarm.ship.verify, prewarm.ship.pack
import prewarm.ship.push, prewarm.ship.pull, prewarm.ship.catalogue, prewarm.ship.referrers
from prewarm.cli import main
for verb in "install", "verify", "show", "diff", "pack", "push", "pull", "list":
    assert main([verb, "--help"]) == 0
assert main(["show", "targets"]) == 0
rooms = {{"prewarm.trace", "prewarm.make", "prewarm.device"}}
print("entered:", sorted(rooms & set(sys.modules)))
"""


def test_ship_and_its_verbs_run_where_the_engines_cannot_be_imported(root):
    done = subprocess.run(
        [sys.executable, "-c", BARE.format(names=HEAVY)],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("entered: []\n")


@pytest.mark.network
def test_a_bare_environment_installs_prewarm_and_runs_install_and_verify(root, tmp_path):
    home = tmp_path / "bare"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    quiet = ["-qq", "--no-cache-dir", "--disable-pip-version-check"]
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def run(*command):
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=tmp_path, env=clean
        )
        return done.returncode, done.stdout, done.stderr

    code, _, problem = run(
        python, "-m", "pip", "install", *quiet, "-c", root / "constraints.txt", root
    )
    assert code == 0, problem
    _, listed, _ = run(python, "-m", "pip", "list", "--format=freeze")
    names = {line.partition("==")[0].lower() for line in listed.splitlines()}

    assert not names & HEAVY
    for verb in ("install", "verify"):
        assert run(home / "bin" / "prewarm", verb, "--help")[0] == 0
    assert "NVIDIA B200" in run(home / "bin" / "prewarm", "show", "targets")[1]
    code, _, problem = run(home / "bin" / "prewarm", "install", "nowhere", "--into", "here")
    assert (code, problem.splitlines()[0]) == (
        2,
        "prewarm: error: nowhere is neither an image layout nor a mounted cache image",
    )
    assert run(home / "bin" / "prewarm", "verify", "nowhere")[0] == 2
