"""SIGKILL at any moment leaves the old cache or image, or the new one, and no harm."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from prewarm.core.manifest_yaml import write_manifest
from prewarm.ship.install import install
from prewarm.ship.layout import read_layout
from prewarm.ship.pack import pack
from prewarm.ship.source import open_source
from prewarm.ship.verify import verify_directory

SCRIPT = Path(__file__).with_name("killed.py")


@pytest.fixture
def killed():
    """The function that installs or packs and is killed at the Nth change, or not."""
    with subprocess.Popen(
        [sys.executable, SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def run(verb, source, into, number):
            process.stdin.write(f"{verb}\t{source}\t{into}\t{number}\n")
            process.stdin.flush()
            return process.stdout.readline().strip()

        yield run
        process.stdin.close()
    assert process.returncode == 0


@pytest.fixture
def into(tmp_path):
    """A directory to install into, in memory where there is such a file system."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as directory:
        yield Path(directory) / "into"


def served(into):
    """Return the identity that `into` serves, after verifying it; None where it serves none."""
    if not os.path.lexists(into / "triton"):
        return None
    assert verify_directory(into) == ()
    name = os.readlink(into / "triton").split("/")[1]
    return name.partition("-")[0]


@pytest.fixture
def two(packed, tuned, tmp_path):
    """Two images and the names of their versions."""
    old, new = packed[0], tmp_path / "newer"
    pack(tuned.manifest, tuned.directory, new)
    return old, new, *(open_source(each).identity[7:23] for each in (old, new))


def sweep(killed, layout, into, allowed, prepare=lambda: None):
    """Kill the install of `layout` at each change in turn; return how often it was killed."""
    last = open_source(layout).identity[7:23]
    for number in range(1000):
        shutil.rmtree(into, ignore_errors=True)
        prepare()
        state = killed("install", layout, into, number)
        assert served(into) in allowed, number
        if state != "killed":
            assert (state, served(into)) == ("installed", last)
            return number
        assert killed("install", layout, into, 10_000) in ("installed", "already installed")
        assert served(into) == last
        assert os.listdir(into / "versions") == [last]
        assert sorted(os.listdir(into)) == [".prewarm.lock", "triton", "versions"]
    raise AssertionError("the install never came to its end")


def test_of_a_first_install(killed, two, into):
    old, _, name, _ = two
    kills = sweep(killed, old, into, {None, name})
    assert kills > 40


def test_of_an_update(killed, two, into):
    old, new, old_name, new_name = two
    allowed = {old_name, new_name}
    kills = sweep(killed, new, into, allowed, lambda: install(old, into))
    assert kills > 60


def test_of_a_repair(killed, two, into):
    old, _, name, _ = two

    def damage():
        install(old, into)
        for path in (into / "triton").glob("*/*.cubin"):
            path.unlink()

    for number in range(0, 1000, 7):
        shutil.rmtree(into, ignore_errors=True)
        damage()
        state = killed("install", old, into, number)
        killed("install", old, into, 10_000)
        assert served(into) == name
        if state != "killed":
            return
    raise AssertionError("the install never came to its end")


def test_of_an_update_at_moments_of_the_clock(two, into):
    """The same from outside, where a write may be cut in the middle."""
    old, new, old_name, new_name = two
    code = (
        "import sys; from pathlib import Path; from prewarm.ship.install import install;"
        "print(flush=True); install(Path(sys.argv[1]), Path(sys.argv[2])); print('done')"
    )
    for step in range(25):
        install(old, into)
        with subprocess.Popen(
            [sys.executable, "-c", code, new, into], stdout=subprocess.PIPE, text=True
        ) as process:
            process.stdout.readline()
            time.sleep(step * 0.0008)
            process.kill()
        assert served(into) in {old_name, new_name}


def test_of_packing_over_an_older_image(killed, cache, packed, tmp_path):
    older, first = packed
    write_manifest(tmp_path / "manifest.yaml", cache.manifest)
    cache.with_index(unbound=("sha256:" + "0" * 64,))
    newer = pack(cache.manifest, cache.directory, tmp_path / "newer").manifest_digest
    done, number, out = "killed", 0, tmp_path / "out"
    while done == "killed":
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(older, out)
        done = killed("pack", tmp_path, out, number)
        assert read_layout(out).digest in (first.manifest_digest, newer), number
        number += 1
    assert done == read_layout(out).digest == newer
    assert number > 20
    assert len(list((out / "blobs" / "sha256").iterdir())) == 3
