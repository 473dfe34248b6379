"""The overlay under real Triton: whatever is wrong with a cache, every launch is served."""

import contextlib
import ctypes
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

pytest.importorskip("triton")

from prewarm.core.cache import (
    CACHE_MANIFEST,
    COMPILED_NAME,
    AutotuneRecord,
    Compiled,
    CompiledLaunch,
    HostModule,
    cache_document,
)
from prewarm.core.digest import digest_of
from prewarm.core.manifest import Candidate
from prewarm.core.selection import Choice, Selection
from prewarm.serve import overlay
from prewarm.ship.install import install
from prewarm.ship.pack import pack

CHILD = Path(__file__).with_name("overlay_child.py")
ADD, WIDE, SCALE, OTHER = ("add", 64), ("add", 128), ("scale", 64), ("scale", 256)
BAKED = (ADD, WIDE, SCALE)
"""What the installed cache has. OTHER it lacks."""
MARKS = [("mark", number) for number in range(100, 116)]
"""Kernels that are quick to compile, one for each damage."""
MODULE = f"answer{sysconfig.get_config_var('EXT_SUFFIX')}"
OVERRIDE, READ_SEARCH, PR_CAPBSET_DROP = 1, 2, 24


class Served(NamedTuple):
    """What a process said."""

    answers: list
    log: list[str]
    rest: dict

    @property
    def hits(self) -> list[bool]:
        return [answer["hit"] for answer in self.answers]


class Baked(NamedTuple):
    """An installed cache, and what its kernels must be."""

    directory: Path
    compiled: dict
    """Kernel to what Triton made of it."""

    @property
    def entries(self) -> Path:
        return self.directory / "triton"

    def key(self, kernel) -> str:
        return self.compiled[kernel]["key"]

    def path(self, kernel, ending) -> Path:
        return self.entries / self.key(kernel) / f"{kernel[0]}{ending}"


def serve_kernel(kernel):
    return ["serve", *kernel]


@pytest.fixture(autouse=True)
def _bare_environment(root, monkeypatch):
    for name in [*os.environ]:
        if name.startswith(("TRITON_", "PREWARM")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(root))


def drop_override():
    """Let file modes and owners bind root too."""
    libc = ctypes.CDLL(None)
    if os.geteuid() == 0 and any(
        libc.prctl(PR_CAPBSET_DROP, each) for each in (OVERRIDE, READ_SEARCH)
    ):
        os._exit(77)


