import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from prewarm.core.cache import COMPILED_NAME, COMPILED_SCHEMA, Compiled
from prewarm.core.document import parse_json
from prewarm.core.errors import CompileError, HostError, InputError, TryAgainError
from prewarm.core.manifest import Argument, Kernel, Manifest, Specialization
from prewarm.make import message
from prewarm.make.compile import compile_manifest

KEY = re.compile(r"[A-Z2-7]{52}")
KERNELS = Path(__file__).parents[1] / "device"
"""Where `kernels.py` is imported from."""


def index_of(directory: Path) -> Compiled:
    data = (directory / COMPILED_NAME).read_bytes()
    return parse_json(data, Compiled, COMPILED_SCHEMA, COMPILED_NAME)


def contents(directory: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(directory)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def assert_only_whole_entries(directory: Path):
    for entry in directory.iterdir():
        if KEY.fullmatch(entry.name):
            names = os.listdir(entry)
            assert any(name.startswith("__grp__") or name.endswith(".so") for name in names)
            assert not any(name.startswith("tmp.") for name in names)
        else:
            assert entry.name == COMPILED_NAME


def with_toolchain(manifest: Manifest, **changed) -> Manifest:
    toolchain = msgspec.structs.replace(manifest.toolchain, **changed)
    return msgspec.structs.replace(manifest, toolchain=toolchain)


def with_kernel(manifest: Manifest, name: str, *specializations: Specialization) -> Manifest:
    program = (
        "import sys; from prewarm.device import triton_seam as seam;"
        "print(seam.source_digest(seam.kernel_named(sys.argv[1])))"
    )
    source = subprocess.run(
        [sys.executable, "-c", program, name], check=True, capture_output=True, text=True
    ).stdout.strip()
    kernel = Kernel(name=name, source=source, specializations=specializations)
    return msgspec.structs.replace(manifest, kernels=(*manifest.kernels, kernel))


def architecture(cubin: Path) -> tuple[int, int]:
    """Return the ELF's ABI version and the SM that its flags name."""
    header = cubin.read_bytes()[:64]
    abi, flags = header[8], int.from_bytes(header[48:52], "little")
    return abi, (flags >> 8) & 0xFF if abi >= 8 else flags & 0xFF


@pytest.mark.parametrize(("target", "expected"), [("b200", (8, 100)), ("h100", (7, 90))])
def test_every_launch_is_compiled_for_the_target(sample, compiled, target, expected):
    manifest, directory = sample(target), compiled(target)
    index = index_of(directory)
    launches = list(manifest.launches())
    assert [launch.launch for launch in index.launches] == [launch.digest for launch in launches]
    assert len({launch.key for launch in index.launches}) == len(launches) == 5
    assert index.manifest == manifest.digest
    assert index.arch == expected[1]
    assert index.toolchain.differences(manifest.toolchain) == ()
    assert {architecture(path) for path in directory.glob("*/*.cubin")} == {expected}
    for launch in index.launches:
        function = launch.kernel.partition(":")[2]
        assert (directory / launch.key / f"__grp__{function}.json").is_file()
    assert_only_whole_entries(directory)


def test_every_launcher_and_cuda_utils_are_there_and_listed_once(compiled):
    directory = compiled("b200")
    modules = index_of(directory).host_modules
    built = {(path.parent.name, path.name) for path in directory.glob("*/*.so")}
    assert {(module.key, module.file) for module in modules} == built
    # Twice each: where the `file` command is installed Triton asks for another key.
    assert [module.name for module in modules] == ["__triton_launcher"] * 6 + ["cuda_utils"] * 2
    assert len({(directory / m.key / m.file).read_bytes() for m in modules}) == 4


def test_a_second_run_compiles_nothing_and_changes_nothing(sample, compiled, tmp_path):
    directory = compiled("b200")
    before = contents(directory)
    outcomes = list(compile_manifest(sample("b200"), directory, jobs=2))
    assert {type(outcome) for outcome in outcomes} == {message.Cached}
    after = contents(directory)
    assert {k: v for k, v in after.items() if k != COMPILED_NAME} == {
        k: v for k, v in before.items() if k != COMPILED_NAME
    }
    assert after[COMPILED_NAME][0] == before[COMPILED_NAME][0]


def test_another_run_elsewhere_gives_the_same_index_and_the_same_host_modules(
    sample, compiled, tmp_path, monkeypatch
):
    directory, other = compiled("b200"), tmp_path / "other"
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    list(compile_manifest(sample("b200"), other, jobs=1))
    assert (other / COMPILED_NAME).read_bytes() == (directory / COMPILED_NAME).read_bytes()
    ours = {path.parent.name: path.read_bytes() for path in other.glob("*/*.so")}
    assert ours == {path.parent.name: path.read_bytes() for path in directory.glob("*/*.so")}
    for module in ours.values():
        assert not re.findall(rb"/(?:tmp|root|home|usr)/[ -~]*|RPATH|RUNPATH", module)


def test_a_copied_cache_without_index_or_compiler_is_taken_up_where_it_stands(
    sample, compiled, tmp_path, monkeypatch
):
    directory = shutil.copytree(compiled("b200"), tmp_path / "copy")
    index = (directory / COMPILED_NAME).read_bytes()
    (directory / COMPILED_NAME).unlink()
    broken = next(directory.glob("*/chunk_fwd_kernel_o.cubin"))
    broken.unlink()
    monkeypatch.setenv("CC", "/nonexistent/cc")
    outcomes = list(compile_manifest(sample("b200"), directory, jobs=2))
    again = [outcome.key for outcome in outcomes if type(outcome) is message.Compiled]
    assert again == [broken.parent.name]
    assert (directory / COMPILED_NAME).read_bytes() == index
    for group in directory.glob("*/__grp__*.json"):
        paths = json.loads(group.read_bytes())["child_paths"]
        assert paths == {name: str(group.parent / name) for name in paths}


def test_without_a_compiler_host_modules_are_an_error_of_the_machine(sample, tmp_path, monkeypatch):
    monkeypatch.setenv("CC", "/nonexistent/cc")
    with pytest.raises(HostError) as caught:
        list(compile_manifest(sample("b200"), tmp_path / "cache"))
    assert caught.value.exit_code == 4
    assert caught.value.hint == "apt-get install gcc libc6-dev"
    assert list((tmp_path / "cache").iterdir()) == []


def test_kernels_that_fail_are_reported_together_and_stop_nothing(sample, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{os.environ['PYTHONPATH']}:{KERNELS}")
    out = Argument(type="*fp32", divisible_by_16=True)
    block = Argument(type="constexpr", value=4)
    manifest = with_kernel(
        sample("b200"),
        "kernels:never_compiles",
        Specialization(arguments={"out": out, "BLOCK": block}, options={}, via=("test",)),
    )
    manifest = with_kernel(
        manifest,
        "kernels:kills_its_compiler",
        Specialization(arguments={"out": out}, options={"num_warps": 1}, via=("test",)),
    )
    outcomes = []
    with pytest.raises(CompileError) as caught:
        outcomes.extend(compile_manifest(manifest, tmp_path / "cache", jobs=2))
    assert caught.value.exit_code == 5
    text = str(caught.value)
    assert text.startswith("2 of 7 launches did not compile:\n")
    assert "kernels:never_compiles\n  (out: *fp32, BLOCK=4)" in text
    assert "BLOCK must be three" in text
    assert "kernels:kills_its_compiler\n  (out: *fp32) num_warps=1" in text
    assert "its process was killed by SIGKILL" in text
    assert_only_whole_entries(tmp_path / "cache")
    assert not (tmp_path / "cache" / COMPILED_NAME).exists()
    again = list(compile_manifest(sample("b200"), tmp_path / "cache", jobs=1))
    assert {type(outcome) for outcome in again} == {message.Cached}


def test_unbound_launches_are_listed_and_not_compiled(sample, compiled):
    manifest = sample("b200")
    kernel = manifest.kernels[0]
    first = kernel.specializations[0]
    name = next(n for n, a in first.arguments.items() if a.type == "constexpr")
    unbound = Argument(type="constexpr", unbound=True)
    changed = msgspec.structs.replace(first, arguments={**first.arguments, name: unbound})
    manifest = msgspec.structs.replace(
        manifest,
        kernels=(
            msgspec.structs.replace(kernel, specializations=(*kernel.specializations, changed)),
            *manifest.kernels[1:],
        ),
    )
    directory = compiled("b200").with_name("unbound")
    shutil.copytree(compiled("b200"), directory)
    outcomes = list(compile_manifest(manifest, directory, jobs=2))
    index = index_of(directory)
    (left_out,) = index.unbound
    assert len(outcomes) == len(index.launches) == 5
    assert left_out in {launch.digest for launch in manifest.launches() if launch.unbound}
    assert left_out not in {launch.launch for launch in index.launches}


def test_another_source_is_refused_before_anything_is_compiled(sample, tmp_path):
    manifest = sample("b200")
    kernel = msgspec.structs.replace(manifest.kernels[0], source="sha256:" + "0" * 64)
    manifest = msgspec.structs.replace(manifest, kernels=(kernel, *manifest.kernels[1:]))
    with pytest.raises(InputError) as caught:
        list(compile_manifest(manifest, tmp_path / "cache"))
    assert kernel.name in str(caught.value)
    assert caught.value.hint == "plan again with this vLLM"
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_variable_that_enters_keys_but_was_not_planned_is_refused_by_name(
    sample, tmp_path, monkeypatch
):
    monkeypatch.setenv("DISABLE_LLVM_OPT", "1")
    with pytest.raises(InputError, match=r"environment DISABLE_LLVM_OPT: \(unset\), here true"):
        list(compile_manifest(sample("b200"), tmp_path / "cache"))


def test_a_planned_variable_is_set_for_the_compile(sample, tmp_path):
    manifest = with_toolchain(sample("b200"), key_environment={"TRITON_DISABLE_LINE_INFO": "true"})
    list(compile_manifest(manifest, tmp_path / "cache", jobs=2))
    plain = {launch.key for launch in index_of(tmp_path / "cache").launches}
    assert index_of(tmp_path / "cache").toolchain.key_environment == {
        "TRITON_DISABLE_LINE_INFO": "true"
    }
    assert len(plain) == 5


def torch_ptxas():
    from prewarm.device import triton_seam

    path = Path(sys.prefix).glob("lib/python3*/site-packages/torch/bin/ptxas")
    return triton_seam.ptxas_of_text(triton_seam.ptxas_text(str(next(path))), "TRITON_PTXAS_PATH")


def test_the_planned_ptxas_is_found_and_used(sample, compiled, tmp_path):
    ptxas = torch_ptxas()
    manifest = with_toolchain(sample("h100"), ptxas=ptxas)
    assert ptxas.text != sample("h100").toolchain.ptxas.text
    list(compile_manifest(manifest, tmp_path / "cache", jobs=2))
    index = index_of(tmp_path / "cache")
    assert index.toolchain.ptxas.text == ptxas.text
    theirs = {launch.key for launch in index_of(compiled("h100")).launches}
    assert theirs.isdisjoint(launch.key for launch in index.launches)
    producer = f"V{ptxas.version}".encode()
    assert all(producer in path.read_bytes() for path in (tmp_path / "cache").glob("*/*.cubin"))


def test_without_the_planned_ptxas_the_error_lists_those_that_are_here(sample, tmp_path):
    planned = sample("b200").toolchain.ptxas
    ptxas = msgspec.structs.replace(planned, version="99.9.1", text="sha256:" + "9" * 64)
    with pytest.raises(InputError) as caught:
        list(compile_manifest(with_toolchain(sample("b200"), ptxas=ptxas), tmp_path / "cache"))
    text = str(caught.value)
    assert "planned with ptxas 99.9.1" in text
    assert f"  {planned.version}  /" in text
    assert "ptxas-blackwell" in text


def test_two_writers_of_one_directory_are_refused(sample, tmp_path):
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(TryAgainError, match="another prewarm is writing"):
        list(compile_manifest(sample("b200"), tmp_path))
    os.close(handle)


def test_a_directory_that_cannot_be_made_is_an_error_of_the_machine(sample, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match="cannot write the cache directory"):
        list(compile_manifest(sample("b200"), tmp_path / "file" / "cache"))


RUN = """
import sys
from pathlib import Path
from prewarm.core.manifest_yaml import read_manifest
from prewarm.make.compile import compile_manifest
for outcome in compile_manifest(read_manifest(Path(sys.argv[1])), Path(sys.argv[2]), jobs=2):
    print(type(outcome).__name__, flush=True)
"""


def processes_of(directory: Path) -> list[int]:
    """Return the processes that have `directory` as Triton's cache."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes()
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if str(directory).encode() in environment + command:
            found.append(int(process.name))
    return found


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("when", ["Compiled", "at once"])
def test_an_interrupted_compile_leaves_no_process_and_whole_entries_and_goes_on(
    sample, tmp_path, how, when
):
    from prewarm.core.manifest_yaml import write_manifest

    directory = tmp_path / "cache"
    write_manifest(tmp_path / "plan.yaml", sample("b200"))
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(tmp_path / "plan.yaml"), str(directory)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    if when == "Compiled":
        assert process.stdout.readline() == "Compiled\n"
    else:
        time.sleep(1)
    process.send_signal(how)
    process.communicate(timeout=60)
    assert process.returncode != 0
    deadline = time.monotonic() + 30
    while processes_of(directory) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_of(directory) == []
    if how == signal.SIGINT:
        assert_only_whole_entries(directory)
        assert not (directory / COMPILED_NAME).exists()
    outcomes = list(compile_manifest(sample("b200"), directory, jobs=2))
    assert len(outcomes) == 5
    assert any(type(o) is message.Cached for o in outcomes) == (when == "Compiled")
    assert_only_whole_entries_but_index(directory)


def assert_only_whole_entries_but_index(directory: Path):
    assert (directory / COMPILED_NAME).is_file()
    assert_only_whole_entries(directory)
