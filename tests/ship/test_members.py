"""The tar of a layer as an attacker would make it: refused by name, or read as others read it."""

import contextlib
import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prewarm.core.finding import UnsoundError
from prewarm.ship.layer import tar_of
from prewarm.ship.members import MOST_MEMBERS, files_of

FILES = {"a/b/one": b"1" * 700, "a/two": b"", "c/" + "long" * 40: b"\0\1\2"}
END = bytes(1024)


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


def info(name, kind=tarfile.REGTYPE, link="", mode=0o644):
    found = tarfile.TarInfo(name)
    found.type, found.linkname, found.mode = kind, link, mode
    return found


def header(  # noqa: PLR0917
    name=b"a", kind=b"0", size=b"00000000000", magic=b"ustar\x0000", prefix=b"", mode=0o644
):
    """Return a header that `tarfile` would not write, its check sum right."""
    fields = (
        name.ljust(100, b"\0"), b"%07o\0" % mode, b"0000000\0", b"0000000\0",
        size.ljust(12, b"\0"), b"00000000000\0", b" " * 8, kind, bytes(100), magic, bytes(80),
        prefix.ljust(155, b"\0"), bytes(12),
    )  # fmt: skip
    plain = b"".join(fields)
    assert len(plain) == 512
    return plain[:148] + b"%06o\0 " % sum(plain) + plain[156:]


def record(key, value):
    """Return a PAX record."""
    body = b" " + key + b"=" + value + b"\n"
    length = len(body) + 2
    return b"%02d" % length + body if length < 100 else b"%03d" % (length + 1) + body


