"""Every finding of the half of `verify` that is about fit, provoked."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import msgspec
import pytest

from prewarm.core.cache import (
    COMPILED_NAME,
    COMPILED_SCHEMA,
    AutotuneRecord,
    CacheManifest,
    Compiled,
    cache_document,
)
from prewarm.core.digest import digest_of
from prewarm.core.document import parse_json
from prewarm.core.target import target_named
from prewarm.device.gpu import Gpu
from prewarm.make.entries import sweep
from prewarm.make.fit import misfits, misplaced, missing_engines
from prewarm.make.lookup import look_up

RECORD = AutotuneRecord(kernel="a:b", key="K", file="b.autotune.json")
PTXAS = """#!/bin/sh
echo 'Cuda compilation tools, release 13.9, V13.9.99'
"""
H100 = Gpu(name="NVIDIA H100 80GB HBM3", arch=90)


@pytest.fixture(scope="session")
def cached(sample, compiled) -> CacheManifest:
    """The index of a cache of the sample, as `pack` describes it."""
    plan = sample("b200")
    index = parse_json(
        (compiled("b200") / COMPILED_NAME).read_bytes(), Compiled, COMPILED_SCHEMA, COMPILED_NAME
    )
    return CacheManifest(
        manifest=plan.digest,
        deployment=plan.deployment,
        target_arch=index.arch,
        toolchain=index.toolchain,
        launches=index.launches,
        host_modules=index.host_modules,
        sources={kernel.name: kernel.source for kernel in plan.kernels},
        files=(),
    )


@pytest.fixture(scope="session")
def looked(sample, compiled):
    """What serving here finds in a cache that was built here."""
    return look_up(sample("b200"), compiled("b200"))


def with_toolchain(cached, **changed):
    toolchain = msgspec.structs.replace(cached.toolchain, **changed)
    return msgspec.structs.replace(cached, toolchain=toolchain)


def told(findings):
    return [(each.code, each.subject, each.expected, each.found) for each in findings]


def test_a_cache_that_was_built_here_fits(cached, sample, looked, compiled, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(compiled("b200")))
    assert misfits(cached, sample("b200"), looked) == ()
    assert misplaced(cached, target_named("b200"), (), compiled("b200")) == ()
    assert missing_engines() == ()


def test_p201_the_target_that_is_named_counts_and_else_the_gpu_that_is_here(cached):
    expected = ("P201", "GPU", "sm_100 (b200)", "sm_90 (NVIDIA H100 80GB HBM3)")
    assert told(misplaced(cached, target_named("h100"), (), None)) == [expected]
    assert told(misplaced(cached, None, (H100, H100), None)) == [expected]
    assert misplaced(cached, target_named("b200"), (H100,), None) == ()
    assert misplaced(cached, None, (), None) == ()


def test_p202_another_triton(cached, sample, looked):
    other = digest_of(b"another wheel")
    (finding,) = misfits(with_toolchain(cached, triton_key=other), sample("b200"), looked)
    assert (finding.code, finding.expected) == ("P202", f"{other} (Triton 3.6.0)")


def test_p203_a_ptxas_on_path_that_flashinfer_chooses_comes_first(
    cached, sample, compiled, tmp_path, monkeypatch
):
    if find_spec("flashinfer") is None:
        pytest.skip("flashinfer is not installed")
    (tmp_path / "ptxas").write_text(PTXAS)
    (tmp_path / "ptxas").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("TRITON_DISABLE_LINE_INFO", "1")
    first, second = misfits(cached, sample("b200"), look_up(sample("b200"), compiled("b200")))
    assert (first.code, first.expected) == ("P203", "12.9.86 (chosen by triton)")
    assert first.found == f"13.9.99 (chosen by TRITON_PTXAS_BLACKWELL_PATH: {tmp_path}/ptxas)"
    variable, _, path = first.fix.partition(" in the environment")[0].partition("=")
    assert (second.code, second.subject) == ("P206", "TRITON_DISABLE_LINE_INFO")
    # Doing what the finding says mends it.
    monkeypatch.setenv(variable, path)
    monkeypatch.delenv("TRITON_DISABLE_LINE_INFO")
    assert misfits(cached, sample("b200"), look_up(sample("b200"), compiled("b200"))) == ()


def test_p204_a_line_more_in_a_kernels_module(cached, sample, compiled, tmp_path, monkeypatch):
    """The same kernel one line lower: Triton's key holds the first line."""
    plan = sample("b200")
    kernel = next(each for each in plan.kernels if each.name.endswith(":l2norm_fwd_kernel2"))
    name = kernel.name.partition(":")[0]
    program = f"import importlib.util as u; print(u.find_spec({name!r}).origin)"
    origin = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout.split()[-1]
    lines = Path(origin).read_text().splitlines(keepends=True)
    at = next(n for n, line in enumerate(lines) if line.startswith("@triton"))
    (tmp_path / "copied.py").write_text("".join([*lines[:at], "# a patch\n", *lines[at:]]))
    monkeypatch.setenv("PYTHONPATH", f"{os.environ['PYTHONPATH']}:{tmp_path}")
    copied = msgspec.structs.replace(kernel, name="copied:l2norm_fwd_kernel2")
    others = tuple(each for each in plan.kernels if each is not kernel)
    plan = msgspec.structs.replace(plan, kernels=(*others, copied))
    sources = {each.name: each.source for each in plan.kernels}
    cached = msgspec.structs.replace(cached, sources=sources)
    (finding,) = misfits(cached, plan, look_up(plan, compiled("b200")))
    assert (finding.code, finding.subject, finding.expected) == (
        *("P204", "copied:l2norm_fwd_kernel2"),
        kernel.source,
    )
    assert finding.found.startswith("sha256:")
    monkeypatch.delenv("PYTHONPATH")
    (finding,) = misfits(cached, plan, look_up(plan, compiled("b200")))
    assert finding.found == "no such kernel"


