"""The tar of a cache tree, there and back."""

import contextlib
import gzip
import io
import random
import subprocess
import tarfile

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from prewarm.core.errors import InputError
from prewarm.core.finding import UnsoundError
from prewarm.ship.layer import (
    GZIP,
    PLAIN,
    ZSTD,
    compress,
    decompress,
    files_of,
    source_date_epoch,
    tar_of,
)

FILES = {"a/b/one": b"1" * 700, "a/two": b"", "c/" + "long" * 40: b"\0\1\2"}

parts = st.text(st.characters(exclude_characters="/\\\0", codec="utf-8"), min_size=1, max_size=120)
names = parts.filter(lambda part: part not in (".", ".."))
paths = st.lists(names, min_size=1, max_size=3).map("/".join)


def is_a_tree(files):
    return not any(a != b and b.startswith(f"{a}/") for a in files for b in files)


@given(st.dictionaries(paths, st.binary(max_size=2000), max_size=6).filter(is_a_tree))
@settings(deadline=None)
def test_what_was_written_is_read(files):
    assert files_of(tar_of(files, 0)) == files


def test_the_order_in_which_files_come_does_not_matter():
    assert tar_of(dict(reversed(FILES.items())), 0) == tar_of(FILES, 0)


def test_owner_mode_and_time_are_fixed_and_parents_come_first():
    with tarfile.open(fileobj=io.BytesIO(tar_of(FILES, 7))) as tar:
        members = tar.getmembers()
    assert [m.name for m in members] == ["a", "a/b", "c", max(FILES, key=len), "a/b/one", "a/two"]
    assert {(m.uid, m.gid, m.uname, m.gname, m.mtime) for m in members} == {(0, 0, "", "", 7)}
    assert {(m.isdir(), m.mode) for m in members} == {(True, 0o775), (False, 0o664)}


def test_what_is_there_twice_costs_little_however_far_apart_its_names_are():
    """Launchers are: equal files follow each other, where gzip finds them."""
    noise = {f"{n}/noise": random.Random(n).randbytes(20_000) for n in range(9)}
    once = {"1/launcher": noise.pop("1/noise"), **noise}
    both = {**once, "8/launcher": once["1/launcher"]}
    more = len(compress(tar_of(both, 0))) - len(compress(tar_of(once, 0)))
    assert more < 1000


def test_gnu_tar_reads_it(tmp_path):
    (tmp_path / "layer.tar.gz").write_bytes(compress(tar_of(FILES, 0)))
    subprocess.run(["tar", "-xzf", "layer.tar.gz"], cwd=tmp_path, check=True)
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == FILES


def test_gzip_holds_no_time_and_no_name():
    blob = compress(b"x" * 1000)
    assert blob[:10] == b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
    assert gzip.decompress(blob) == b"x" * 1000


