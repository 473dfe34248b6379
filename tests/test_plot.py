"""Tunings as people see them: the table, the picture, the merged file."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import msgspec
import pytest

from prewarm.cli import main
from prewarm.core.manifest_yaml import render_manifest
from prewarm.core.tunings import Prefill
from prewarm.core.tunings_yaml import read_tunings, write_tunings

replace = msgspec.structs.replace


@pytest.fixture
def file(tunings, tmp_path):
    path = tmp_path / "t.yaml"
    write_tunings(path, tunings)
    return path


def of_another_model(tunings):
    """Return tunings of another key, measured a day later."""
    (run,), (kernel,) = tunings.runs, tunings.kernels
    key = replace(kernel.keys[0], key={"n": 2})
    later = replace(run, date="2026-11-24T08:00:00Z", serve_args=("b/model",))
    return replace(tunings, runs=(later,), kernels=(replace(kernel, keys=(key,)),))


def test_tunings_are_shown_head_winners_and_sizes(file, tunings, capsys):
    assert main(["show", str(file)]) == 0
    shown = capsys.readouterr().out

    assert re.search(r"^GPU +NVIDIA B200, sm_100$", shown, re.MULTILINE)
    assert tunings.digest in shown
    assert "2026-11-23T14:02:00Z, 812 s, driver 580.65.06" in shown
    assert "SM 1755–1980 MHz, memory 2619 MHz, 41–66 °C, 700 W" in shown
    assert "64 (0), 8192 (2), 8192×8 (1)" in shown
    assert re.search(r"noise +0\.8 %", shown)
    columns = r"add +B=256, 8 warps, 3 stages +no, beyond it +1\.003 +1\.22× +B=64, 4 warps, 3 st"
    assert re.search(columns, shown)
    step = r"^8192×8 +121\.0 +101\.0 +1\.20× +100\.0 +1\.21×$"
    assert re.search(step, shown, re.MULTILINE)
    assert re.search(r"^shared +V=128$", shown, re.MULTILINE)
    assert re.search(
        r"^64 +B=64, 4 warps, 3 stages +3\.20 +9\.4 % +0\.0 % +2\.0 %$", shown, re.MULTILINE
    )
    assert re.search(r"^8192 +the winner +100\.00 +0\.0 % +20\.0 % +0\.5 %$", shown, re.MULTILINE)
    assert re.search(r"^8192×8 +B=128, .* 1\.0 % +21\.0 % +0\.6 %$", shown, re.MULTILINE)


def test_backends_that_were_measured_stand_side_by_side_with_what_each_costs(
    tunings, tmp_path, capsys
):
    def prefill(backend, how, *times):
        return Prefill(
            backend=backend,
            how=how,
            times=times,
            spread=(0.01,) * 3,
            host=(50.0, 60.0, 70.0),
            cold="minutes",
        )

    (run,) = tunings.runs
    prefills = (
        prefill("flashinfer", "an instance", 10.0, 400.0, 50.0),
        prefill("triton", "winners", 20.0, 200.0, 50.5),
        prefill("triton", "vLLM's own", 30.0, 300.0, 60.0),
    )
    path = tmp_path / "t.yaml"
    write_tunings(path, replace(tunings, runs=(replace(run, prefills=prefills),)))

    assert main(["show", str(path)]) == 0
    shown = capsys.readouterr().out
    columns = r"^prefill of +flashinfer, µs +triton, winners, µs +triton, vLLM's own, µs +faster$"
    assert re.search(columns, shown, re.MULTILINE)
    assert re.search(r"^64 +10\.0 +20\.0 +30\.0 +flashinfer$", shown, re.MULTILINE)
    assert re.search(r"^8192 +400\.0 +200\.0 +300\.0 +triton$", shown, re.MULTILINE)
    assert re.search(r"^8192×8 +50\.0 +50\.5 +60\.0 +equal$", shown, re.MULTILINE)
    assert (
        "of 3 sizes: flashinfer is at 1, triton is at 1, they are equal at 1\n"
        "flashinfer, an instance: 50–70 µs of a CPU to launch; cold: minutes\n"
    ) in shown


def test_a_size_at_which_the_key_is_not_asked_for_says_so(tunings, tmp_path, capsys):
    (kernel,) = tunings.kernels
    (key,) = kernel.keys
    measured = tuple(
        replace(each, times=(*each.times[:2], None)) if each.times else each
        for each in key.measured
    )
    key = replace(key, measured=measured, sizes=key.sizes[:2], noise=(0.02, 0.005, None))
    path = tmp_path / "t.yaml"
    write_tunings(path, replace(tunings, kernels=(replace(kernel, keys=(key,)),)))

    assert main(["show", str(path), "--plot", str(tmp_path / "p.svg"), "-q"]) == 0
    assert re.search(r"^8192×8 +not asked for$", capsys.readouterr().out, re.MULTILINE)


def test_tunings_as_json_are_the_document(file, tunings, capsys):
    assert main(["show", str(file), "--json"]) == 0

    shown = json.loads(capsys.readouterr().out)
    assert (shown["schema"], shown["digest"]) == (tunings.schema, tunings.digest)
    assert shown["kernels"][0]["keys"][0]["winner"]["constexprs"] == {"B": 256}


def test_a_manifest_as_json_is_the_document(manifest, tmp_path, capsys):
    path = tmp_path / "m.yaml"
    path.write_text(render_manifest(manifest), "utf-8")

    assert main(["show", str(path), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["schema"], shown["digest"]) == (manifest.schema, manifest.digest)


def test_a_picture_shows_every_config_and_names_what_was_chosen(file, tunings, tmp_path, capsys):
    picture = tmp_path / "t.svg"

    assert main(["show", str(file), "--plot", str(picture)]) == 0
    assert capsys.readouterr().err == f"drawn into {picture}\n"
    drawn = ET.parse(picture)
    lines = drawn.findall(".//{*}g[@id]")
    assert len([each for each in lines if each.get("id").startswith("line2d")]) > 8
    text = picture.read_text("utf-8")
    for words in (
        "NVIDIA B200, Triton 3.6.0",
        "8192×8",
        "winner: B=256, 8 warps, 3 stages",
        "vLLM's own choice: B=64, 4 warps, 3 stages",
    ):
        assert f"<!-- {words} -->" in text


def test_the_same_tunings_give_the_same_svg_whatever_the_process(file, root, tmp_path):
    (tmp_path / "matplotlibrc").write_text("lines.linewidth: 9\nfont.size: 30\n")
    for name, directory in (("a.svg", tmp_path), ("b.svg", tmp_path.parent)):
        subprocess.run(
            [sys.executable, "-m", "prewarm", "show", file, "--plot", tmp_path / name, "-q"],
            env={**os.environ, "PYTHONPATH": str(root), "PYTHONHASHSEED": str(len(name))},
            cwd=directory,
            check=True,
            capture_output=True,
        )

    first = (tmp_path / "a.svg").read_bytes()
    assert first == (tmp_path / "b.svg").read_bytes()
    assert b"<dc:date>" not in first


def test_a_picture_may_be_a_png(file, tmp_path):
    assert main(["show", str(file), "--plot", str(tmp_path / "t.PNG"), "-q"]) == 0
    assert (tmp_path / "t.PNG").read_bytes().startswith(b"\x89PNG")


def test_another_kind_of_picture_is_bad_input(file, tmp_path, capsys):
    assert main(["show", str(file), "--plot", str(tmp_path / "t.pdf")]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"prewarm: error: {tmp_path}/t.pdf: a picture is an .svg or a .png",
        f"  hint: --plot {tmp_path}/t.svg",
    ]


@pytest.mark.parametrize("thing", ["targets", "manifest"])
def test_only_tunings_can_be_drawn(thing, manifest, tmp_path, capsys):
    if thing == "manifest":
        thing = str(tmp_path / "m.yaml")
        (tmp_path / "m.yaml").write_text(render_manifest(manifest), "utf-8")

    assert main(["show", thing, "--plot", str(tmp_path / "t.svg")]) == 2
    assert "--plot draws tunings" in capsys.readouterr().err
    assert not (tmp_path / "t.svg").exists()


def test_without_matplotlib_the_hint_installs_it(file, tmp_path):
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from prewarm.cli import main\n"
        f"sys.exit(main(['show', {str(file)!r}, '--plot', {str(tmp_path / 't.svg')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 4
    first, hint = done.stderr.splitlines()
    assert first.startswith("prewarm: error: matplotlib draws the picture, and it cannot be import")
    assert hint == "  hint: pip install 'prewarm[plot]'"


def test_a_table_needs_no_matplotlib(file):
    code = (
        "import sys\nfrom prewarm.cli import main\n"
        f"assert main(['show', {str(file)!r}]) == 0\n"
        "sys.exit('matplotlib' in sys.modules)"
    )

    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_two_files_are_merged_into_one_that_is_shown(file, tunings, tmp_path, capsys):
    other, merged = tmp_path / "other.yaml", tmp_path / "merged.yaml"
    write_tunings(other, of_another_model(tunings))

    assert main(["merge", str(file), str(other), "-o", str(merged)]) == 0
    assert capsys.readouterr() == (f"{merged}\n", "")
    assert [key.key for key in read_tunings(merged).kernels[0].keys] == [{"n": 1}, {"n": 2}]
    again = tmp_path / "again.yaml"
    assert main(["merge", str(other), str(file), "-o", str(again), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["digest"] == read_tunings(merged).digest
    assert again.read_bytes() == merged.read_bytes()
    assert main(["show", str(merged)]) == 0
    assert "run 2" in capsys.readouterr().out


def test_a_conflict_leaves_the_output_as_it_was(file, tunings, tmp_path, capsys):
    other, merged = tmp_path / "other.yaml", tmp_path / "merged.yaml"
    (run,) = tunings.runs
    write_tunings(other, replace(tunings, runs=(replace(run, date="2026-11-24T08:00:00Z"),)))
    merged.write_text("precious")

    assert main(["merge", str(file), str(other), "-o", str(merged)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "kernels:add, n=1: a/model -tp 1 of 2026-11-23T14:02:00Z and" in said.err
    assert merged.read_text() == "precious"


def test_a_file_that_is_no_tunings_is_named(file, manifest, tmp_path, capsys):
    path = tmp_path / "m.yaml"
    path.write_text(render_manifest(manifest), "utf-8")

    assert main(["merge", str(file), str(path), "-o", str(tmp_path / "o.yaml")]) == 2
    assert f"{path}: expected a document of schema prewarm/tunings/v1" in capsys.readouterr().err
