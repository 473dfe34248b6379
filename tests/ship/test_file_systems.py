"""`prewarm install` on file systems that are full, read-only, noexec, or fail as NFS does.

Each time: one clear error, nothing half-installed, and what was served before is served on.
"""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from prewarm.ship.pack import pack
from prewarm.ship.source import open_source
from prewarm.ship.verify import verify_directory

SHIM = Path(__file__).with_name("rename_fails.c")


@pytest.fixture
def old(packed):
    return packed[0]


@pytest.fixture
def new(tuned, tmp_path):
    """An image with another identity."""
    pack(tuned.manifest, tuned.directory, tmp_path / "newer")
    return tmp_path / "newer"


@pytest.fixture
def mounted(tmp_path):
    """A file system of 8 MiB."""
    place = tmp_path / "mounted"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "prewarm-test", str(place)]
    made = subprocess.run(mount, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def remount(place, options):
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)


def run(layout, into, **environment):
    return subprocess.run(
        [sys.executable, "-m", "prewarm", "install", str(layout), "--into", str(into)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def installed(layout, into):
    done = run(layout, into)
    assert done.returncode == 0, done.stderr
    assert served(into) == identity(layout)


def identity(layout):
    return open_source(layout).identity[7:23]


def served(into):
    assert verify_directory(into) == ()
    return os.readlink(into / "triton").split("/")[1].partition("-")[0]


def refused(layout, into, *words, **environment):
    """Assert that the install fails with one error, and at most a hint, that hold `words`."""
    done = run(layout, into, **environment)
    assert done.returncode == 4, done.stderr
    assert done.stdout == ""
    error, *hint = done.stderr.splitlines()
    assert error.startswith("prewarm: error: ")
    assert [line[:8] for line in hint] in ([], ["  hint: "])
    for word in words:
        assert word in done.stderr


def fill(place, left):
    """Leave `left` bytes of the file system at `place`."""
    free = os.statvfs(place)
    (place / "filler").write_bytes(bytes(free.f_bavail * free.f_frsize - left))


@pytest.mark.parametrize("left", [0, 4096, 65536])
def test_a_full_disk_keeps_what_was_served(old, new, mounted, left):
    into = mounted / "into"
    installed(old, into)
    fill(mounted, left)
    refused(new, into, "No space left on device", "free some space")
    assert served(into) == identity(old)
    (mounted / "filler").unlink()
    installed(new, into)


def test_a_disk_that_is_full_from_the_start_holds_nothing_half_installed(old, mounted):
    into = mounted / "into"
    fill(mounted, 65536)
    refused(old, into, "No space left on device")
    assert not os.path.lexists(into / "triton")
    assert os.listdir(into / "versions") == []


def test_a_disk_without_room_for_the_names_of_files(old, new, mounted):
    into = mounted / "into"
    installed(old, into)
    used = os.statvfs(mounted)
    remount(mounted, f"nr_inodes={used.f_files - used.f_ffree + 5}")
    refused(new, into, "No space left on device")
    assert served(into) == identity(old)


def test_a_read_only_file_system_keeps_what_was_served(old, new, mounted, snapshot):
    into = mounted / "into"
    installed(old, into)
    before = snapshot(mounted)
    remount(mounted, "ro")
    refused(new, into, "Read-only file system", "choose a directory on a writable file system")
    refused(new, mounted / "another", "Read-only file system")
    assert served(into) == identity(old)
    assert snapshot(mounted) == before


def test_from_a_noexec_file_system_no_host_module_could_be_loaded(
    old, new, mounted, snapshot, triton_lookup
):
    into = mounted / "into"
    installed(old, into)
    before = snapshot(mounted)
    remount(mounted, "noexec")
    refused(new, into, "mounted noexec", "mount it without noexec")
    refused(new, mounted / "a" / "b", "mounted noexec")
    assert snapshot(mounted) == before
    assert os.listdir(mounted) == ["into"]
    remount(mounted, "exec")
    assert served(into) == identity(old)
    assert [entry["hit"] for entry in triton_lookup(into / "triton")] == [True] * 4


def test_a_cache_without_host_modules_may_lie_there(cache, mounted, tmp_path):
    bare = cache.with_index(host_modules=())
    pack(bare.manifest, bare.directory, tmp_path / "bare")
    remount(mounted, "noexec")
    installed(tmp_path / "bare", mounted / "into")


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    """A library that stands before the C library's rename."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    out = tmp_path_factory.mktemp("shim") / "rename_fails.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", out, SHIM, "-ldl"], check=True)
    return str(out)


FAILURES = [errno.EXDEV, errno.ENOTEMPTY, errno.ESTALE, errno.EIO, errno.EBUSY]


@pytest.mark.parametrize("step", [0, 1], ids=["stage to version", "link"])
@pytest.mark.parametrize("number", FAILURES, ids=errno.errorcode.get)
def test_a_rename_that_fails_keeps_what_was_served(  # noqa: PLR0917
    old, new, tmp_path, shim, number, step
):
    into = tmp_path / "into"
    installed(old, into)
    failing = {"LD_PRELOAD": shim, "RENAME_ERRNO": str(number), "RENAME_FROM": str(step)}
    refused(new, into, os.strerror(number), **failing)
    assert served(into) == identity(old)
    installed(new, into)
    assert os.listdir(into / "versions") == [identity(new)]


@pytest.mark.parametrize("step", [0, 1], ids=["stage to version", "link"])
def test_a_first_install_whose_rename_fails_serves_nothing(old, tmp_path, shim, step):
    into = tmp_path / "into"
    failing = {"LD_PRELOAD": shim, "RENAME_ERRNO": str(errno.ESTALE), "RENAME_FROM": str(step)}
    refused(old, into, os.strerror(errno.ESTALE), **failing)
    assert not os.path.lexists(into / "triton")
    installed(old, into)
    assert os.listdir(into / "versions") == [identity(old)]


@pytest.mark.parametrize("step", [0, 1], ids=["stage to version", "link"])
def test_a_rename_whose_answer_was_lost_is_no_harm(old, new, tmp_path, shim, step):
    """NFS sends the request again, and hears that there is no such file any more."""
    into = tmp_path / "into"
    installed(old, into)
    failing = {"LD_PRELOAD": shim, "RENAME_ERRNO": str(errno.ENOENT), "RENAME_FROM": str(step)}
    refused(new, into, "No such file", **failing, RENAME_DONE="1")
    assert served(into) == identity([old, new][step])
    installed(new, into)
    assert os.listdir(into / "versions") == [identity(new)]


def test_an_older_version_that_cannot_be_removed_is_in_nobody_s_way(old, new, tmp_path, immutable):
    """As on NFS, where the files that a process has open stay in their directory."""
    into = tmp_path / "into"
    installed(old, into)
    kept = next((into / "triton").resolve().glob("*/*.cubin"))
    with immutable(kept):
        installed(new, into)
        assert sorted(os.listdir(into / "versions")) == sorted([identity(old), identity(new)])
        assert run(new, into).returncode == 0
        assert run(old, into).returncode == 0
        assert served(into) == identity(old)
    installed(new, into)
    assert os.listdir(into / "versions") == [identity(new)]


@pytest.fixture
def immutable(tmp_path):
    """The function that makes a file one that nobody can remove: a mount stands on it."""

    class Mount:
        def __init__(self, path):
            self.path = path

        def __enter__(self):
            argv = ["mount", "--bind", str(self.path), str(self.path)]
            made = subprocess.run(argv, capture_output=True, text=True, check=False)
            if made.returncode != 0:
                pytest.skip(f"nothing can be mounted here: {made.stderr.strip()}")

        def __exit__(self, *_):
            subprocess.run(["umount", str(self.path)], check=True)

    return Mount
