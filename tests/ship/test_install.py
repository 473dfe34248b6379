"""Install: the directory serves what it served before, or the new cache whole."""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from prewarm.core.errors import HostError, InputError, IntegrityError, MismatchError
from prewarm.core.finding import UnsoundError
from prewarm.ship.install import install
from prewarm.ship.pack import pack
from prewarm.ship.source import open_source
from prewarm.ship.verify import verify_directory


@pytest.fixture
def layout(packed):
    return packed[0]


@pytest.fixture
def newer(tuned, tmp_path):
    """An image with another identity."""
    pack(tuned.manifest, tuned.directory, tmp_path / "newer")
    return tmp_path / "newer"


@pytest.fixture
def into(tmp_path):
    return tmp_path / "installed"


def versions(directory):
    return sorted(os.listdir(directory / "versions"))


def short(layout):
    return open_source(layout).identity[7:23]


def test_what_was_packed_is_installed(layout, into):
    done = install(layout, into)
    source = open_source(layout)
    assert (done.state, done.identity) == ("installed", source.identity)
    assert done.directory == f"{into}/triton"
    version = into / "versions" / short(layout)
    for path, data in source.files.items():
        if "__grp__" not in path:
            assert (version / path).read_bytes() == data
    assert os.readlink(into / "triton") == f"versions/{short(layout)}/io.triton.cache"
    assert verify_directory(into) == ()


@pytest.mark.parametrize("name", ["plain", "with spaces and öäü 漢字", "quote'\"$(x)\\"])
def test_triton_finds_every_entry(layout, tmp_path, triton_lookup, name):
    done = install(layout, tmp_path / name)
    assert [entry["hit"] for entry in triton_lookup(done.directory)] == [True] * 4
    assert verify_directory(tmp_path / name) == ()


def test_triton_finds_every_entry_in_the_locale_of_a_bare_container(
    layout, tmp_path, triton_lookup, monkeypatch
):
    done = install(layout, tmp_path / "öäü")
    monkeypatch.setenv("LC_ALL", "C")
    assert [entry["hit"] for entry in triton_lookup(done.directory)] == [True] * 4


def test_triton_finds_every_entry_on_a_read_only_file_system(layout, small_disk, triton_lookup):
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    done = install(layout, small_disk)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert [entry["hit"] for entry in triton_lookup(done.directory)] == [True] * 4
    assert verify_directory(small_disk) == ()


def test_a_relative_directory_is_installed_for_its_absolute_path(layout, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert install(layout, Path("here")).directory == f"{tmp_path}/here/triton"
    assert verify_directory(tmp_path / "here") == ()


def test_a_mounted_image_is_a_source(layout, into, tmp_path):
    for path, data in open_source(layout).files.items():
        (tmp_path / "mounted" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mounted" / path).write_bytes(data)
    assert install(tmp_path / "mounted", into).identity == open_source(layout).identity
    assert verify_directory(into) == ()


def test_the_group_may_write_whatever_the_umask(layout, into):
    code = "import os, sys; os.umask(0o077); from pathlib import Path;"
    code += "from prewarm.ship.install import install; install(*map(Path, sys.argv[1:]))"
    subprocess.run([sys.executable, "-c", code, layout, into], check=True)
    found = {
        (path.is_dir(), stat.S_IMODE(path.stat().st_mode))
        for path in (into / "versions").rglob("*")
    }
    assert found == {(True, 0o775), (False, 0o664)}


def test_a_volume_s_group_is_inherited(layout, into):
    into.mkdir()
    into.chmod(0o2777)
    install(layout, into)
    for path in (into / "versions").rglob("*"):
        assert not path.is_dir() or path.stat().st_mode & stat.S_ISGID


def test_a_second_install_writes_nothing(layout, into, snapshot):
    install(layout, into)
    before = snapshot(into)
    times = {path: path.stat().st_mtime_ns for path in into.rglob("*")}
    assert install(layout, into).state == "already installed"
    assert snapshot(into) == before
    assert {path: path.stat().st_mtime_ns for path in into.rglob("*")} == times


def test_another_cache_replaces_the_first(layout, newer, into):
    install(layout, into)
    assert install(newer, into).state == "installed"
    assert versions(into) == [short(newer)]
    assert install(layout, into).state == "installed"
    assert versions(into) == [short(layout)]
    assert verify_directory(into) == ()


def test_what_triton_added_stays_when_the_same_cache_is_installed_again(layout, into):
    install(layout, into)
    entry = into / "triton" / ("C" * 52)
    entry.mkdir()
    (entry / "late.json").write_text("{}")
    assert install(layout, into).state == "already installed"
    assert (entry / "late.json").exists()


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda p: p.unlink(), id="missing"),
        pytest.param(lambda p: os.truncate(p, 0), id="empty after a power cut"),
        pytest.param(lambda p: (p.unlink(), p.symlink_to("/etc/passwd")), id="link"),
    ],
)
@pytest.mark.parametrize("pattern", ["*/*.cubin", "*/__grp__*.json", "../prewarm/manifest.json"])
def test_a_damaged_install_is_laid_down_anew(layout, into, damage, pattern):
    install(layout, into)
    damage(next((into / "triton").glob(pattern)))
    assert verify_directory(into) != ()
    assert install(layout, into).state == "installed"
    assert verify_directory(into) == ()
    assert versions(into) == [f"{short(layout)}-2"]
    assert install(layout, into).state == "already installed"


