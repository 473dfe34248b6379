"""The plugin as vLLM's own loader brings it in, and what a release without some name costs."""

import os
import subprocess
import sys
import tomllib
from configparser import ConfigParser
from importlib.machinery import ModuleSpec

from prewarm.core.child import child
from prewarm.serve import plugin

INSPECTION = "vllm.model_executor.models.registry"
OFF = (
    "counting benchmarks is off: AttributeError",
    "counting host modules is off: AttributeError",
    "recording tuning keys is off: AttributeError",
    "telling start-up from inference is off: ImportError",
)


def test_an_install_brings_the_entry_point_that_the_tests_use(root, site):
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    ini = ConfigParser()
    ini.read(site / "prewarm-0.dist-info" / "entry_points.txt")

    groups = {group: dict(ini[group]) for group in ini.sections()}
    assert project["entry-points"] == groups


def test_vllm_s_loader_finds_the_plugin_and_the_plugin_hears_triton(process, tmp_path):
    seen = process("load.py", "whole", PREWARM="1", TRITON_CACHE_DIR=tmp_path)

    assert seen["compiles"] == [1]
    assert seen["inspection"] == INSPECTION
    assert "is off" not in seen["log"]


def test_what_a_release_does_not_have_costs_that_feature_and_a_line(process, tmp_path):
    seen = process("load.py", "bare", PREWARM_RECORD=tmp_path / "record", TRITON_CACHE_DIR=tmp_path)

    assert seen["compiles"] == [1], "what is left goes on"
    lines = [line for line in seen["log"].splitlines() if "prewarm: " in line]
    assert [any(words in line for line in lines) for words in OFF] == [True] * len(OFF)
    assert all("WARNING" in line for line in lines), "the lines are in vLLM's own format"


def test_a_process_that_only_looks_at_a_model_s_class_is_left_alone(monkeypatch):
    monkeypatch.setenv("PREWARM", "1")
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", ModuleSpec(INSPECTION, None))

    plugin.register()

    assert plugin._PROCESSES == []


def test_a_process_that_plays_a_gpu_for_prewarm_itself_is_left_alone(monkeypatch, tmp_path):
    (tmp_path / "asks.py").write_text("import os\nprint(os.environ['PREWARM'])\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PREWARM", "1")

    with child("asks", b"") as asked:
        assert (asked.wait(), asked.last_words()) == (0, "0\n")


def test_a_process_that_does_not_want_the_plugin_pays_for_no_import(root):
    script = (
        "import sys; before = set(sys.modules)\n"
        "from prewarm.serve.plugin import register\n"
        "register()\n"
        "print(sorted(m for m in set(sys.modules) - before if m.startswith('prewarm.')))\n"
        "assert not {'torch', 'triton', 'vllm', 'prewarm.device'} & set(sys.modules)\n"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PREWARM", "TRITON_"))}

    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**clean, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert "prewarm.serve.settings" in done.stdout
    assert "prewarm.serve.process" not in done.stdout
    assert "prewarm.device" not in done.stdout
