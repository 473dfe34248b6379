"""Where serving looks, and whether it may write there."""

import contextlib
import os
import tempfile
from pathlib import Path

import pytest

from prewarm.make.place import described, not_read, not_writable, user

NOBODY = 65534


@pytest.fixture
def entries(tmp_path):
    directory = tmp_path / "cache" / "triton"
    directory.mkdir(parents=True)
    return directory


def told(findings):
    return [(each.subject, each.expected, each.found, each.fix) for each in findings]


def test_the_directory_that_triton_is_told_is_the_one(entries, tmp_path):
    (tmp_path / "alias").symlink_to(entries)
    assert [*not_read(entries, str(entries), None)] == []
    assert [*not_read(entries, str(tmp_path / "alias"), None)] == []


def test_p209_without_a_name_nobody_looks_there(entries):
    ((subject, expected, found, fix),) = told(not_read(entries, None, None))
    assert (subject, expected) == ("TRITON_CACHE_DIR", str(entries))
    assert found.startswith("(unset)")
    assert fix == f"export TRITON_CACHE_DIR={entries}"


def test_p209_another_directory(entries, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", "/elsewhere")
    assert told(not_read(entries, "/elsewhere", None)) == [
        *[("TRITON_CACHE_DIR", str(entries), "/elsewhere", f"export TRITON_CACHE_DIR={entries}")]
    ]


def test_p209_vllm_moves_it(entries, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(entries))
    moved = "/root/.cache/vllm/torch_compile_cache/HASH/rank_0_0/triton_cache"
    ((_, _, found, fix),) = told(not_read(entries, moved, None))
    assert found == f"{moved}, to which vLLM's compiler moves it"
    assert fix.startswith("unset VLLM_USE_STANDALONE_COMPILE; or PREWARM_CACHE=")


def test_an_overlay_reads_the_cache_wherever_vllm_looks(entries, tmp_path):
    assert [*not_read(entries, "/elsewhere", entries)] == []
    assert [*not_read(entries, None, entries)] == []
    ((subject, _, found, fix),) = told(not_read(entries, str(entries), tmp_path / "other"))
    assert (subject, found) == ("PREWARM_CACHE", str(tmp_path / "other"))
    assert fix == f"PREWARM_CACHE={entries}"


@contextlib.contextmanager
def somebody_else():
    """Be a user to whom the directory does not belong."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def read_only():
    """A directory that nobody but root may write."""
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory, "triton")
        place.mkdir()
        Path(directory).chmod(0o755)
        place.chmod(0o555)
        yield place
        place.chmod(0o755)


def test_p210_a_directory_that_this_user_cannot_write(read_only):
    with somebody_else():
        (finding,) = not_writable(read_only, writes=True)
        me = user(os.geteuid())
    assert (finding.code, finding.note) == ("P210", False)
    assert finding.expected == f"a directory that {me} may write"
    assert finding.found == f"one of {user(os.stat(read_only).st_uid)}, mode 555"
    assert f"PREWARM_CACHE={read_only}" in finding.fix


def test_p210_is_a_note_where_nothing_is_written(read_only):
    with somebody_else():
        (note,) = not_writable(read_only, writes=False)
    assert note.note


def test_a_directory_that_can_be_written_is_no_finding(entries):
    assert [*not_writable(entries, writes=True)] == []


def test_a_directory_is_described_by_owner_and_mode(entries):
    entries.chmod(0o750)
    assert described(entries) == f"one of {user(os.geteuid())}, mode 750"
    assert user(4_000_000) == "uid 4000000"
