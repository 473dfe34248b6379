"""Image references, as docker spells them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prewarm.core.digest import digest_of
from prewarm.core.errors import InputError
from prewarm.ship.reference import is_local, names_a_registry, parse_reference

DIGEST = digest_of(b"x")


@pytest.mark.parametrize(
    ("text", "host", "repository", "tag", "digest"),
    [
        ("busybox", "docker.io", "library/busybox", None, None),
        ("team/caches:v1", "docker.io", "team/caches", "v1", None),
        ("docker.io/busybox:1", "docker.io", "library/busybox", "1", None),
        ("index.docker.io/team/caches", "docker.io", "team/caches", None, None),
        ("r.example/a", "r.example", "a", None, None),
        ("r.example:5000/a/b/c:V1.0_x", "r.example:5000", "a/b/c", "V1.0_x", None),
        ("localhost/a", "localhost", "a", None, None),
        ("localhost:5000/a", "localhost:5000", "a", None, None),
        ("[::1]:5000/a:t", "[::1]:5000", "a", "t", None),
        ("docker://r.example/a", "r.example", "a", None, None),
        (f"r.example/a@{DIGEST}", "r.example", "a", None, DIGEST),
        (f"r.example/a:t@{DIGEST}", "r.example", "a", "t", DIGEST),
        ("r.example/a_b/c__d/e-f/g--h/i.j", "r.example", "a_b/c__d/e-f/g--h/i.j", None, None),
    ],
)
def test_every_spelling(text, host, repository, tag, digest):
    found = parse_reference(text)

    assert (found.host, found.repository) == (host, repository)
    assert (found.tag, found.digest) == (tag, digest)
    assert found.wanted == (digest or tag or "latest")
    assert parse_reference(str(found)) == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not a repository"),
        ("r.example/", "is not a repository"),
        ("r.example/Upper", "'Upper' is not a repository in lower case"),
        ("r.example/a//b", "is not a repository"),
        ("r.example/../etc/passwd", "is not a repository"),
        ("r.example/a b", "is not a repository"),
        ("r.example/" + "a" * 256, "is not a repository"),
        ("r.example/a:", "is not a tag"),
        ("r.example/a:-x", "is not a tag"),
        ("r.example/a:" + "x" * 129, "is not a tag"),
        ("r.example/a@sha256:12", "is not a sha256 digest"),
        ("r.example/a@sha512:" + "0" * 128, "is not a sha256 digest"),
        ("r.example:99999/a", "is not a host"),
        ("user@r.example/a", "is not a sha256 digest"),
        ("-r.example/a", "is not a host"),
        ("r.example:port/a", "is not a host"),
        ("https://r.example/a", "is not a host"),
    ],
)
def test_what_is_no_reference_is_bad_input_that_names_the_part(text, said):
    with pytest.raises(InputError, match=said):
        parse_reference(text)


def test_the_api_of_docker_hub_is_elsewhere():
    assert parse_reference("busybox").api_host == "registry-1.docker.io"
    assert parse_reference("r.example/a").api_host == "r.example"


def test_a_reference_by_digest():
    assert str(parse_reference("r.example/a:t").at(DIGEST)) == f"r.example/a@{DIGEST}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("r.example/a", True),
        ("localhost/a", True),
        ("127.0.0.1:5000/a:t", True),
        ("docker://busybox", True),
        ("busybox", False),
        ("image", False),
        ("out/image", False),
        ("./image", False),
        ("../image", False),
        ("/abs.olute/image", False),
        ("file.yaml", False),
    ],
)
def test_what_is_meant_as_a_reference_begins_with_a_host(text, expected):
    assert names_a_registry(text) is expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("localhost:5000", True),
        ("127.0.0.1:5000", True),
        ("127.9.9.9", True),
        ("[::1]:5000", True),
        ("10.0.0.1:5000", False),
        ("localhost.example", False),
        ("127.0.0.1.example", False),
    ],
)
def test_what_is_this_machine(host, expected):
    assert is_local(host) is expected


@given(st.text(max_size=80))
def test_any_text_is_a_reference_or_bad_input(text):
    try:
        found = parse_reference(text)
    except InputError:
        return
    assert parse_reference(str(found)) == found
