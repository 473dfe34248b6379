"""SIGKILL at any moment of an install leaves the old cache or the new one, and no harm."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prewarm.ship.install import install
from prewarm.ship.pack import pack
from prewarm.ship.source import open_source
from prewarm.ship.verify import verify_directory

SCRIPT = Path(__file__).with_name("killed_install.py")


@pytest.fixture
def killed_install():
    """The function that installs and is killed at the Nth change, or not."""
    with subprocess.Popen(
        [sys.executable, SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def run(layout, into, number):
            process.stdin.write(f"{layout}\t{into}\t{number}\n")
            process.stdin.flush()
            return process.stdout.readline().strip()

        yield run
        process.stdin.close()
    assert process.returncode == 0


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


def sweep(killed_install, layout, prepare, into, allowed, last):
    """Kill the install of `layout` at each change in turn; return how often it was killed."""
    for number in range(1000):
        shutil.rmtree(into, ignore_errors=True)
        prepare()
        state = killed_install(layout, into, number)
        assert served(into) in allowed, number
        if state != "killed":
            assert (state, served(into)) == ("installed", last)
            return number
        assert killed_install(layout, into, 10_000) in ("installed", "already installed")
        assert served(into) == last
        assert os.listdir(into / "versions") == [last]
        assert sorted(os.listdir(into)) == [".prewarm.lock", "triton", "versions"]
    raise AssertionError("the install never came to its end")


def test_of_a_first_install(killed_install, two, tmp_path):
    old, _, name, _ = two
    into = tmp_path / "into"
    kills = sweep(killed_install, old, lambda: None, into, {None, name}, name)
    assert kills > 40


def test_of_an_update(killed_install, two, tmp_path):
    old, new, old_name, new_name = two
    into = tmp_path / "into"
    allowed = {old_name, new_name}
    kills = sweep(killed_install, new, lambda: install(old, into), into, allowed, new_name)
    assert kills > 60


def test_of_a_repair(killed_install, two, tmp_path):
    old, _, name, _ = two
    into = tmp_path / "into"

    def damage():
        install(old, into)
        for path in (into / "triton").glob("*/*.cubin"):
            path.unlink()

    for number in range(0, 1000, 7):
        shutil.rmtree(into, ignore_errors=True)
        damage()
        state = killed_install(old, into, number)
        killed_install(old, into, 10_000)
        assert served(into) == name
        if state != "killed":
            return
    raise AssertionError("the install never came to its end")


def test_of_an_update_at_moments_of_the_clock(two, tmp_path):
    """The same from outside, where a write may be cut in the middle."""
    old, new, old_name, new_name = two
    into = tmp_path / "into"
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