@pytest.mark.parametrize(("text", "epoch"), [("", 0), ("0", 0), ("1700000000", 1_700_000_000)])
def test_the_time_is_source_date_epoch(monkeypatch, text, epoch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", text)
    assert source_date_epoch() == epoch


@pytest.mark.parametrize("text", ["now", "1.5", "-1", " 1"])
def test_a_time_that_is_no_whole_number_is_refused(monkeypatch, text):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", text)
    with pytest.raises(InputError, match="not a whole number of seconds"):
        source_date_epoch()


@pytest.mark.parametrize(
    ("media_type", "blob"),
    [
        (GZIP, compress(b"x" * 5000)),
        (ZSTD, zstandard.ZstdCompressor().compress(b"x" * 5000)),
        (PLAIN, b"x" * 5000),
    ],
)
@pytest.mark.parametrize("said", [4999, 5001, 0])
def test_a_layer_has_the_size_that_it_says(media_type, blob, said):
    assert decompress(blob, media_type, 5000) == b"x" * 5000
    with pytest.raises(UnsoundError, match="P103"):
        decompress(blob, media_type, said)


def test_a_bomb_is_not_unpacked():
    blob = compress(b"\0" * 200_000_000)
    assert len(blob) < 300_000
    with pytest.raises(UnsoundError, match="expected 1000 bytes, found more"):
        decompress(blob, GZIP, 1000)


@pytest.mark.parametrize("cut", [0, 5, 100, -8, -1])
def test_a_layer_that_is_cut_short_is_refused(cut):
    blob = compress(tar_of(FILES, 0))
    with pytest.raises(UnsoundError, match="P103"):
        decompress(blob[:cut], GZIP, len(tar_of(FILES, 0)))


def test_an_unknown_compression_is_refused():
    with pytest.raises(InputError, match="'application/x' cannot be read"):
        decompress(b"", "application/x", 0)


def test_a_tar_that_is_cut_short_anywhere_is_refused():
    tar = tar_of(FILES, 0)
    end = len(tar.rstrip(b"\0")) + 1
    for size in range(0, end, 100):
        with pytest.raises(UnsoundError, match="P103"):
            files_of(tar[:size])


def made(*members, pax=None):
    """Return a tar of (TarInfo, data) pairs."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in members:
            info.size = len(data)
            info.pax_headers = pax or {}
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def info(name, kind=tarfile.REGTYPE, link=""):
    found = tarfile.TarInfo(name)
    found.type, found.linkname = kind, link
    return found


@pytest.mark.parametrize(
    "members",
    [
        pytest.param([info("../out")], id="leaves the root"),
        pytest.param([info("a/../../out")], id="leaves the root further in"),
        pytest.param([info("/etc/passwd")], id="absolute"),
        pytest.param([info("a//b")], id="empty part"),
        pytest.param([info("./a")], id="dot"),
        pytest.param([info("a", tarfile.SYMTYPE, "/etc/passwd")], id="link"),
        pytest.param([info("a", tarfile.LNKTYPE, "b")], id="hard link"),
        pytest.param([info("a", tarfile.CHRTYPE)], id="character device"),
        pytest.param([info("a", tarfile.BLKTYPE)], id="block device"),
        pytest.param([info("a", tarfile.FIFOTYPE)], id="fifo"),
        pytest.param([info("a", tarfile.GNUTYPE_SPARSE)], id="sparse"),
        pytest.param([info("a"), info("a")], id="the same file twice"),
        pytest.param([info("a"), info("a/b")], id="a file as a directory"),
        pytest.param([info("a/b"), info("a")], id="a directory as a file"),
        pytest.param([info("a"), info("a", tarfile.DIRTYPE)], id="a file, then a directory"),
        pytest.param([info("x" * 120 + "/../../y")], id="leaves the root by a PAX path"),
    ],
)
def test_an_unsafe_member_is_refused(members):
    with pytest.raises(UnsoundError, match="P104"):
        files_of(made(*[(member, b"") for member in members]))


@pytest.mark.parametrize("key", ["size", "GNU.sparse.major"])
def test_pax_records_that_change_the_content_are_refused(key):
    with pytest.raises(UnsoundError, match="P104"):
        files_of(made((info("a"), b"x"), pax={key: "1"}))


def test_pax_records_of_times_are_let_pass():
    assert files_of(made((info("a"), b"x"), pax={"mtime": "1.5"})) == {"a": b"x"}


@pytest.mark.parametrize("at", [0, 100, 124, 148, 156])
def test_an_altered_header_is_refused(at):
    tar = bytearray(made((info("a"), b"x")))
    tar[at] ^= 1
    with pytest.raises(UnsoundError, match="P103"):
        files_of(bytes(tar))


@given(st.binary(max_size=3000))
@settings(deadline=None)
def test_any_bytes_are_read_or_refused(data):
    with pytest.raises(UnsoundError):
        files_of(data + b"\1")


@given(st.integers(0, 2047), st.integers(1, 255))
@settings(deadline=None)
def test_a_tar_with_any_one_byte_altered_is_read_or_refused(at, change):
    tar = bytearray(tar_of({"a/b": b"x" * 10}, 0))
    tar[at] ^= change
    with contextlib.suppress(UnsoundError):
        assert set(files_of(bytes(tar))) == {"a/b"}
