"""The project's own files agree with each other."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import prewarm
from prewarm.cli import cli


def pyproject(root: Path) -> dict:
    return tomllib.loads((root / "pyproject.toml").read_text("utf-8"))


def name_of(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[<>=!~;\[ ]", requirement, maxsplit=1)[0]).lower()


RELEASES = ("0.18.1", "0.19.1", "0.20.2", "0.22.1", "0.28.0", "0.31.0", "0.32.0")
PINS = ["constraints.txt", *(f"constraints/vllm-{release}.txt" for release in RELEASES)]


def test_every_file_of_pins_is_looked_at(root):
    there = {str(path.relative_to(root)) for path in root.glob("constraints/*")}

    assert {"constraints.txt", *there} == set(PINS)


@pytest.mark.parametrize("pins", PINS)
def test_everything_that_is_installed_is_pinned(root, pins):
    """The environment's key is taken over its pins: what is not in them would go stale."""
    project = pyproject(root)
    wanted = [
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["vllm"],
        *project["project"]["optional-dependencies"]["plot"],
        *project["dependency-groups"]["dev"],
    ]
    pinned = (root / pins).read_text("utf-8").splitlines()

    assert all(re.fullmatch(r"[A-Za-z0-9._-]+={2,3}[A-Za-z0-9.]+", pin) for pin in pinned)
    assert {name_of(each) for each in wanted} <= {name_of(pin) for pin in pinned}


def test_pins_hold_the_vllm_that_they_are_for(root):
    (tested,) = pyproject(root)["project"]["optional-dependencies"]["vllm"]
    wanted = [tested, *(f"vllm=={re.sub('.*vllm-|.txt$', '', pins)}" for pins in PINS[1:])]

    for pins, vllm in zip(PINS, wanted, strict=True):
        assert vllm in (root / pins).read_text("utf-8").splitlines()


def test_the_requirements_script_prints_all_of_them(root):
    done = subprocess.run(
        [sys.executable, "scripts/requirements.py"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )

    assert [name_of(line) for line in done.stdout.splitlines()][:2] == ["click", "cryptography"]
    assert "vllm" in done.stdout.splitlines()  # the pins say which
    assert "matplotlib" in done.stdout
    assert "pytest-xdist" in done.stdout


def test_two_checkouts_with_the_same_pins_share_an_environment(root, tmp_path):
    def path_of(checkout, *pins, **environment):
        return subprocess.run(
            ["bash", checkout / "scripts" / "env.sh", "path", *pins],
            env={**os.environ, "XDG_CACHE_HOME": str(tmp_path), **environment},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    other = tmp_path / "other"
    (other / "scripts").mkdir(parents=True)
    (other / "scripts" / "env.sh").write_bytes((root / "scripts" / "env.sh").read_bytes())
    pins = (root / "constraints.txt").read_bytes()
    (other / "constraints.txt").write_bytes(pins)
    ours = path_of(root)

    assert re.fullmatch(rf"{tmp_path}/prewarm/env-[0-9a-f]{{12}}", ours)
    assert path_of(other) == ours == path_of(root, "constraints.txt")
    assert path_of(root, PINS[1]) != ours
    (other / "constraints.txt").write_bytes(pins + b"another==1\n")
    assert path_of(other) != ours


def test_an_environment_that_would_not_fit_is_refused_before_anything_is_fetched(root, tmp_path):
    df = tmp_path / "bin" / "df"
    df.parent.mkdir()
    df.write_text("#!/bin/sh\necho Avail\necho 5242880\n")
    df.chmod(0o755)
    done = subprocess.run(
        ["bash", root / "scripts" / "env.sh", "make"],
        env={
            **os.environ,
            "XDG_CACHE_HOME": str(tmp_path),
            "PATH": f"{df.parent}:{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 4
    first, hint = done.stderr.splitlines()[-2:]
    assert first == (
        f"prewarm: error: {tmp_path}/prewarm has 5 GiB free; vLLM, torch and CUDA's libraries"
        " need 12 GiB"
    )
    assert hint.startswith("  hint: free some space there, or set XDG_CACHE_HOME")
    assert not list((tmp_path / "prewarm").glob("env-*/"))


def test_pins_that_are_not_there_are_refused_with_those_that_are(root):
    done = subprocess.run(
        ["bash", root / "scripts" / "env.sh", "path", "constraints/vllm-0.1.txt"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.splitlines() == [
        "prewarm: error: there is no file of pins constraints/vllm-0.1.txt",
        f"  hint: these are there: {' '.join(PINS)}",
    ]


def test_the_shell_scripts_parse(root):
    for script in (*root.glob("scripts/*.sh"), root / ".ci" / "run"):
        assert os.access(script, os.X_OK), script
        subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.network
def test_the_wheel_holds_the_data_that_the_package_reads(root, tmp_path):
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "-w", tmp_path, root],
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    data = {
        str(path.relative_to(root))
        for pattern in ("*.yaml", "*.c", "*.json", "py.typed")
        for path in (root / "prewarm").rglob(pattern)
    }

    assert {"prewarm/core/targets.yaml", "prewarm/py.typed"} <= data
    assert data <= set(zipfile.ZipFile(wheel).namelist())
    assert wheel.name == f"prewarm-{prewarm.__version__}-py3-none-any.whl"


def test_the_version_has_its_entry_in_the_changelog(root):
    assert f"## {prewarm.__version__}" in (root / "CHANGELOG.md").read_text("utf-8")


def test_every_make_target_and_every_verb_that_the_readme_names_exists(root):
    readme = (root / "README.md").read_text("utf-8")
    target = r"[a-z]+(?:-[0-9.]*[0-9])?"
    targets = set(re.findall(rf"^({target}):", (root / "Makefile").read_text(), re.MULTILINE))

    named = set(re.findall(rf"(?:^|`)make ({target})", readme, re.MULTILINE))
    assert {"example", "test"} <= named <= targets
    verbs = set(re.findall(r"(?:`|RUN |&& )prewarm ([a-z]+)", readme))
    assert {"build", "install", "verify"} <= verbs <= set(cli.commands)


def test_documents_link_to_what_is_there(root):
    documents = [*root.glob("*.md"), *root.glob("docs/*.md")]
    assert len(documents) >= 4
    for document in documents:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text("utf-8")):
            if "://" not in link:
                assert (document.parent / link).exists(), f"{document.name}: {link}"