def pax(data):
    return header(b"pax", b"x", b"%011o" % len(data)) + data.ljust(
        -(-len(data) // 512) * 512, b"\0"
    )


@pytest.mark.parametrize(
    ("members", "found"),
    [
        pytest.param([info("../out")], "a path that leaves it", id="leaves the root"),
        pytest.param([info("a/../../out")], "a path that leaves it", id="leaves it further in"),
        pytest.param([info("/etc/passwd")], "a path that leaves it", id="absolute"),
        pytest.param([info("a//b")], "a path that leaves it", id="empty part"),
        pytest.param([info("./a")], "a path that leaves it", id="dot"),
        pytest.param([info("x" * 120 + "/../../y")], "a path that leaves it", id="by a PAX path"),
        pytest.param([info("a", tarfile.SYMTYPE, "/etc")], "a symbolic link", id="link"),
        pytest.param(
            [info("a", tarfile.SYMTYPE, "/etc"), info("a/passwd")],
            "a symbolic link",
            id="written through a link",
        ),
        pytest.param([info("a", tarfile.LNKTYPE, "../b")], "a hard link", id="hard link"),
        pytest.param([info("a", tarfile.CHRTYPE)], "a character device", id="character device"),
        pytest.param([info("a", tarfile.BLKTYPE)], "a block device", id="block device"),
        pytest.param([info("a", tarfile.FIFOTYPE)], "a fifo", id="fifo"),
        pytest.param([info("a", tarfile.GNUTYPE_SPARSE)], "a sparse file", id="sparse"),
        pytest.param([info("a", tarfile.CONTTYPE)], "a member of type b'7'", id="contiguous"),
        pytest.param([info("a"), info("a")], "the same path again", id="file twice"),
        pytest.param(
            [info("a", tarfile.DIRTYPE), info("a", tarfile.DIRTYPE)],
            "the same path again",
            id="directory twice",
        ),
        pytest.param([info("a"), info("a/b")], "the same path again", id="file as directory"),
        pytest.param([info("a/b"), info("a")], "the same path again", id="directory as file"),
        pytest.param(
            [info("a"), info("a", tarfile.DIRTYPE)], "the same path again", id="file, directory"
        ),
        pytest.param([info("a/B"), info("a/b")], "more than their case, found 'a/B'", id="case"),
        pytest.param([info("A/x"), info("a/y")], "their case, found 'A'", id="case of directories"),
        pytest.param(
            [info("\u00e9"), info("e\u0301")], "more than their case", id="two normal forms"
        ),
        pytest.param([info("a", mode=0o4755)], "the set-user-ID bit", id="setuid"),
        pytest.param([info("a", mode=0o2755)], "the set-group-ID bit", id="setgid"),
        pytest.param([info("a", tarfile.DIRTYPE, mode=0o1777)], "the sticky bit", id="sticky"),
        pytest.param([info("a/.wh.b")], "a whiteout", id="whiteout"),
        pytest.param([info("a/.wh..wh..opq")], "a whiteout", id="opaque whiteout"),
        pytest.param([info(".wh.a/b")], "a whiteout", id="whiteout of a directory"),
        pytest.param([info("a\nb")], "control characters", id="newline"),
        pytest.param([info("a\x1b[2Jb")], "control characters", id="escape"),
        pytest.param([info("a\u202eb")], "control characters", id="right to left"),
        pytest.param([info("x" * 256)], "a longer or deeper one", id="long name"),
        pytest.param([info("é" * 128)], "a longer or deeper one", id="long in bytes"),
        pytest.param([info("/".join(["y" * 200] * 6))], "a longer or deeper one", id="long path"),
        pytest.param([info("/".join("abcdefghijklmnopq"))], "a longer or deeper one", id="deep"),
    ],
)
def test_an_unsafe_member_is_refused_by_name(members, found):
    with pytest.raises(UnsoundError, match="P104") as caught:
        files_of(made(*[(member, b"") for member in members]))
    assert found in caught.value.message


@pytest.mark.parametrize(
    ("tar", "found"),
    [
        pytest.param(header(b"\xff\xfe"), "P104 .* a name in UTF-8", id="not UTF-8"),
        pytest.param(
            pax(record(b"path", b"\xff")) + header(), "P104 .* a name in UTF-8", id="PAX not UTF-8"
        ),
        pytest.param(header(b"a/", b"0"), "P104 .* the name of a directory", id="file a/"),
        pytest.param(
            header(b"a", b"5", b"00000000010") + bytes(512),
            "P104 .* a directory with content",
            id="directory with content",
        ),
        pytest.param(header(b"a", b"g"), "P104 .* a PAX header for every member", id="global"),
        pytest.param(header(b"a", b"L"), "P104 .* a long name of GNU tar", id="GNU name"),
        pytest.param(header(b"a", b"K"), "P104 .* a long link name of GNU tar", id="GNU link"),
        pytest.param(
            header(b"a", b"S", b"77777777777"), "P104 .* a sparse file", id="huge GNU sparse"
        ),
        pytest.param(
            header(b"a", b"0", b"77777777777"), "P103 .* cut short", id="more than there is"
        ),
        pytest.param(
            header(b"a", b"0", b"\x80\0\0\0\0\0\0\xff\0\0\0\0"), "P103 .* octal", id="binary size"
        ),
        pytest.param(header(b"a", b"0", b"\xff" * 12), "P103 .* octal figures", id="negative size"),
        pytest.param(header(magic=b"ustar  \0"), "P103 .* a tar of POSIX", id="GNU magic"),
        pytest.param(header(magic=bytes(8)), "P103 .* a tar of POSIX", id="no magic"),
        pytest.param(header(b"a", prefix=b".."), "P104 .* leaves", id="prefix that leaves"),
        pytest.param(header() + bytes(512) + header(b"b"), "P103 .* more data", id="after the end"),
        pytest.param(header() + END + b"x", "P103 .* more data", id="bytes after the end"),
        pytest.param(pax(record(b"path", b"b")), "P103 .* cut short", id="PAX of nothing"),
        pytest.param(
            pax(record(b"path", b"b")) * 2 + header(), "P104 .* found two", id="two PAX headers"
        ),
        pytest.param(pax(b"9" * 70_000) + header(), "P104 .* at most 65536", id="large PAX"),
        pytest.param(pax(b"9" * 5000) + header(), "P103 .* PAX records", id="PAX all figures"),
        pytest.param(pax(b"0 path=b\n") + header(), "P103 .* PAX records", id="PAX of length 0"),
        pytest.param(pax(b"99 path=b\n") + header(), "P103 .* PAX records", id="PAX too long"),
        pytest.param(pax(b"9 path=b?") + header(), "P103 .* PAX records", id="PAX of no line"),
        pytest.param(pax(b"9 path,b\n") + header(), "P103 .* PAX records", id="PAX of no value"),
        pytest.param(
            pax(record(b"size", b"99999999999")) + header(), "P104 .* a size in PAX", id="PAX size"
        ),
        pytest.param(
            pax(record(b"GNU.sparse.realsize", b"1099511627776")) + header(),
            "P104 .* a sparse file",
            id="PAX sparse",
        ),
        pytest.param(
            pax(record(b"path", b"../../etc/x")) + header(), "P104 .* leaves", id="PAX path"
        ),
        pytest.param(
            pax(record(b"path", b"a\0b")) + header(), "P104 .* leaves", id="PAX path with NUL"
        ),
    ],
)
def test_a_header_made_by_hand_is_refused_by_name(tar, found):
    with pytest.raises(UnsoundError, match=found):
        files_of(tar + END)


def test_no_more_members_are_read_than_a_cache_may_have():
    tar = b"".join(header(b"%d" % number) for number in range(MOST_MEMBERS + 1))
    with pytest.raises(UnsoundError, match=f"at most {MOST_MEMBERS} members, found more"):
        files_of(tar + END)


@pytest.mark.parametrize("key", ["size", "GNU.sparse.major"])
def test_pax_records_that_change_the_content_are_refused(key):
    with pytest.raises(UnsoundError, match="P104"):
        files_of(made((info("a"), b"x"), pax={key: "1"}))


def test_pax_records_of_times_are_let_pass():
    assert files_of(made((info("a"), b"x"), pax={"mtime": "1.5"})) == {"a": b"x"}


def test_a_pax_path_counts_for_one_member():
    tar = pax(record(b"path", b"b")) + header() + header() + END
    assert files_of(tar) == {"b": b"", "a": b""}


def test_a_directory_may_be_named_after_what_is_in_it():
    assert files_of(made((info("a/b"), b"x"), (info("a", tarfile.DIRTYPE), b""))) == {"a/b": b"x"}


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
