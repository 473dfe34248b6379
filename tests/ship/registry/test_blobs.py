"""Blobs against a real registry: resumed, mounted, checked, and nothing half-written."""

import io
import random
import time

import pytest

from prewarm.core.errors import HostError, IntegrityError, RegistryError, TryAgainError
from prewarm.ship.blobs import download, has_blob, read_blob, upload
from prewarm.ship.transport import Connection

DATA = random.Random(1).randbytes(3_000_000)


@pytest.fixture
def stored(plain_registry, repository_name, opened, describe):
    """A blob in the registry: its descriptor."""
    blob = describe(DATA)
    repository = opened(plain_registry.name(repository_name))
    assert upload(repository, blob, lambda: io.BytesIO(DATA)) == "uploaded"
    return blob


@pytest.fixture
def behind(proxy, repository_name, opened):
    """The repository as it is seen through the proxy."""
    return opened(f"{proxy.host}/{repository_name}")


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_blob_is_uploaded_once_and_comes_back(
    stored, plain_registry, repository_name, opened, tmp_path
):
    repository = opened(plain_registry.name(repository_name))

    assert has_blob(repository, stored)
    assert upload(repository, stored, lambda: io.BytesIO(DATA)) == "there"
    download(repository, stored, tmp_path / "out" / "blob")
    assert (tmp_path / "out" / "blob").read_bytes() == DATA
    assert names(tmp_path / "out") == ["blob"]
    assert read_blob(repository, stored, 4 << 20) == DATA


def test_a_blob_of_a_file_is_streamed(plain_registry, repository_name, opened, describe, tmp_path):
    data = random.Random(2).randbytes(200_000)
    (tmp_path / "data").write_bytes(data)
    repository = opened(plain_registry.name(repository_name))

    assert upload(repository, describe(data), lambda: (tmp_path / "data").open("rb")) == "uploaded"
    assert read_blob(repository, describe(data), 1 << 20) == data


def test_an_empty_blob_is_uploaded(plain_registry, repository_name, opened, describe):
    repository = opened(plain_registry.name(repository_name))

    assert upload(repository, describe(b""), lambda: io.BytesIO(b"")) == "uploaded"
    assert read_blob(repository, describe(b""), 10) == b""


@pytest.mark.parametrize("size", [500_000, 1_500_000, 3_000_000])
def test_an_upload_in_chunks(plain_registry, repository_name, opened, describe, size):
    repository = opened(plain_registry.name(f"{repository_name}"))
    done = upload(repository, describe(DATA), lambda: io.BytesIO(DATA), chunk=size)

    assert done == "uploaded"
    assert read_blob(repository, describe(DATA), 4 << 20) == DATA


def test_where_one_request_is_too_large_it_goes_in_chunks(proxy, behind, describe, faults):
    data = random.Random(3).randbytes(50_000)
    proxy.fault("PUT .*/uploads/", faults.status(413))

    assert upload(behind, describe(data), lambda: io.BytesIO(data)) == "uploaded"
    assert proxy.count("PATCH") == 1
    assert read_blob(behind, describe(data), 1 << 20) == data


def test_a_blob_of_another_repository_is_mounted(stored, proxy, repository_name, opened):
    other = opened(f"{proxy.host}/{repository_name}-other")
    done = upload(other, stored, lambda: io.BytesIO(DATA), mount_from=repository_name)

    assert done == "mounted"
    assert proxy.count("PUT|PATCH") == 0
    assert has_blob(other, stored)


def test_what_cannot_be_mounted_is_uploaded(proxy, behind, describe):
    data = random.Random(4).randbytes(1000)
    done = upload(behind, describe(data), lambda: io.BytesIO(data), mount_from="no/such")

    assert done == "uploaded"
    assert has_blob(behind, describe(data))


def test_an_upload_that_is_cut_begins_again(proxy, behind, describe, faults):
    data = random.Random(5).randbytes(300_000)
    proxy.fault("PUT .*/uploads/", faults.no_answer, times=2)

    assert upload(behind, describe(data), lambda: io.BytesIO(data)) == "uploaded"
    assert proxy.count("POST .*/uploads/") == 3
    assert read_blob(behind, describe(data), 1 << 20) == data


def test_an_upload_that_the_registry_finds_altered_is_an_error(behind, describe):
    wrong = describe(b"another content").__class__(
        media_type="a/b", digest=describe(b"another content").digest, size=7
    )

    with pytest.raises(RegistryError, match="DIGEST_INVALID"):
        upload(behind, wrong, lambda: io.BytesIO(b"content"))
    assert not has_blob(behind, wrong)


def test_a_download_that_is_cut_goes_on_where_it_was(stored, proxy, behind, faults, tmp_path):
    proxy.fault("GET .*/blobs/", faults.cut_after(1_000_000))
    proxy.fault("GET .*/blobs/", faults.cut_after(500_000))

    download(behind, stored, tmp_path / "out" / "blob")

    assert (tmp_path / "out" / "blob").read_bytes() == DATA
    ranges = [seen.headers.get("Range") for seen in proxy.seen if "/blobs/" in seen.path]
    assert ranges == [None, "bytes=1000000-", "bytes=1500000-"]


def test_a_later_download_goes_on_with_what_an_earlier_one_left(
    stored, proxy, behind, faults, tmp_path
):
    out = tmp_path / "out"
    proxy.fault("GET .*/blobs/", faults.cut_after(2_000_000))
    proxy.fault("GET .*/blobs/", faults.status(503), times=5)
    with pytest.raises(TryAgainError, match="503"):
        download(behind, stored, out / "blob")
    assert names(out) == [".blob.part"]

    download(behind, stored, out / "blob")

    assert names(out) == ["blob"]
    assert proxy.seen[-1].headers["Range"] == "bytes=2000000-"
    assert (out / "blob").read_bytes() == DATA


