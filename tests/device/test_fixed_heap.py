"""Programs that this process starts have their heap where it was in every run before."""

import os
import subprocess
import sys

import pytest

SETTLED = """
import subprocess, sys
from prewarm.device.fixed_heap import settle_heaps
settle_heaps()
sys.exit(subprocess.run([sys.executable, "-S", "-c", sys.argv[1]]).returncode)
"""
WHERE = """
import ctypes
malloc = ctypes.CDLL(None).malloc
malloc.restype = ctypes.c_void_p
print(hex(malloc(ctypes.c_size_t(100))), hex(malloc(ctypes.c_size_t(1 << 20))))
"""
USE = """
import ctypes, threading
libc = ctypes.CDLL(None)
libc.aligned_alloc.restype = libc.malloc.restype = libc.realloc.restype = ctypes.c_void_p
libc.calloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
libc.realloc.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
for power in range(4, 20):
    at = libc.aligned_alloc(ctypes.c_size_t(1 << power), ctypes.c_size_t(100))
    assert at % (1 << power) == 0
    ctypes.memset(at, 255, 100)
    at = libc.realloc(at, 3 << power)
    assert ctypes.string_at(at, 48) == b"\\xff" * 48
    libc.free(at)
at = libc.calloc(ctypes.c_size_t(100), ctypes.c_size_t(1000))
assert ctypes.string_at(at, 100000) == bytes(100000)
big = libc.malloc(ctypes.c_size_t(100 << 20))
ctypes.memset(big, 1, 100 << 20)
libc.free(big)
assert libc.malloc(ctypes.c_size_t(100 << 20)) == big
assert not libc.malloc(ctypes.c_size_t(1 << 62))
assert not libc.calloc(ctypes.c_size_t(1 << 40), ctypes.c_size_t(1 << 40))
def churn(seed):
    kept = [bytearray([seed]) * (each * 37 % 5000 + 600) for each in range(3000)]
    assert all(set(each) == {seed} for each in kept)
threads = [threading.Thread(target=churn, args=(seed,)) for seed in range(8)]
[each.start() for each in threads]
[each.join() for each in threads]
print(hex(at >> 40))
"""


@pytest.fixture(autouse=True)
def _own_cache(root, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(root))
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    monkeypatch.setenv("PYTHONMALLOC", "malloc")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a cache: é"))


def settled(program):
    done = subprocess.run(
        [sys.executable, "-c", SETTLED, program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_addresses_are_those_of_the_run_before():
    (found,) = {settled(WHERE) for _ in range(4)}
    assert [each[:6] for each in found.split()] == ["0x1000", "0x1000"]


def test_it_is_a_malloc_like_any_other():
    assert settled(USE) == "0x10\n"


def test_what_was_preloaded_before_stays(monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", "libm.so.6")
    names = settled("import os; print(os.environ['LD_PRELOAD'])").strip().split(os.pathsep)
    assert len(names) == 2
    assert names[1] == "libm.so.6"
