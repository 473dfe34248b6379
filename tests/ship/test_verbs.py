"""pack, show, install and verify as a user runs them, on a real cache."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from prewarm.cli import main
from prewarm.core.manifest_yaml import write_manifest
from prewarm.ship.pack import pack


@pytest.fixture
def planned(cache, tmp_path):
    """The manifest of the cache, as a file."""
    path = tmp_path / "plan.yaml"
    write_manifest(path, cache.manifest)
    return path


@pytest.fixture
def image(cache, tmp_path):
    out = tmp_path / "image"
    pack(cache.manifest, cache.directory, out)
    return out


def test_from_a_cache_to_an_installed_directory(cache, planned, tmp_path, capsys):
    image, into = tmp_path / "image", tmp_path / "into"
    argv = ["pack", str(planned), "--cache-dir", str(cache.directory), "-o", str(image)]

    assert main(argv) == 0
    packed = capsys.readouterr()
    index = json.loads((image / "index.json").read_bytes())
    assert packed.out == index["manifests"][0]["digest"] + "\n"
    assert "packed 4 launches into" in packed.err
    assert main([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["manifest_digest"] == packed.out.strip()

    assert main(["install", str(image), "--into", str(into)]) == 0
    installed = capsys.readouterr()
    assert installed.out == f"{into}/triton\n"
    assert installed.err.startswith("installed: 4 launches, sha256:")
    assert main(["install", str(image), "--into", str(into)]) == 0
    assert capsys.readouterr().err.startswith("already installed: 4 launches")

    assert main(["verify", str(into), "--integrity-only"]) == 0
    assert capsys.readouterr() == ("sound\n", "checked: integrity; not checked: fit\n")
    assert main(["verify", str(image), "--integrity-only", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"findings": []}


def test_print_env_adds_the_lines_in_the_form_asked_for(image, tmp_path, capsys):
    into = tmp_path / "into"
    argv = ["install", str(image), "--into", str(into), "-q", "--print-env"]

    assert main(argv) == 0
    assert capsys.readouterr() == (
        f'{into}/triton\nENV TRITON_CACHE_DIR="{into}/triton"\nENV TRITON_CACHE_AUTOTUNING="1"\n',
        "",
    )
    assert main([*argv, "--env-format", "shell"]) == 0
    assert f"export TRITON_CACHE_DIR={into}/triton\n" in capsys.readouterr().out
    assert main([*argv, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["installed"]["state"] == "already installed"
    assert shown["environment"][0]["name"] == "TRITON_CACHE_DIR"


def test_an_altered_file_is_a_finding_with_what_mends_it(image, tmp_path, capsys):
    into = tmp_path / "into"
    main(["install", str(image), "--into", str(into), "-q"])
    cubin = next(into.glob("versions/*/io.triton.cache/*/*.cubin"))
    cubin.write_bytes(b"other")
    capsys.readouterr()

    assert main(["verify", str(into)]) == 1
    first, fix = capsys.readouterr().out.splitlines()
    assert first.startswith("P103 altered file: io.triton.cache/")
    assert fix.startswith("  fix: prewarm install ")
    assert main(["verify", str(into), "--json"]) == 1
    assert [f["code"] for f in json.loads(capsys.readouterr().out)["findings"]] == ["P103"]


def test_an_altered_image_is_refused_with_7(image, tmp_path, capsys):
    blob = max((image / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")

    assert main(["install", str(image), "--into", str(tmp_path / "into")]) == 7
    assert capsys.readouterr().err.startswith("prewarm: error: P103 altered file: ")
    assert not (tmp_path / "into").exists()


WITHOUT_ENGINES = """
import importlib.abc, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "triton", "vllm"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
from prewarm.cli import main
sys.exit(main(sys.argv[1:]))
"""


def without_engines(*argv, **environment):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_ENGINES, *argv],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def _installed_beside_vllm(directory):
    """Return a directory by which Python finds the entry point that vLLM loads plugins by."""
    metadata = directory / "site" / "prewarm-0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: prewarm\nVersion: 0\n")
    (metadata / "entry_points.txt").write_text(
        "[vllm.general_plugins]\nprewarm = prewarm.serve.plugin:register\n"
    )
    return metadata.parent


def test_where_the_engines_are_missing_the_rest_is_checked_and_stderr_says_so(image, tmp_path):
    into = tmp_path / "into"
    main(["install", str(image), "--into", str(into), "-q"])
    said = (
        "checked: integrity; not checked: whether Triton asks for these keys,"
        " because torch, triton, vllm cannot be imported here\n"
    )

    assert without_engines("verify", str(image)) == (0, "sound\n", said)
    assert without_engines("verify", str(into), "--target", "b200") == (0, "sound\n", said)
    code, out, err = without_engines("verify", str(into), "--target", "h100")
    assert (code, out[:4], err) == (1, "P201", said)
    code, out, err = without_engines("verify", str(into), TRITON_CACHE_DIR="/elsewhere")
    assert (code, err) == (1, said)
    assert out.splitlines()[0].endswith(
        f"TRITON_CACHE_DIR: expected {into}/triton, found /elsewhere"
    )
    overlay = {
        "TRITON_CACHE_DIR": "/elsewhere",
        "TRITON_CACHE_MANAGER": "prewarm.serve.overlay:OverlayCache",
    }
    found = without_engines("verify", str(into), **overlay, PREWARM_CACHE=str(into))
    assert found == (0, "sound\n", said)
    code, out, err = without_engines("verify", str(into), **overlay, PREWARM_CACHE=str(tmp_path))
    assert (code, out[:4], err) == (1, "P206", said)
    plugin = {
        "TRITON_CACHE_DIR": "/elsewhere",
        "PREWARM_CACHE": str(into),
        "PYTHONPATH": f"{os.environ['PYTHONPATH']}:{_installed_beside_vllm(tmp_path)}",
    }
    assert without_engines("verify", str(into), **plugin) == (0, "sound\n", said)
    code, out, err = without_engines("verify", str(into), **plugin, VLLM_PLUGINS="another")
    assert (code, out[:4], err) == (1, "P206", said)
    late = into / "triton" / ("A" * 52) / "late.cubin"
    late.parent.mkdir()
    late.write_bytes(b"x")
    code, out, err = without_engines("verify", str(into))
    assert (code, out[:4], err) == (1, "P102", said)
    next(into.glob("versions/*/io.triton.cache/*/*.so")).write_bytes(b"evil")
    code, out, err = without_engines("verify", str(into), "--target", "h100")
    assert [line[:4] for line in out.splitlines()[::2]] == ["P102", "P103"]
    assert err == "checked: integrity; not checked: fit, before that is mended\n"


@pytest.mark.parametrize("what", ["image", "installed"])
def test_an_image_and_an_installed_directory_are_shown(what, image, tmp_path, capsys):
    path = image
    if what == "installed":
        path = tmp_path / "into"
        main(["install", str(image), "--into", str(path), "-q"])
        capsys.readouterr()

    assert main(["show", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "serve arguments   a/model -tp 1\n" in shown
    assert "architecture      sm_100\n" in shown
    assert shown.splitlines()[-2:] == ["add            3", "scale          1"]
    assert main(["show", str(path), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["launches"]) == 4


def test_pack_of_something_not_compiled_is_2_and_names_the_command(planned, tmp_path, capsys):
    argv = ["pack", str(planned), "--cache-dir", str(tmp_path / "none"), "-o", str(tmp_path / "x")]

    assert main(argv) == 2
    assert "hint: prewarm compile MANIFEST --cache-dir" in capsys.readouterr().err


def test_ctrl_c_while_another_installs_is_130(image, tmp_path):
    into = tmp_path / "into"
    main(["install", str(image), "--into", str(into), "-q"])
    with (into / ".prewarm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = subprocess.Popen(
            [sys.executable, "-m", "prewarm", "install", str(image), "--into", str(into)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        until_it_waits(waiting.pid)
        waiting.send_signal(signal.SIGINT)
        out, err = waiting.communicate()

    assert (waiting.returncode, out, err) == (130, "", "prewarm: error: interrupted\n")


def until_it_waits(pid):
    """Return when the process waits for a lock, as the kernel's table of locks says."""
    while True:
        with open("/proc/locks", encoding="ascii") as locks:
            if any("->" in line and f" {pid} " in line for line in locks):
                return
        time.sleep(0.01)
