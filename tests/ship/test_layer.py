"""The tar of a cache tree, there and back."""

import gzip
import io
import random
import subprocess
import tarfile
import unicodedata

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
    source_date_epoch,
    tar_of,
)
from prewarm.ship.members import files_of

FILES = {"a/b/one": b"1" * 700, "a/two": b"", "c/" + "long" * 40: b"\0\1\2"}

parts = st.text(st.characters(exclude_characters="/\\", codec="utf-8"), min_size=1, max_size=40)


def folded(name):
    return unicodedata.normalize("NFC", name.casefold())


names = parts.map(folded).filter(
    lambda name: name.isprintable() and name not in (".", "..") and folded(name) == name
)
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


@pytest.mark.parametrize("cut", [1, 4, 40])
def test_zstd_that_is_cut_short_is_refused(cut):
    tar = random.Random(1).randbytes(5000)
    blob = zstandard.ZstdCompressor(write_checksum=True).compress(tar)
    with pytest.raises(UnsoundError, match="cut short"):
        decompress(blob[:-cut], ZSTD, 5000)


def zstd(data):
    return zstandard.ZstdCompressor().compress(data)


@pytest.mark.parametrize("rest", [b"x", b"\0" * 2000, "again"])
@pytest.mark.parametrize(("media_type", "packed"), [(GZIP, compress), (ZSTD, zstd)])
def test_what_follows_the_compressed_data_is_refused(media_type, packed, rest):
    """An engine reads on in a second gzip member, or a second frame, and finds another tar."""
    more = packed(b"more") if rest == "again" else rest
    with pytest.raises(UnsoundError, match=f"found {len(more)} bytes after its end"):
        decompress(packed(b"x" * 5000) + more, media_type, 5000)


@pytest.mark.parametrize(("media_type", "packed"), [(GZIP, compress), (ZSTD, zstd)])
def test_a_layer_that_grows_as_no_cache_does_is_refused_unread(media_type, packed):
    size = 200 << 20
    blob = packed(bytes(size))
    with pytest.raises(UnsoundError, match="expected at most 250 times what"):
        decompress(blob, media_type, size)


def test_a_small_layer_may_be_packed_as_well_as_can_be():
    size = 8 << 20
    assert decompress(zstd(bytes(size)), ZSTD, size) == bytes(size)