def test_a_directory_that_was_moved_is_installed_for_its_new_place(layout, into, tmp_path):
    install(layout, into)
    into.rename(tmp_path / "moved")
    assert install(layout, tmp_path / "moved").state == "installed"
    assert verify_directory(tmp_path / "moved") == ()


def test_by_another_name_it_is_installed_for_that_name(layout, into, tmp_path):
    install(layout, into)
    (tmp_path / "alias").symlink_to(into)
    assert install(layout, tmp_path / "alias").state == "installed"
    assert installed_roots(into) == {f"{tmp_path}/alias/triton"}


def installed_roots(into):
    return {
        str(Path(path).parent.parent)
        for group in (into / "triton").glob("*/__grp__*")
        for path in json.loads(group.read_text())["child_paths"].values()
    }


@pytest.mark.parametrize("name", ["thesis.txt", "triton", "versions"])
def test_a_directory_with_something_else_in_it_is_refused(layout, into, snapshot, name):
    (into / name).mkdir(parents=True)
    with pytest.raises(InputError, match=f"it holds '{name}'"):
        install(layout, into)
    assert os.listdir(into) == [name]


def test_a_file_is_refused(layout, into):
    into.write_text("mine")
    with pytest.raises(InputError, match="is not a directory"):
        install(layout, into)


def test_the_root_of_a_file_system_is_as_good_as_empty(layout, into):
    (into / "lost+found").mkdir(parents=True)
    assert install(layout, into).state == "installed"


def test_a_link_to_elsewhere_is_refused(layout, into, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    into.mkdir()
    (into / "triton").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IntegrityError, match="P104"):
        install(layout, into)
    assert os.readlink(into / "triton") == str(tmp_path / "elsewhere")
    assert os.listdir(tmp_path / "elsewhere") == []


@pytest.mark.parametrize("name", ["versions", "version"])
def test_versions_elsewhere_are_refused(layout, into, tmp_path, snapshot, name):
    install(layout, into)
    path = into / "versions" / short(layout) if name == "version" else into / "versions"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    before = snapshot(tmp_path / "elsewhere")
    with pytest.raises(IntegrityError, match="P104"):
        install(layout, into)
    assert snapshot(tmp_path / "elsewhere") == before


def test_a_lock_that_leads_elsewhere_is_not_followed(layout, into, tmp_path):
    into.mkdir()
    (into / ".prewarm.lock").symlink_to(tmp_path / "made")
    with pytest.raises((HostError, InputError)):
        install(layout, into)
    assert not (tmp_path / "made").exists()


def test_leftovers_of_a_killed_install_are_removed(layout, newer, into):
    install(layout, into)
    for name in (".stage-x/io.triton.cache", f"{short(newer)}/io.triton.cache", "0" * 16):
        (into / "versions" / name).mkdir(parents=True)
    (into / "versions" / ".link").symlink_to("nowhere")
    assert install(layout, into).state == "already installed"
    assert versions(into) == [short(layout)]


def test_a_cache_for_another_cpu_is_refused(cache, into, tmp_path):
    layout = other_cpu(cache, tmp_path)
    with pytest.raises(MismatchError) as caught:
        install(layout, into)
    assert caught.value.exit_code == 8
    assert "P207" in caught.value.message
    assert "CPU architecture: built for riscv64" not in caught.value.message
    assert "does not fit" in caught.value.message
    assert "Python ABI: built for cpython-311" in caught.value.message
    assert not into.exists()


def test_with_a_warning_it_is_a_cold_start(cache, into, tmp_path):
    done = install(other_cpu(cache, tmp_path), into, on_mismatch="warn")
    assert done.state == "does not fit"
    assert not into.exists()


def other_cpu(cache, tmp_path):
    here = cache.compiled.toolchain.machine
    machine = {"x86_64": "aarch64", "aarch64": "x86_64"}[here]
    tools = msgspec.structs.replace(cache.compiled.toolchain, machine=machine)
    cache = cache.with_index(toolchain=tools)
    pack(cache.manifest, cache.directory, tmp_path / "other")
    return tmp_path / "other"


