"""`prewarm verify DIR -- SERVE ARGS`, from the first trace to the exit code."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from prewarm.cli import main
from prewarm.core.manifest import Manifest
from prewarm.core.selection import Choice, Selection
from prewarm.core.target import target_named
from prewarm.make.compile import compile_manifest
from prewarm.ship.install import install
from prewarm.ship.pack import pack
from prewarm.trace.plan import plan

MODEL = "model-configs/Qwen3.5-0.8B"
ARGS = (MODEL, "--gdn-prefill-backend", "triton", "--num-gpu-blocks-override", "3000")


@pytest.fixture(autouse=True)
def _in_the_checkout(root, monkeypatch):
    monkeypatch.chdir(root)


def winners_of(manifest: Manifest) -> Selection:
    """Return the first candidate of every tuning key as its winner: nothing is measured here."""
    choices = tuple(
        Choice(kernel=kernel.name, key=each.tuning_key, winner=kernel.candidates[0], time=1.0)
        for kernel in manifest.kernels
        if kernel.candidates
        for each in kernel.specializations
    )
    return Selection(gpu="NVIDIA B200", tunings="sha256:" + "0" * 64, choices=choices)


@pytest.fixture
def entries(tmp_path) -> Path:
    """An installed cache of a real deployment, with winners alone.

    Traced here: another process's PATH may lead to another ptxas.
    """
    found = plan(ARGS, target_named("b200"), closure=0)
    list(compile_manifest(found, tmp_path / "compiled", 2, winners_of(found)))
    pack(found, tmp_path / "compiled", tmp_path / "image")
    return Path(install(tmp_path / "image", tmp_path / "cache").directory)


def test_a_cache_hits_for_its_own_deployment_and_says_why_not_for_another(
    entries, monkeypatch, capsys
):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(entries))
    directory = str(entries.parent)
    assert main(["verify", directory, "--closure", "0", "-v", "--", *ARGS]) == 0
    said = capsys.readouterr()
    assert said.out == "sound\n"
    assert "serving here: ptxas " in said.err
    assert "of 23 launches are hits, 0 misses" in said.err
    assert "autotune records: 6 of 6 tuning keys find their winner" in said.err
    assert sum(line.startswith("hit ") for line in said.err.splitlines()) == 23
    monkeypatch.setenv("VLLM_USE_STANDALONE_COMPILE", "0")
    monkeypatch.setenv("VLLM_USE_MEGA_AOT_ARTIFACT", "0")
    other = [*ARGS[:-1], "4000", "--max-num-seqs", "200"]
    assert main(["verify", directory, "--closure", "0", "--json", "--", *other]) == 1
    found = msgspec.json.decode(capsys.readouterr().out)
    told = {(each["code"], each["subject"]): each for each in found["findings"]}
    lines = "`num_cache_lines` is 3000 in the cache and 4000 here"
    assert "P304" in {each["code"] for each in found["findings"] if lines == each["found"]}
    moved = told["P209", "TRITON_CACHE_DIR"]
    assert moved["found"].endswith("/rank_0_0/triton_cache, to which vLLM's compiler moves it")
    deployment = found["deployment"]
    assert deployment["serve_args"] == other
    assert {each["item"] for each in deployment["differs"]} >= {"--num-gpu-blocks-override"}
    states = [each["state"] for each in deployment["launches"]]
    assert (states.count("hit"), len(states)) == (found["hits"], found["launches"])
    assert {each["key"] for each in deployment["launches"]} != {None}
    assert deployment["unasked"] > 0
    assert found["records"] == found["winners"] == 6


def test_serve_arguments_are_nothing_to_integrity(tmp_path, capsys):
    assert main(["verify", str(tmp_path), "--integrity-only", "--", *ARGS]) == 2
    assert "--integrity-only asks nothing of a deployment" in capsys.readouterr().err
