"""What a registry names as an address and is none: an error of its, whatever is asked for."""

import contextlib

import pytest

from prewarm.core.errors import RegistryError
from prewarm.ship.blobs import download, upload
from prewarm.ship.manifests import get_manifest, tags

NO_ADDRESSES = ["http://[", "http://[::1", "https://]/"]


@pytest.fixture
def behind(plain_registry, start_proxy, repository_name, opened):
    """A proxy before the registry, and a repository that is reached through it."""
    front = start_proxy(plain_registry.host)
    return front, opened(f"{front.host}/{repository_name}")


@pytest.mark.parametrize("address", NO_ADDRESSES)
def test_a_redirect_to_none(behind, describe, faults, tmp_path, address):
    front, repository = behind
    front.fault("GET .*/blobs/", faults.redirect(address))
    with pytest.raises(RegistryError, match="which is no address"):
        download(repository, describe(b"x"), tmp_path / "blob")


@pytest.mark.parametrize("address", NO_ADDRESSES)
def test_an_upload_to_none(behind, describe, faults, tmp_path, address):
    front, repository = behind
    (tmp_path / "blob").write_bytes(b"x")
    front.fault("POST ", lambda handler, _: faults.answer(handler, 202, b"", Location=address))
    with pytest.raises(RegistryError, match="which is no address"):
        upload(repository, describe(b"x"), (tmp_path / "blob").open)


@pytest.mark.parametrize("address", NO_ADDRESSES)
def test_a_token_server_at_none(behind, faults, address):
    front, repository = behind
    challenge = {"WWW_Authenticate": f'Bearer realm="{address}"'}
    front.fault("manifests/", lambda handler, _: faults.answer(handler, 401, b"", **challenge))
    with pytest.raises(RegistryError, match="which is no address"):
        get_manifest(repository)


def test_a_next_page_at_none_is_asked_for_where_the_first_was(behind, faults):
    front, repository = behind
    body = b'{"tags": ["v1"]}'
    link = '<http://[/?last=v1>; rel="next"'
    front.fault("GET .*tags", lambda handler, _: faults.answer(handler, 200, body, Link=link))
    front.fault("GET .*last=v1", lambda handler, _: faults.answer(handler, 200, body))
    assert tags(repository) == ("v1",)
    assert front.count("GET .*last=v1") == 1


def test_what_comes_with_a_redirect_is_not_read(behind, faults, describe, tmp_path):
    front, repository = behind
    sent = []

    def endless(handler, _):
        handler.send_response(307)
        handler.send_header("Location", "/v2/")
        handler.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(64):
                handler.wfile.write(bytes(1 << 20))
                sent.append(1)

    front.fault("manifests/", endless)
    with pytest.raises(RegistryError):
        get_manifest(repository)
    assert len(sent) < 64