def test_a_tampered_image_is_refused_and_nothing_is_written(layout, into):
    layer = max((layout / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    layer.write_bytes(layer.read_bytes()[:-1] + b"x")
    with pytest.raises(UnsoundError):
        install(layout, into)
    assert not into.exists()


def test_a_tampered_image_leaves_an_older_install_as_it_was(layout, newer, into, snapshot):
    install(layout, into)
    before = snapshot(into)
    for path in (newer / "blobs" / "sha256").iterdir():
        os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(UnsoundError):
        install(newer, into)
    assert snapshot(into) == before


INSTALL = """
import sys
from pathlib import Path
from prewarm.ship.install import install
print(install(Path(sys.argv[1]), Path(sys.argv[2])).state)
"""


def test_of_four_installers_one_installs_and_three_find_it_installed(layout, into):
    for _ in range(3):
        running = [
            subprocess.Popen(
                [sys.executable, "-c", INSTALL, layout, into], stdout=subprocess.PIPE, text=True
            )
            for _ in range(4)
        ]
        states = sorted(process.communicate()[0].strip() for process in running)
        assert states == ["already installed"] * 3 + ["installed"]
        assert verify_directory(into) == ()
        shutil.rmtree(into)


def test_a_full_disk_leaves_what_was_there(layout, newer, small_disk, snapshot):
    before = snapshot(small_disk)
    with pytest.raises(HostError) as caught:
        install(big(layout), small_disk)
    assert caught.value.message.endswith("No space left on device")
    assert "free some space" in caught.value.hint
    assert versions(small_disk) == []
    assert set(snapshot(small_disk)) - set(before) == {".prewarm.lock"}
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    assert install(layout, small_disk).state == "installed"


def test_a_disk_that_fills_up_during_an_update_keeps_serving(
    layout, newer, small_disk, snapshot, triton_lookup
):
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    install(layout, small_disk)
    used = sum(path.stat().st_blocks * 512 for path in small_disk.rglob("*") if path.is_file())
    subprocess.run(["mount", "-o", f"remount,size={used + 32768}", small_disk], check=True)
    before = snapshot(small_disk)
    with pytest.raises(HostError, match="No space left on device"):
        install(newer, small_disk)
    assert snapshot(small_disk) == before
    assert verify_directory(small_disk) == ()


def big(layout):
    """Return `layout`, which is larger than the small disk."""
    assert sum(map(len, open_source(layout).files.values())) > 65536
    return layout


LIMITED = """
import resource, sys
from pathlib import Path
from prewarm.core.errors import HostError
from prewarm.ship.install import install
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    install(Path(sys.argv[1]), Path(sys.argv[2]))
except HostError as error:
    print(error.exit_code, error.message)
"""


def test_a_file_size_limit_leaves_nothing_half_written(layout, into):
    found = subprocess.run(
        [sys.executable, "-c", LIMITED, layout, into], capture_output=True, text=True, check=True
    )
    assert found.stdout == f"4 cannot install into {into}: File too large\n"
    assert versions(into) == []


AS_NOBODY = """
import json, os, sys
from pathlib import Path
from prewarm.core.errors import PrewarmError
from prewarm.ship.install import install
os.setgid(65534), os.setuid(65534)
try:
    print(json.dumps(install(Path(sys.argv[1]), Path(sys.argv[2])).state))
except PrewarmError as error:
    print(json.dumps([error.exit_code, error.message, error.hint]))
"""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change its user")


@needs_root
@pytest.mark.parametrize(
    ("name", "doing"),
    [("closed", "lock {}/.prewarm.lock"), ("closed/below", "install into {}")],
)
def test_a_directory_that_cannot_be_written_is_the_host_s_fault(
    layout, public_directory, name, doing
):
    shutil.copytree(layout, public_directory / "image")
    subprocess.run(["chmod", "-R", "a+rX", public_directory / "image"], check=True)
    (public_directory / "closed").mkdir(mode=0o755)
    into = public_directory / name
    assert as_nobody(public_directory / "image", into) == [
        4,
        f"cannot {doing.format(into)}: Permission denied",
        "run as a user who may write there, or choose another directory",
    ]
    assert os.listdir(public_directory / "closed") == []


@needs_root
def test_any_user_installs_where_it_may_write(layout, public_directory):
    shutil.copytree(layout, public_directory / "image")
    subprocess.run(["chmod", "-R", "a+rX", public_directory / "image"], check=True)
    assert as_nobody(public_directory / "image", public_directory / "mine") == "installed"
    assert verify_directory(public_directory / "mine") == ()


def as_nobody(layout, into):
    found = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, layout, into], capture_output=True, text=True, check=True
    )
    return json.loads(found.stdout)


def test_a_receipt_that_is_a_fifo_is_not_waited_for(layout, into):
    install(layout, into)
    receipt = into / "versions" / short(layout) / "receipt.json"
    receipt.unlink()
    os.mkfifo(receipt)
    assert {finding.code for finding in verify_directory(into)} == {"P106"}
    assert install(layout, into).state == "installed"
    assert verify_directory(into) == ()