@pytest.mark.parametrize(
    "left",
    [
        pytest.param(b"?" * 1000, id="of something else"),
        pytest.param(DATA + b"more", id="too long"),
        pytest.param(b"?" * len(DATA), id="as long but wrong"),
    ],
)
def test_what_was_left_and_is_wrong_is_thrown_away(stored, behind, tmp_path, left):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".blob.part").write_bytes(left)

    download(behind, stored, out / "blob")

    assert (out / "blob").read_bytes() == DATA
    assert names(out) == ["blob"]


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"Content_Range": "bytes 0-2999999/3000000"}, id="another place"),
        pytest.param({"Content_Range": ""}, id="no place"),
        pytest.param({"Content_Range": "bytes -1-"}, id="nonsense"),
    ],
)
def test_a_range_that_begins_elsewhere_is_not_believed(
    stored, proxy, behind, faults, tmp_path, headers
):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".blob.part").write_bytes(DATA[:1000])
    whole = faults.changed(lambda body: DATA, **headers)
    proxy.fault("GET .*/blobs/", whole)

    download(behind, stored, out / "blob")

    assert (out / "blob").read_bytes() == DATA


def test_a_registry_that_knows_no_ranges_sends_all_of_it_again(
    stored, proxy, behind, faults, tmp_path
):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".blob.part").write_bytes(DATA[:1000])
    proxy.fault("GET .*/blobs/", faults.status(416))

    download(behind, stored, out / "blob")

    assert (out / "blob").read_bytes() == DATA
    assert [seen.headers.get("Range") for seen in proxy.seen[-2:]] == ["bytes=1000-", None]


def flip(body):
    return body[:-1] + bytes([body[-1] ^ 1])


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(flip, id="a wrong byte"),
        pytest.param(lambda body: body + b"x", id="too long"),
        pytest.param(lambda body: b"\x1f\x8b" + body[2:], id="other content"),
    ],
)
def test_bytes_that_are_wrong_are_refused_and_nothing_is_left(
    stored, proxy, behind, faults, tmp_path, change
):
    proxy.fault("GET .*/blobs/", faults.changed(change), times=10)

    with pytest.raises(IntegrityError):
        download(behind, stored, tmp_path / "out" / "blob")
    assert "blob" not in names(tmp_path / "out")
    with pytest.raises(IntegrityError):
        read_blob(behind, stored, 4 << 20)


def test_a_body_shorter_than_described_is_a_passing_fault(stored, proxy, behind, faults, tmp_path):
    proxy.fault("GET .*/blobs/", faults.changed(lambda body: b""), times=20)

    with pytest.raises(TryAgainError, match="only 0 of 3000000 bytes"):
        download(behind, stored, tmp_path / "out" / "blob")
    with pytest.raises(TryAgainError):
        read_blob(behind, stored, 4 << 20)
    assert proxy.count("GET .*/blobs/") == 10


def test_a_blob_that_is_said_to_be_larger_than_it_may_is_not_asked_for(proxy, behind, stored):
    with pytest.raises(IntegrityError, match="more than the 10"):
        read_blob(behind, stored, 10)
    assert proxy.seen == []


def test_a_server_that_falls_silent_is_a_passing_fault(
    stored, proxy, repository_name, opened, faults, tmp_path
):
    def silent(handler, _):
        time.sleep(2)

    proxy.fault("GET .*/blobs/", silent, times=2)
    impatient = Connection(timeout=0.2, attempts=2, backoff=0.01)
    repository = opened(f"{proxy.host}/{repository_name}", impatient)

    with pytest.raises(TryAgainError, match="cannot be reached"):
        download(repository, stored, tmp_path / "out" / "blob")


def test_a_slow_server_is_waited_for(stored, proxy, repository_name, opened, tmp_path):
    def slow(handler, passing):
        code, _, body = passing.passed_on(handler)
        handler.send_response(code)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        for at in range(0, len(body), 300_000):
            handler.wfile.write(body[at : at + 300_000])
            time.sleep(0.05)

    proxy.fault("GET .*/blobs/", slow)
    repository = opened(f"{proxy.host}/{repository_name}", Connection(timeout=0.4, attempts=1))

    download(repository, stored, tmp_path / "out" / "blob")

    assert (tmp_path / "out" / "blob").read_bytes() == DATA


def test_a_blob_that_is_there_is_not_fetched_again(stored, proxy, behind, tmp_path):
    download(behind, stored, tmp_path / "blob")
    asked = len(proxy.seen)
    download(behind, stored, tmp_path / "blob")

    assert len(proxy.seen) == asked
    (tmp_path / "blob").write_bytes(flip(DATA))
    download(behind, stored, tmp_path / "blob")
    assert (tmp_path / "blob").read_bytes() == DATA


def test_a_place_that_cannot_be_written_is_the_host_s_fault(stored, behind, tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(HostError, match="cannot write"):
        download(behind, stored, tmp_path / "file" / "blob")


def test_a_link_in_place_of_the_part_is_not_followed(stored, behind, tmp_path):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / ".blob.part").symlink_to(tmp_path / "victim")

    with pytest.raises(HostError):
        download(behind, stored, tmp_path / "blob")
    assert (tmp_path / "victim").read_text() == "mine"
