"""`prewarm install` as processes: killed at any moment, or many into one directory."""

import base64
import hashlib
import json
import os
import random
import subprocess
import sys
import time

import pytest

from prewarm.core.cache import HostModule
from prewarm.ship.pack import pack
from prewarm.ship.source import open_source
from prewarm.ship.verify import verify_directory

FILES = 300
KILLED = -9


def started(layout, into):
    return subprocess.Popen(
        [sys.executable, "-m", "prewarm", "install", "--json", str(layout), "--into", str(into)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def state_of(process):
    """Return what the process says that it did, once it is done."""
    out, err = process.communicate()
    assert process.returncode == 0, err
    return json.loads(out)["installed"]["state"]


def short(layout):
    return open_source(layout).identity[7:23]


def served(into):
    """Return the version that `into` serves, after verifying it; None where it serves none."""
    if not os.path.lexists(into / "triton"):
        return None
    assert verify_directory(into) == ()
    return os.readlink(into / "triton").split("/")[1].partition("-")[0]


@pytest.fixture
def two_large(cache, tmp_path):
    """Two images of so many files that an install takes a while."""
    found = []
    for count in (FILES, FILES + 1):
        modules = list(cache.compiled.host_modules)
        for number in range(count):
            name = hashlib.sha256(b"%d" % number).digest()
            key = base64.b32encode(name).decode().rstrip("=")
            directory = cache.directory / key
            directory.mkdir(exist_ok=True)
            (directory / "launcher.so").write_bytes(random.Random(number).randbytes(20_000))
            modules.append(HostModule(name="__triton_launcher", key=key, file="launcher.so"))
        larger = cache.with_index(host_modules=tuple(modules))
        pack(larger.manifest, larger.directory, tmp_path / f"image-{count}")
        found.append(tmp_path / f"image-{count}")
    return found


@pytest.mark.parametrize(
    "kills", [pytest.param(10), pytest.param(500, marks=pytest.mark.soak, id="500")]
)
def test_killed_at_a_random_moment_and_run_again(two_large, tmp_path, kills):
    """In turns of two images: whatever was served stays served, and the next run completes."""
    into = tmp_path / "into"
    begun = time.monotonic()
    assert state_of(started(two_large[0], into)) == "installed"
    seconds = time.monotonic() - begun
    draw, killed, before = random.Random(0), 0, short(two_large[0])
    while killed < kills:
        layout = two_large[(killed + 1) % 2]
        after = short(layout)
        process = started(layout, into)
        time.sleep(draw.uniform(0, seconds))
        process.kill()
        process.communicate()
        assert served(into) in {before, after}
        if process.returncode == KILLED:
            killed += 1
        assert state_of(started(layout, into)) in ("installed", "already installed")
        assert served(into) == after
        assert os.listdir(into / "versions") == [os.readlink(into / "triton").split("/")[1]]
        assert sorted(os.listdir(into)) == [".prewarm.lock", "triton", "versions"]
        before = after


@pytest.mark.parametrize(
    "count", [pytest.param(8), pytest.param(32, marks=pytest.mark.soak, id="32")]
)
def test_many_install_the_same_into_one_directory_and_one_of_them_does_it(
    two_large, tmp_path, count
):
    into = tmp_path / "into"
    running = [started(two_large[0], into) for _ in range(count)]
    states = sorted(map(state_of, running))
    assert states == ["already installed"] * (count - 1) + ["installed"]
    assert served(into) == short(two_large[0])
    assert sorted(os.listdir(into)) == [".prewarm.lock", "triton", "versions"]


@pytest.mark.parametrize(
    "count", [pytest.param(8), pytest.param(32, marks=pytest.mark.soak, id="32")]
)
def test_many_install_different_caches_and_one_of_these_is_served_whole(two_large, tmp_path, count):
    into = tmp_path / "into"
    running = [started(two_large[number % 2], into) for number in range(count)]
    assert set(map(state_of, running)) <= {"installed", "already installed"}
    assert served(into) in set(map(short, two_large))
    assert os.listdir(into / "versions") == [os.readlink(into / "triton").split("/")[1]]


@pytest.mark.parametrize(
    "count", [pytest.param(8), pytest.param(32, marks=pytest.mark.soak, id="32")]
)
def test_of_many_installers_some_are_killed_and_the_others_end_well(two_large, tmp_path, count):
    """The lock goes with the process that held it."""
    into = tmp_path / "into"
    running = [started(two_large[0], into) for _ in range(count)]
    draw = random.Random(1)
    for process in running[::3]:
        time.sleep(draw.uniform(0, 0.2))
        process.kill()
    states = [state_of(p) for number, p in enumerate(running) if number % 3]
    assert set(states) <= {"installed", "already installed"}
    assert served(into) == short(two_large[0])
    for process in running[::3]:
        process.communicate()