def test_p206_variables_that_enter_keys_or_lead_away(cached, sample, compiled, monkeypatch):
    monkeypatch.setenv("TRITON_DISABLE_LINE_INFO", "1")
    monkeypatch.setenv("TRITON_CACHE_AUTOTUNING", "0")
    monkeypatch.setenv("TRITON_CACHE_DIR", "/elsewhere")
    monkeypatch.setenv("TRITON_ALWAYS_COMPILE", "1")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    looked = look_up(sample("b200"), compiled("b200"))
    tuned = msgspec.structs.replace(cached, autotune_records=(RECORD,))
    built_with = with_toolchain(tuned, key_environment={"PTXAS_OPTIONS": "-v"})
    assert told(misfits(built_with, sample("b200"), looked)) == [
        ("P206", "PTXAS_OPTIONS", "-v", "(unset)"),
        ("P206", "TRITON_CACHE_AUTOTUNING", "1", "0"),
        ("P206", "TRITON_DISABLE_LINE_INFO", "(unset)", "true"),
    ]
    assert told(misfits(cached, sample("b200"), looked)) == [
        ("P206", "TRITON_DISABLE_LINE_INFO", "(unset)", "true"),
    ]
    assert told(misplaced(cached, None, (), compiled("b200"))) == [
        ("P206", "TRITON_ALWAYS_COMPILE", "(unset)", "1"),
        ("P206", "TRITON_CACHE_DIR", str(compiled("b200")), "/elsewhere"),
    ]


def test_the_same_directory_by_another_name_is_no_finding(cached, compiled, tmp_path, monkeypatch):
    (tmp_path / "alias").symlink_to(compiled("b200"))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "alias"))
    assert misplaced(cached, None, (), compiled("b200")) == ()


def test_p206_another_cache_manager_leads_away_and_prewarms_own_does_not(
    cached, compiled, tmp_path, monkeypatch
):
    monkeypatch.setenv("TRITON_CACHE_MANAGER", "somebodys.module:Manager")
    assert told(misplaced(cached, None, (), compiled("b200"))) == [
        ("P206", "TRITON_CACHE_MANAGER", "(unset)", "somebodys.module:Manager"),
    ]
    monkeypatch.setenv("TRITON_CACHE_MANAGER", "prewarm.serve.overlay:OverlayCache")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert misplaced(cached, None, (), compiled("b200"), compiled("b200")) == ()
    (finding,) = misplaced(cached, None, (), compiled("b200"), tmp_path / "another")
    assert finding.subject == "TRITON_CACHE_DIR"


def test_vllm_itself_turns_autotune_records_on(cached, sample, looked):
    tuned = msgspec.structs.replace(cached, autotune_records=(RECORD,))
    assert misfits(tuned, sample("b200"), looked) == ()


@pytest.mark.parametrize(
    ("changed", "subject"),
    [
        ({"python_abi": "cpython-310"}, "Python ABI"),
        ({"machine": "riscv64"}, "CPU architecture"),
        ({"libc": "glibc 9.1"}, "C library"),
        ({"libc": "musl 1.2"}, "C library"),
    ],
)
def test_p207_another_host(cached, sample, looked, changed, subject):
    (finding,) = misfits(with_toolchain(cached, **changed), sample("b200"), looked)
    assert (finding.code, finding.subject) == ("P207", subject)