def started(baked, writable, *steps, **environment):
    """Start a process; with `baked` None the environment says where caches are."""
    paths = {name: path and str(path) for name, path in (("baked", baked), ("writable", writable))}
    return subprocess.Popen(
        [sys.executable, CHILD, json.dumps({**paths, "steps": steps}, default=str)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        preexec_fn=drop_override,  # noqa: PLW1509  (this process has no threads)
    )


def said(process) -> Served:
    """Return what a process said that must have ended well."""
    out, log = process.communicate(timeout=300)
    if process.returncode == 77:
        pytest.skip("this container may not drop capabilities")
    assert process.returncode == 0, log[-3000:]
    rest = json.loads(out)
    return Served(rest.pop("answers"), re.findall(r"^prewarm: .*", log, re.MULTILINE), rest)


def serve(baked, writable, *steps, **environment) -> Served:
    return said(started(baked, writable, *steps, **environment))


def names_in(directory):
    """Return the entries in a directory that Triton may not have made yet."""
    return {path.name for path in directory.iterdir()} if directory.exists() else set()


# --- an installed cache -------------------------------------------------------------------


@pytest.fixture(scope="session")
def made_once(tmp_path_factory, root):
    """A directory that Triton compiled into, by itself, and what it made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(root))
        directory = tmp_path_factory.mktemp("made") / "cache"
        steps = [*map(serve_kernel, every := (*BAKED, *MARKS)), ["tune", 128], ["load"]]
        done = serve(None, None, *steps, TRITON_CACHE_DIR=str(directory))
    assert not any(done.hits)
    *kernels, _, module = done.answers
    return directory, dict(zip(every, kernels, strict=True)), module


@pytest.fixture
def image(made_once, manifest, tmp_path):
    """Return a function from kernels to an image of them, the record and the host module."""

    def packed(*kernels):
        made, compiled, module = made_once
        out = tmp_path / f"image of {len(kernels)}"
        directory = tmp_path / f"compiled {len(kernels)}"
        shutil.copytree(made, directory)
        tools = msgspec.structs.replace(manifest.toolchain, machine=platform.machine())
        plan = msgspec.structs.replace(manifest, toolchain=tools)
        (record,) = directory.glob("*/tuned.autotune.json")
        (kernel,) = plan.kernels
        winner = Candidate(constexprs={"B": 128}, num_warps=8, num_stages=2)
        choice = Choice(kernel=kernel.name, key={"n": 1}, winner=winner, time=1.0)
        index = Compiled(
            manifest=plan.digest,
            arch=90,
            toolchain=tools,
            launches=tuple(
                CompiledLaunch(
                    launch=digest_of(repr(each).encode()),
                    kernel=f"kernels:{each[0]}",
                    key=compiled[each]["key"],
                )
                for each in kernels
            ),
            host_modules=(HostModule(name="answer", key=module["key"], file=MODULE),),
            autotune_records=(
                AutotuneRecord(kernel=kernel.name, key=record.parent.name, file=record.name),
            ),
            selection=Selection(gpu="a GPU", tunings=digest_of(b"tunings"), choices=(choice,)),
        )
        (directory / COMPILED_NAME).write_bytes(cache_document(index))
        pack(plan, directory, out)
        return out

    return packed


@pytest.fixture
def baked(image, made_once, tmp_path) -> Baked:
    install(image(*BAKED), tmp_path / "installed")
    return Baked(tmp_path / "installed", made_once[1])


@pytest.fixture
def writable(tmp_path) -> Path:
    return tmp_path / "writable"


# --- what is there and what is not --------------------------------------------------------


def test_what_is_installed_is_used_and_nothing_is_written(baked, writable):
    steps = [*map(serve_kernel, BAKED), ["tune", 64], ["load"]]

    done = serve(baked.directory, writable, *steps)

    assert done.hits == [True] * 5
    assert [each["binary"] for each in done.answers[:3]] == [
        baked.compiled[each]["binary"] for each in BAKED
    ]
    assert done.answers[3]["winner"] == 128
    assert done.rest["hits"] == {"installed": 5}
    assert (names_in(writable), done.log, done.rest["modules"]) == (set(), [], [])


def test_what_is_not_installed_is_compiled_once_and_found_by_the_next_process(baked, writable):
    steps = [serve_kernel(ADD), serve_kernel(OTHER)]

    first, second = (serve(baked.directory, writable, *steps) for _ in range(2))

    assert (first.hits, second.hits) == ([True, False], [True, True])
    assert names_in(writable) == {first.answers[1]["key"]}
    assert second.rest["hits"] == {"installed": 1, "written": 1}
    assert first.log == second.log == []


def test_an_autotune_record_and_a_host_module_are_found_by_the_next_process(tmp_path, writable):
    (tmp_path / "io.triton.cache").mkdir()
    first = serve(tmp_path, writable, ["tune", 64], ["load"])
    second = serve(tmp_path, writable, ["tune", 128], ["load"], CC="/nonexistent/cc")

    assert (first.hits, second.hits) == ([False] * 2, [True] * 2)
    assert second.answers[0]["winner"] == 64


def test_plain_triton_finds_what_the_overlay_kept(baked, writable):
    steps = [serve_kernel(OTHER), ["load"]]
    serve(baked.directory / "nothing", writable, *steps)

    done = serve(None, None, *steps, TRITON_CACHE_DIR=str(writable))

    assert done.hits == [True, True]
    assert done.rest["manager"] is None


@pytest.mark.parametrize("ending", ["", "triton", "a tree"])
def test_the_directory_may_be_that_of_the_install_its_entries_or_an_image_s_tree(
    baked, writable, tmp_path, ending
):
    directory = baked.directory / ending
    if ending == "a tree":
        directory = tmp_path / "mounted somewhere else"
        shutil.copytree(baked.entries.resolve().parent, directory)

    assert serve(directory, writable, serve_kernel(ADD)).hits == [True]


def test_paths_in_a_group_file_are_not_followed_so_that_a_copy_serves_its_own_files(
    baked, writable, tmp_path
):
    copy = tmp_path / "copy"
    shutil.copytree(baked.directory, copy, symlinks=True)

    done = serve(copy, writable, serve_kernel(ADD))

    assert (done.hits, done.log) == ([True], [])
    assert {Path(path).parent for path in done.answers[0]["paths"].values()} == {
        copy / os.readlink(baked.entries) / baked.key(ADD)
    }


def test_dumps_of_kernels_stay_triton_s_own(baked, writable, tmp_path):
    dumps = tmp_path / "dumps"

    serve(baked.directory, writable, ["dump", "text"], TRITON_DUMP_DIR=str(dumps))

    assert [path.read_text() for path in dumps.rglob("*.txt")] == ["text"]
    assert names_in(writable) == set()


# --- which directories --------------------------------------------------------------------


def test_it_works_wherever_triton_s_own_directory_is_moved(baked, writable, tmp_path):
    before, after = tmp_path / "before", tmp_path / "after"
    moves = [["move_triton", after], serve_kernel(ADD), serve_kernel(OTHER)]
    elsewhere = {"TRITON_CACHE_DIR": str(before)}

    first = serve(baked.directory, writable, serve_kernel(OTHER), *moves, **elsewhere)
    second = serve(baked.directory, writable, *moves, serve_kernel(("add", 512)), **elsewhere)

    assert first.hits == [False, True, True]
    assert second.hits == [True, True, False]
    assert names_in(writable) == {first.answers[0]["key"]}
    assert names_in(after) == {second.answers[2]["key"]}
    assert names_in(before) == set()


def test_inductor_is_told_where_the_overlay_is(baked, writable):
    done = serve(baked.directory, writable, TRITON_CACHE_DIR=str(baked.entries))

    assert done.rest["triton_directory"] == str(writable)


@pytest.mark.parametrize("named", [True, False], ids=["named", "by default"])
def test_the_environment_alone_is_enough(baked, tmp_path, writable, named):
    environment = {
        "TRITON_CACHE_MANAGER": overlay.MANAGER,
        "PREWARM_CACHE": str(baked.directory),
        "PREWARM_OVERLAY" if named else "TRITON_CACHE_DIR": str(writable),
    }

    done = serve(None, None, serve_kernel(ADD), serve_kernel(OTHER), **environment)

    assert done.rest["manager"] == "OverlayCache"
    assert (done.hits, done.log) == ([True, False], [])
    assert names_in(writable) == {done.answers[1]["key"]}
    assert done.answers[0]["key"] == baked.key(ADD)


def test_where_triton_s_own_directory_is_the_cache_misses_go_to_the_user_s_caches(baked, tmp_path):
    caches = tmp_path / "caches"
    environment = {"XDG_CACHE_HOME": str(caches), "TRITON_CACHE_DIR": str(baked.entries)}

    done = serve(baked.directory, None, serve_kernel(OTHER), **environment)

    assert done.rest["writable"] == str(caches / "prewarm" / "overlay")
    assert names_in(caches / "prewarm" / "overlay") == {done.answers[0]["key"]}
    assert done.answers[0]["key"] not in names_in(baked.entries)


def test_a_process_without_a_cache_says_so_and_serves(tmp_path, writable):
    environment = {
        "TRITON_CACHE_MANAGER": overlay.MANAGER,
        "TRITON_CACHE_DIR": str(writable),
    }

    done = serve(None, None, serve_kernel(ADD), serve_kernel(ADD), **environment)

    assert done.hits == [False, True]
    assert done.log == ["prewarm: PREWARM_CACHE is not set: no installed cache is read"]


# --- faults -------------------------------------------------------------------------------


@contextlib.contextmanager
def modes(top, mode):
    """Give every directory below `top` a mode while the block runs."""
    directories = [path for path in [top, *top.rglob("*")] if path.is_dir()]
    for path in reversed(directories):
        path.chmod(mode)
    yield
    for path in directories:
        path.chmod(0o755)


def test_a_read_only_cache_serves(baked, writable):
    with modes(baked.directory, 0o555):
        done = serve(baked.directory, writable, serve_kernel(ADD), serve_kernel(OTHER))

    assert (done.hits, done.log) == ([True, False], [])


def test_where_all_is_read_only_triton_reads_back_what_it_compiled(baked, tmp_path):
    both = tmp_path / "both"
    both.mkdir()
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    steps = [serve_kernel(ADD), serve_kernel(OTHER), serve_kernel(OTHER), ["tune", 64], ["load"]]

    with modes(both, 0o555), modes(baked.directory, 0o555):
        done = serve(baked.directory, both / "below", *steps, TMPDIR=str(scratch))
        bare = serve(both, both / "below", *steps, TMPDIR=str(scratch))

    assert done.hits == [True, False, True, True, True]
    assert bare.hits == [False, False, True, False, False]
    for each in (done, bare):
        line = each.log[0]
        assert line.startswith(f"prewarm: cannot write to {both / 'below'} (Permission denied): ")
        assert line.endswith(" until this process ends")
    assert (len(done.log), len(bare.log)) == (1, 2)
    assert names_in(scratch) == set()


@pytest.mark.parametrize("mode", [0o000, 0o700], ids=["nobody's", "another user's"])
def test_a_cache_that_may_not_be_read_is_compiled_beside(baked, writable, mode):
    if mode and os.geteuid():
        pytest.skip("only root can give a directory to another user")
    version = baked.entries.resolve().parent
    if mode:
        os.chown(version, 12345, 12345)
    version.chmod(mode)

    done = serve(baked.directory, writable, serve_kernel(ADD), serve_kernel(WIDE))

    version.chmod(0o755)
    assert done.hits == [False, False]
    assert len(names_in(writable)) == 2
    (line,) = done.log
    assert line.startswith(f"prewarm: cannot read the installed cache {baked.directory} (")


def test_a_cache_of_another_user_that_may_be_read_serves(baked, writable):
    if os.geteuid():
        pytest.skip("only root can give a directory to another user")
    for path in [baked.directory, *baked.directory.rglob("*")]:
        os.chown(path, 12345, 12345, follow_symlinks=False)

    done = serve(baked.directory, writable, serve_kernel(ADD), serve_kernel(OTHER))

    assert (done.hits, done.log) == ([True, False], [])


def test_an_overlay_of_another_user_is_left_and_serving_goes_on(baked, writable):
    if os.geteuid():
        pytest.skip("only root can give a directory to another user")
    writable.mkdir(mode=0o755)
    os.chown(writable, 12345, 12345)

    done = serve(baked.directory, writable, serve_kernel(ADD), serve_kernel(OTHER))

    assert done.hits == [True, False]
    (line,) = done.log
    assert f"cannot write to {writable} (Permission denied)" in line


@pytest.mark.parametrize("what", ["", "triton", "versions"])
def test_a_cache_that_is_deleted_under_the_process_is_compiled_beside(baked, writable, what):
    steps = [serve_kernel(ADD), ["remove", baked.directory / what]]

    done = serve(baked.directory, writable, *steps, serve_kernel(WIDE), serve_kernel(OTHER))

    assert done.hits == [True, False, False]
    (line,) = done.log
    assert line == (
        f"prewarm: cannot read the installed cache {baked.directory} (it is not there):"
        f" what is not in {writable} is compiled"
    )


def test_a_cache_that_is_upgraded_under_the_process_serves_what_is_new(baked, image, writable):
    steps = [["upgrade", image(ADD, MARKS[0]), baked.directory], serve_kernel(ADD)]

    done = serve(
        baked.directory, writable, serve_kernel(ADD), *steps, *map(serve_kernel, [MARKS[0], WIDE])
    )

    assert (done.hits, done.log) == ([True, True, True, False], [])


def test_an_overlay_that_is_deleted_under_the_process_is_made_again(baked, writable):
    steps = [serve_kernel(OTHER), ["remove", writable], serve_kernel(OTHER), serve_kernel(OTHER)]

    done = serve(baked.directory, writable, *steps)

    assert (done.hits, done.log) == ([False, False, True], [])


def test_an_overlay_that_is_deleted_while_a_kernel_is_compiled_serves_it(baked, writable, tmp_path):
    import triton

    own = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    assembler = tmp_path / "ptxas"
    assembler.write_text(f'#!/bin/sh\nrm -rf {writable}\nexec {own} "$@"\n')
    assembler.chmod(0o755)

    steps = [serve_kernel(ADD), serve_kernel(OTHER), serve_kernel(OTHER)]
    done = serve(baked.directory, writable, *steps, TRITON_PTXAS_PATH=str(assembler))

    assert (done.hits, done.log) == ([True, False, True], [])
    assert sorted(Path(path).suffix for path in done.answers[2]["paths"].values()) == [
        ".cubin",
        ".json",
        ".llir",
        ".ptx",
        ".source",
        ".ttgir",
        ".ttir",
    ]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "prewarm-test", str(place)]
    made = subprocess.run(mount, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def fill(ballast, left):
    """Fill the file system of the file `ballast` up to `left` bytes."""
    size = 0
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as stream:
        while True:
            size += stream.write(bytes(4096))
    os.truncate(ballast, size - left)


@pytest.mark.parametrize("left", [0, 16384], ids=["full", "full in the middle of an entry"])
def test_a_full_disk_under_the_overlay_serves(baked, small_disk, left):
    place = small_disk / "overlay"
    place.mkdir()
    fill(small_disk / "ballast", left)
    steps = [serve_kernel(ADD), *[serve_kernel(OTHER)] * 2, ["tune", 64], ["load"]]

    first, second = (serve(baked.directory, place, *steps) for _ in range(2))

    for done in (first, second):
        assert done.hits == [True, False, True, True, True]
        (line,) = done.log
        assert line.startswith(f"prewarm: cannot write to {place} (No space left on device): ")
    assert bool(list(place.glob("*/scale.source"))) is bool(left)
    assert not list(place.glob("*/__grp__*"))
    assert not list(place.glob("*/tmp.*"))


# --- damage -------------------------------------------------------------------------------


def rewrite(path, change):
    path.write_bytes(change(path.read_bytes()))


def group_of(path, change):
    """Rewrite the group file that lists the file at `path`."""
    (group,) = path.parent.glob("__grp__*")
    children = json.loads(group.read_text())["child_paths"]
    group.write_text(json.dumps({"child_paths": change(children)}))


def garble_group(path):
    (group,) = path.parent.glob("__grp__*")
    group.write_bytes(b"\0\xff not JSON")


def lead_out(path):
    """Let the entry name a file outside, and have no such file itself."""
    outside = path.parents[2] / path.name
    shutil.move(path, outside)
    group_of(path, lambda children: {**children, path.name: str(outside)})


def name_out(path):
    outside = path.parents[2] / path.name
    shutil.copyfile(path, outside)
    group_of(path, lambda children: {**children, f"../../{path.name}": str(outside)})


def link_out(path):
    outside = path.parents[2] / path.name
    shutil.move(path, outside)
    path.symlink_to(outside)


def link_entry_out(path):
    outside = path.parents[2] / "entry"
    shutil.move(path.parent, outside)
    path.parent.symlink_to(outside)


def flip(data):
    return data[:-1] + bytes([data[-1] ^ 1])


def forget(path):
    group_of(path, lambda children: {n: p for n, p in children.items() if n != path.name})


def pipe(path):
    path.unlink()
    os.mkfifo(path)


DAMAGES = {
    "a missing file": Path.unlink,
    "an empty file": lambda path: path.write_bytes(b""),
    "a file cut short": lambda path: rewrite(path, lambda data: data[:-1]),
    "a group file of garbage": garble_group,
    "a group file that lists nothing": lambda path: group_of(path, lambda _: {}),
    "a group file that forgets the file": forget,
    "a group file that lists a path outside": name_out,
    "a file that is elsewhere": lead_out,
    "a link to a file outside": link_out,
    "a link to an entry outside": link_entry_out,
    "a file that may not be read": lambda path: path.chmod(0),
    "a pipe": pipe,
}
FLIP = {"a file with one other bit": lambda path: rewrite(path, flip)}
"""Only what has a digest tells this."""


@pytest.mark.parametrize("ending", [".cubin", ".json"])
def test_damaged_entries_of_the_installed_cache_are_compiled_beside(
    image, made_once, tmp_path, writable, ending
):
    damages = {**DAMAGES, **FLIP}.values()
    marks = MARKS[: len(damages)]
    install(image(*marks, ADD), tmp_path / "installed")
    baked = Baked(tmp_path / "installed", made_once[1])
    for mark, damage in zip(marks, damages, strict=True):
        damage(baked.path(mark, ending))
    steps = [*map(serve_kernel, marks), serve_kernel(ADD)]

    first, second = (serve(baked.directory, writable, *steps) for _ in range(2))

    assert first.hits == [*(False for _ in marks), True]
    assert all(second.hits)
    for done in (first, second):
        assert [each["binary"] for each in done.answers[:-1]] == [
            baked.compiled[mark]["binary"] for mark in marks
        ]
        (line,) = done.log
        assert line.startswith(
            f"prewarm: an entry of the installed cache {baked.directory} cannot be used"
            f" ({baked.key(marks[0])}/mark{ending} is not there): "
        )
        assert line.endswith(f"`prewarm verify {baked.directory}` lists them")
    assert names_in(writable) == {baked.key(mark) for mark in marks}


@pytest.mark.parametrize("ending", [".cubin", ".json"])
def test_damaged_entries_of_the_overlay_are_compiled_again(made_once, tmp_path, writable, ending):
    (tmp_path / "io.triton.cache").mkdir()
    made, compiled, _ = made_once
    marks = MARKS[: len(DAMAGES)]
    shutil.copytree(made, writable)
    for mark, damage in zip(marks, DAMAGES.values(), strict=True):
        damage(writable / compiled[mark]["key"] / f"mark{ending}")
    steps = [*map(serve_kernel, marks), serve_kernel(ADD)]

    first, second = (serve(tmp_path, writable, *steps) for _ in range(2))

    (line,) = first.log
    assert line.startswith(f"prewarm: an entry in {writable} cannot be used (")
    assert first.hits == [*(False for _ in marks), True]
    assert (second.hits, second.log) == ([True] * len(steps), [])


def test_an_entry_of_the_overlay_may_lack_what_no_launch_needs(tmp_path, made_once, writable):
    (tmp_path / "io.triton.cache").mkdir()
    shutil.copytree(made_once[0], writable)
    entry = writable / made_once[1][ADD]["key"]
    (entry / "add.ttir").unlink()
    (entry / "add.llir").write_bytes(b"\xff")

    done = serve(tmp_path, writable, serve_kernel(ADD))

    assert (done.hits, done.log) == ([True], [])
    assert {Path(path).suffix for path in done.answers[0]["paths"].values()} == {
        ".cubin",
        ".json",
        ".ptx",
        ".source",
        ".ttgir",
    }


RECORDS = {
    "no JSON": b"{",
    "no timings": b'{"key": [1]}',
    "timings of nothing": b'{"configs_timings": []}',
    "an unknown config": b'{"configs_timings": [[{"warps": 4}, [1.0]]]}',
    "times that cannot be compared": (
        b'{"configs_timings": [[{"kwargs": {"block": 64}}, [1]], [{"kwargs": {"block": 9}}, 1]]}'
    ),
}


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)
@pytest.mark.parametrize("layer", ["installed", "overlay"])
def test_a_damaged_autotune_record_is_measured_again(baked, made_once, writable, layer, record):
    if layer == "overlay":
        shutil.copytree(made_once[0], writable)
        shutil.rmtree(baked.directory)
        (baked.directory / "io.triton.cache").mkdir(parents=True)
    (path,) = (baked.entries if layer == "installed" else writable).glob("*/tuned.autotune.json")
    path.write_bytes(record)

    done = serve(baked.directory, writable, ["tune", 64], ["tune", 128])

    assert [each["winner"] for each in done.answers] == [64, 64]
    assert done.hits == [False, True]
    (line,) = done.log
    assert f"{path.parent.name}/tuned.autotune.json is " in line


@pytest.mark.parametrize("layer", ["installed", "overlay"])
def test_a_host_module_that_was_cut_short_is_built_again(baked, made_once, writable, layer):
    if layer == "overlay":
        shutil.copytree(made_once[0], writable)
        shutil.rmtree(baked.directory)
        (baked.directory / "io.triton.cache").mkdir(parents=True)
    (path,) = (baked.entries if layer == "installed" else writable).glob(f"*/{MODULE}")
    rewrite(path, lambda data: data[: len(data) // 4])

    first = serve(baked.directory, writable, ["load"])
    second = serve(baked.directory, writable, ["load"], CC="/nonexistent/cc")

    assert (first.hits, second.hits) == ([False], [True])
    (line,) = first.log
    assert f"{path.parent.name}/{MODULE} is " in line


def test_a_cache_without_half_of_its_entries_serves_the_other_half(baked, writable):
    shutil.rmtree(baked.entries / baked.key(ADD))
    shutil.rmtree(baked.entries / baked.key(SCALE))

    done = serve(baked.directory, writable, *map(serve_kernel, BAKED))

    assert done.hits == [False, True, False]
    (line,) = done.log
    assert f"({baked.key(ADD)}/add.json is not there)" in line


def test_a_cache_without_its_index_is_judged_by_what_can_be_read(baked, writable):
    (baked.entries.resolve().parent / CACHE_MANIFEST).unlink()
    rewrite(baked.path(WIDE, ".cubin"), lambda data: data[:-1])
    shutil.rmtree(baked.entries / baked.key(SCALE))

    done = serve(baked.directory, writable, *map(serve_kernel, BAKED))

    assert done.hits == [True, False, False]
    (line,) = done.log
    assert f"({baked.key(WIDE)}/add.cubin is cut short)" in line


def test_a_link_that_leads_out_of_the_installed_cache_is_not_followed(baked, writable, tmp_path):
    shutil.copytree(baked.entries, tmp_path / "elsewhere")
    baked.entries.unlink()
    baked.entries.symlink_to(tmp_path / "elsewhere")

    done = serve(baked.directory, writable, serve_kernel(ADD))

    assert done.hits == [False]
    (line,) = done.log
    assert f"its link 'triton' leads to '{tmp_path}/elsewhere'" in line


# --- many processes -----------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 8])
def test_processes_that_compile_the_same_at_once_are_all_served(baked, writable, tmp_path, count):
    gate = tmp_path / "gate"
    gate.mkdir()
    steps = [["wait_for", gate, count], *map(serve_kernel, [ADD, OTHER, ("mark", 1)])]
    more = [["tune", 64], ["load"]]
    empty = tmp_path / "empty"
    (empty / "io.triton.cache").mkdir(parents=True)

    ranks = [
        started(
            baked.directory if rank % 2 else empty,
            writable,
            *steps,
            serve_kernel(("mark", 2 + rank)),
            *more,
        )
        for rank in range(count)
    ]
    served = [said(each) for each in ranks]
    after = serve(
        empty,
        writable,
        *steps[1:],
        *more,
        *(serve_kernel(("mark", 2 + rank)) for rank in range(count)),
    )

    assert all(each.log == [] for each in served)
    assert all(each.hits[3] is False for each in served)
    assert len({each["binary"] for one in served for each in one.answers[1:2]}) == 1
    assert all(after.hits)
    assert not list(writable.glob("*/tmp.*"))


def test_the_module_is_imported_without_torch_and_triton():
    heavy = "import sys, prewarm.serve.overlay; print({'torch', 'triton'} & set(sys.modules))"

    done = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)

    assert done.stdout == "set()\n"