def test_an_older_c_library_than_here_fits(cached, sample, looked):
    assert misfits(with_toolchain(cached, libc="glibc 2.9"), sample("b200"), looked) == ()


def test_p208_another_vllm_is_a_note_where_the_kernels_are_the_same(cached, sample, looked):
    other = with_toolchain(cached, vllm="0.24.0")
    (note,) = misfits(other, sample("b200"), looked)
    assert (note.code, note.note) == ("P208", True)
    assert note.found.endswith(", with the same kernels")
    kernel = next(iter(cached.sources))
    changed = msgspec.structs.replace(other, sources={kernel: digest_of(b"another")})
    source, vllm = misfits(changed, sample("b200"), looked)
    assert (source.code, vllm.code, vllm.note) == ("P204", "P208", False)


@pytest.fixture
def lacking(compiled, tmp_path):
    """A cache without one entry and without `cuda_utils`."""
    directory = shutil.copytree(compiled("b200"), tmp_path / "lacking")
    sweep(directory)
    shutil.rmtree(next(directory.glob("*/l2norm_fwd_kernel2.cubin")).parent)
    for module in directory.glob("*/cuda_utils.*"):
        shutil.rmtree(module.parent)
    return directory


def test_p301_and_p302_what_triton_does_not_find(cached, sample, lacking):
    looked = look_up(sample("b200"), lacking)
    miss, module = misfits(cached, sample("b200"), looked)
    assert (miss.code, miss.subject.partition(":")[2]) == ("P301", "l2norm_fwd_kernel2")
    assert miss.found.endswith(": there is no entry of this key")
    assert (module.code, module.subject) == ("P302", "cuda_utils")
    assert module.found.startswith("none for 4 launches")
    assert misfits(cached, sample("b200"), looked, looked_up=False) == ()
    # Where every key differs, single misses say nothing.
    other = with_toolchain(cached, triton_key=digest_of(b"another wheel"))
    assert [each.code for each in misfits(other, sample("b200"), looked)] == ["P202"]
    # Where the host differs, host modules cannot be found.
    other = with_toolchain(cached, python_abi="cpython-310")
    assert [each.code for each in misfits(other, sample("b200"), looked)] == ["P207", "P301"]


def test_p301_a_launch_that_was_never_packed(sample, compiled, tmp_path, capsys):
    from prewarm.cli import main
    from prewarm.ship.pack import pack

    directory = shutil.copytree(compiled("b200"), tmp_path / "cache")
    index = parse_json(
        (directory / COMPILED_NAME).read_bytes(), Compiled, COMPILED_SCHEMA, COMPILED_NAME
    )
    forgotten = msgspec.structs.replace(index, launches=index.launches[1:])
    (directory / COMPILED_NAME).write_bytes(cache_document(forgotten))
    pack(sample("b200"), directory, tmp_path / "image")
    assert main(["verify", str(tmp_path / "image"), "--json", "-v"]) == 1
    said = capsys.readouterr()
    (finding,) = msgspec.json.decode(said.out)["findings"]
    assert finding["code"] == "P301"
    assert "launches: 4 of 5 are hits" in said.err


def test_a_packed_and_an_installed_cache_are_looked_up(sample, compiled, tmp_path, capsys):
    from prewarm.cli import main
    from prewarm.ship.pack import pack

    image, into = tmp_path / "image", tmp_path / "into"
    pack(sample("b200"), compiled("b200"), image)
    assert main(["verify", str(image)]) == 0
    said = capsys.readouterr()
    assert said.out == "sound\n"
    assert "checked: integrity, toolchain, launches: 5 of 5 are hits\n" in said.err
    assert main(["install", str(image), "--into", str(into), "-q"]) == 0
    capsys.readouterr()
    assert main(["verify", str(into), "--json", "--target", "gb200"]) == 0
    assert msgspec.json.decode(capsys.readouterr().out) == {
        "findings": [],
        "launches": 5,
        "hits": 5,
        "unbound": 0,
        "winners": 0,
        "records": 0,
    }
    into.rename(tmp_path / "moved")
    assert main(["verify", str(tmp_path / "moved")]) == 1
    said = capsys.readouterr()
    assert [line[:4] for line in said.out.splitlines() if line[0] == "P"] == ["P205"]
    assert "checked: integrity, toolchain; not checked: single launches" in said.err
