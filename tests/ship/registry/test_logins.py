"""Basic logins, tokens, TLS: shown to whom they belong to, and to nobody else."""

import io
import json
import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prewarm.cli import main
from prewarm.core.errors import HostError, InputError, RegistryError, TryAgainError
from prewarm.ship.blobs import download, has_blob, upload
from prewarm.ship.credentials import Credential, find_credential
from prewarm.ship.reference import parse_reference
from prewarm.ship.registry import open_repository
from prewarm.ship.tokens import parse_challenges
from prewarm.ship.transport import Connection, retry_after

DATA = b"some content"


def push(repository, blob, **how):
    return upload(repository, blob, lambda: io.BytesIO(DATA), **how)


@pytest.fixture
def locked(start_registry, htpasswd):
    """A registry that wants a basic login."""
    return start_registry(**htpasswd)


@pytest.fixture
def tokened(start_registry, token_server):
    """A registry that wants tokens."""
    return start_registry(**token_server.settings)


# Basic


def test_a_basic_login_of_the_docker_config_is_used(locked, log_in, opened, describe):
    log_in(locked.host)

    assert push(opened(f"{locked.host}/a/b"), describe(DATA)) == "uploaded"


def test_without_a_login_the_error_names_the_command(locked, opened, describe):
    with pytest.raises(RegistryError, match="wants a login") as caught:
        push(opened(f"{locked.host}/a/b"), describe(DATA))
    assert caught.value.hint == f"docker login {locked.host}"


def test_a_wrong_password_is_told_once_and_not_tried_again(
    locked, start_proxy, log_in, opened, describe
):
    proxy = start_proxy(locked.host)
    log_in(proxy.host, "a wrong one")

    with pytest.raises(RegistryError, match="answers 401") as caught:
        push(opened(f"{proxy.host}/a/b"), describe(DATA))
    assert "a wrong one" not in str(caught.value)
    assert proxy.count("HEAD") == 2


def test_a_netrc_is_not_read(locked, opened, describe, tmp_path):
    netrc = tmp_path / "home" / ".netrc"
    netrc.write_text("machine 127.0.0.1 login tester password a\n")
    netrc.chmod(0o600)

    with pytest.raises(RegistryError, match="wants a login"):
        push(opened(f"{locked.host}/a/b"), describe(DATA))


# Tokens


def test_one_token_for_pull_and_push_does_for_all(tokened, token_server, log_in, opened, describe):
    log_in(tokened.host)
    repository = opened(f"{tokened.host}/a/b")

    assert push(repository, describe(DATA)) == "uploaded"
    assert has_blob(repository, describe(DATA))
    assert [asked["scope"] for asked in token_server.asked] == [["repository:a/b:pull,push"]]


def test_anybody_pulls_and_nobody_pushes_without_a_login(
    tokened, token_server, log_in, opened, describe, tmp_path, monkeypatch
):
    log_in(tokened.host)
    push(opened(f"{tokened.host}/a/b"), describe(DATA))
    monkeypatch.delenv("DOCKER_CONFIG")

    download(opened(f"{tokened.host}/a/b", push=False), describe(DATA), tmp_path / "blob")
    assert (tmp_path / "blob").read_bytes() == DATA
    assert token_server.asked[-1]["scope"] == ["repository:a/b:pull"]
    with pytest.raises(RegistryError, match="401"):
        push(opened(f"{tokened.host}/a/c"), describe(DATA))


def test_a_mount_asks_for_both_repositories(tokened, token_server, log_in, opened, describe):
    log_in(tokened.host)
    push(opened(f"{tokened.host}/a/b"), describe(DATA))

    assert push(opened(f"{tokened.host}/a/c"), describe(DATA), mount_from="a/b") == "mounted"
    assert token_server.asked[-1]["scope"] == [
        "repository:a/c:pull,push",
        "repository:a/b:pull",
    ]


def test_a_token_that_has_run_out_is_replaced(tokened, token_server, log_in, opened, describe):
    log_in(tokened.host)
    token_server.lasts = 0
    repository = opened(f"{tokened.host}/a/b")

    assert push(repository, describe(DATA)) == "uploaded"
    assert len(token_server.asked) == 3


def test_an_identity_token_is_exchanged(tokened, token_server, log_in, opened, describe):
    log_in(tokened.host, identitytoken=token_server.refresh_token)

    assert push(opened(f"{tokened.host}/a/b"), describe(DATA)) == "uploaded"
    (asked,) = token_server.asked
    assert (asked["method"], asked["login"]) == ("POST", None)
    assert asked["grant_type"] == ["refresh_token"]


def test_a_token_server_that_refuses_is_an_error(tokened, log_in, opened, describe):
    log_in(tokened.host, "a wrong one")

    with pytest.raises(RegistryError, match="cannot get a token"):
        push(opened(f"{tokened.host}/a/b"), describe(DATA))


@pytest.mark.parametrize(
    ("challenge", "said"),
    [
        ("", "of a kind that prewarm does not know"),
        ("Negotiate", "of a kind that prewarm does not know"),
        ("Bearer", "names no server"),
        ('Bearer realm="file:///etc/passwd"', "without TLS"),
        ('Bearer realm="//"', "without TLS"),
        ("Basic " + "x" * 30_000, "wants a login"),
    ],
)
def test_a_challenge_that_makes_no_sense_is_an_error(
    proxy, opened, faults, describe, challenge, said
):
    proxy.fault("HEAD", faults.status(401, WWW_Authenticate=challenge), times=9)

    with pytest.raises(RegistryError, match=said):
        has_blob(opened(f"{proxy.host}/a/b"), describe(DATA))


@pytest.mark.parametrize(
    "answer", [b"", b"[]", b"{}", b'{"token": 1}', b'{"token": "a\\nb"}', b"[" * 99_999, b"\xff"]
)
def test_a_token_server_that_answers_no_token_is_an_error(proxy, opened, faults, describe, answer):
    challenge = f'Bearer realm="http://{proxy.host}/token",service="s"'
    proxy.fault("HEAD", faults.status(401, WWW_Authenticate=challenge), times=9)
    proxy.fault("GET /token", lambda handler, _: faults.answer(handler, 200, answer), times=9)

    with pytest.raises(RegistryError, match="answers no token"):
        has_blob(opened(f"{proxy.host}/a/b"), describe(DATA))


def test_challenges_are_read_in_every_spelling():
    header = 'Basic realm="a, b", Bearer realm="https://h/t?x=1",service=s , scope="a:b:c,d e"'

    assert [(each.scheme, each.values) for each in parse_challenges(header)] == [
        ("basic", {"realm": "a, b"}),
        ("bearer", {"realm": "https://h/t?x=1", "service": "s", "scope": "a:b:c,d e"}),
    ]


@given(st.text(max_size=200) | st.from_regex(r'([a-z]+ ?= ?"?[^,]*"?,? ?)+', fullmatch=True))
def test_any_header_is_read_as_challenges_or_none(header):
    for challenge in parse_challenges(header):
        assert challenge.scheme == challenge.scheme.lower()


@given(st.text(max_size=60))
def test_any_retry_after_is_seconds_or_nothing(value):
    found = retry_after(value)

    assert found is None or found >= 0


# TLS


@pytest.fixture
def tls(start_registry, htpasswd, authority):
    """A registry with TLS and a basic login."""
    certificates = {"certificate": str(authority.certificate), "key": str(authority.key)}
    return start_registry(**htpasswd, http={"tls": certificates})


@pytest.mark.parametrize("how", ["option", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_tls_with_an_authority_of_one_s_own(
    tls, log_in, authority, opened, describe, monkeypatch, how
):
    log_in(tls.host)
    connection = Connection(backoff=0.01, ca_file=str(authority.ca) if how == "option" else None)
    if how != "option":
        monkeypatch.setenv(how, str(authority.ca))
    repository = opened(f"{tls.host}/a/b", connection)

    assert push(repository, describe(DATA)) == "uploaded"
    assert repository.transport.base == f"https://{tls.host}"


def test_a_certificate_that_nobody_vouches_for_is_refused(tls, log_in, opened, describe):
    log_in(tls.host)

    with pytest.raises(RegistryError, match=r"certificate of .* is not trusted") as caught:
        push(opened(f"{tls.host}/a/b"), describe(DATA))
    assert "--ca-file" in caught.value.hint


def test_certificates_that_are_not_there_are_bad_input(tmp_path):
    connection = Connection(ca_file=str(tmp_path / "none.pem"))

    with pytest.raises(InputError, match="no certificates"):
        open_repository(parse_reference("127.0.0.1:1/a"), connection).__enter__()


def test_a_registry_elsewhere_is_never_asked_without_tls(opened):
    assert opened("registry.example/a/b").transport.base == "https://registry.example"
    plain = Connection(plain_http=True)
    assert opened("registry.example/a/b", plain).transport.base == "http://registry.example"


def test_the_verbs_take_the_certificates(tls, packed, log_in, authority, capsys):
    log_in(tls.host)
    argv = ["push", str(packed[0]), f"{tls.host}/a/b:v1"]

    assert main(argv) == 9
    assert "--ca-file CA.pem" in capsys.readouterr().err
    assert main([*argv, "--ca-file", str(authority.ca)]) == 0
    assert main(["list", f"{tls.host}/a/b", "--ca-file", str(authority.ca)]) == 0
    assert "v1" in capsys.readouterr().out


# Redirects


def test_a_redirect_takes_no_login_to_another_host(
    locked, start_proxy, log_in, opened, describe, faults, tmp_path
):
    log_in(locked.host)
    push(opened(f"{locked.host}/a/b"), describe(DATA))
    front, store = start_proxy(locked.host), start_proxy(locked.host)
    log_in(front.host)
    front.fault("GET .*/blobs/", faults.redirect(f"http://{store.host}PATH?signed=1"))
    store.fault("GET", lambda handler, _: faults.answer(handler, 200, DATA))

    repository = opened(f"{front.host}/a/b")
    assert has_blob(repository, describe(DATA))
    download(repository, describe(DATA), tmp_path / "blob")

    assert (tmp_path / "blob").read_bytes() == DATA
    assert [seen.headers.get("Authorization") for seen in store.seen] == [None]
    assert "Authorization" in front.seen[-1].headers


def test_another_host_that_wants_a_login_gets_none(
    plain_registry, repository_name, start_proxy, log_in, opened, describe, faults, tmp_path
):
    front, store = start_proxy(plain_registry.host), start_proxy(plain_registry.host)
    log_in(front.host)
    front.fault("GET .*/blobs/", faults.redirect(f"http://{store.host}PATH"))
    challenge = f'Bearer realm="http://{store.host}/token"'
    store.fault("GET", faults.status(401, WWW_Authenticate=challenge), times=9)

    with pytest.raises(RegistryError, match="401"):
        download(opened(f"{front.host}/{repository_name}"), describe(DATA), tmp_path / "blob")
    assert store.count("/token") == 0
    assert all("Authorization" not in seen.headers for seen in store.seen)


def test_a_redirect_back_is_shown_the_login_again(
    locked, start_proxy, log_in, opened, describe, faults, tmp_path
):
    front = start_proxy(locked.host)
    log_in(front.host)
    repository = opened(f"{front.host}/a/b")
    push(repository, describe(DATA))
    front.fault("GET .*/blobs/", faults.redirect("PATH?again=1"))

    download(repository, describe(DATA), tmp_path / "blob")

    assert "Authorization" in front.seen[-1].headers


def test_redirects_without_end_are_an_error(proxy, opened, describe, faults, tmp_path):
    proxy.fault("GET .*/blobs/", faults.redirect("PATH"), times=99)

    with pytest.raises(RegistryError, match="redirects again and again"):
        download(opened(f"{proxy.host}/a/b"), describe(DATA), tmp_path / "blob")
    assert proxy.count("GET .*/blobs/") == 6


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/x", "file:///etc/passwd", "http://127.0.0.1:1/x"])
def test_a_redirect_from_tls_to_something_less_is_refused(
    plain_registry, start_proxy, authority, opened, describe, faults, tmp_path, url
):
    proxy = start_proxy(plain_registry.host, authority)
    proxy.fault("GET .*/blobs/", faults.redirect(url))
    repository = opened(f"{proxy.host}/a/b", Connection(ca_file=str(authority.ca)))

    with pytest.raises(RegistryError, match="without TLS"):
        download(repository, describe(DATA), tmp_path / "blob")


def test_an_upload_that_is_sent_elsewhere_is_sent_whole_and_without_the_login(
    locked, plain_registry, repository_name, start_proxy, log_in, opened, describe, faults
):
    front = start_proxy(locked.host)
    log_in(front.host)
    store = start_proxy(plain_registry.host)
    front.fault("PUT .*/uploads/", faults.redirect(f"http://{store.host}PATH"))
    store.fault("PUT", faults.status(201))

    assert push(opened(f"{front.host}/a/b"), describe(DATA)) == "uploaded"
    (seen,) = store.seen
    assert seen.headers["Content-Length"] == str(len(DATA))
    assert "Authorization" not in seen.headers


# Where logins are kept


def write(path, **config):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config))


def found(reference, **environment):
    return find_credential(parse_reference(reference), environment)


AUTH = {"auth": "dXNlcjpwYXNzOndvcmQ="}
USER = Credential(username="user", password="pass:word")


@pytest.mark.parametrize(
    "key",
    [
        "registry.example",
        "https://registry.example",
        "https://registry.example/v1/",
        "registry.example/team",
        "registry.example/team/caches",
    ],
)
def test_the_key_of_a_login_may_be_a_host_a_url_or_a_path(tmp_path, key):
    write(tmp_path / "config.json", auths={key: AUTH, "other.example": {"auth": "eA=="}})

    there = {"DOCKER_CONFIG": str(tmp_path)}
    assert found("registry.example/team/caches:v1", **there) == USER
    assert found("registry.example:5000/team/caches", **there) is None


def test_the_login_that_names_more_of_the_repository_is_used(tmp_path):
    write(
        tmp_path / "config.json",
        auths={"r.example": {"username": "all", "password": "1"}, "r.example/team": AUTH},
    )

    there = {"DOCKER_CONFIG": str(tmp_path)}
    assert found("r.example/team/caches", **there) == USER
    assert found("r.example/other", **there).username == "all"


def test_docker_hub_has_a_key_of_its_own(tmp_path):
    write(tmp_path / "config.json", auths={"https://index.docker.io/v1/": AUTH})

    assert found("busybox", DOCKER_CONFIG=str(tmp_path)) == USER


@pytest.mark.parametrize(
    ("variable", "path"),
    [
        ("REGISTRY_AUTH_FILE", ""),
        ("DOCKER_CONFIG", "config.json"),
        ("XDG_RUNTIME_DIR", "containers/auth.json"),
        ("XDG_CONFIG_HOME", "containers/auth.json"),
        ("HOME", ".config/containers/auth.json"),
        ("HOME", ".docker/config.json"),
    ],
)
def test_every_place_is_looked_at(tmp_path, variable, path):
    file = tmp_path / "there" / path if path else tmp_path / "there"
    write(file, auths={"r.example": AUTH})

    assert found("r.example/a", **{variable: str(tmp_path / "there")}) == USER


def test_the_file_that_is_named_is_the_only_one(tmp_path):
    write(tmp_path / "config.json", auths={"r.example": AUTH})
    write(tmp_path / "named", auths={})

    there = {"DOCKER_CONFIG": str(tmp_path), "REGISTRY_AUTH_FILE": str(tmp_path / "named")}
    assert found("r.example/a", **there) is None


@pytest.mark.parametrize("text", ["", "[]", "{", '{"auths": {"r.example": {"auth": "?"}}}'])
def test_a_file_that_cannot_be_read_is_bad_input_and_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)

    with pytest.raises(InputError, match=str(tmp_path)):
        found("r.example/a", DOCKER_CONFIG=str(tmp_path))


HELPER = """#!/bin/sh
read -r host
case $host in
  r.example) echo '{"ServerURL": "r.example", "Username": "user", "Secret": "pass:word"}' ;;
  t.example) echo '{"Username": "<token>", "Secret": "refresh"}' ;;
  https://index.docker.io/v1/) echo '{"Username": "hub", "Secret": "s"}' ;;
  broken.example) echo 'no json' ;;
  sad.example) echo 'the key ring is locked'; exit 1 ;;
  *) echo 'credentials not found in native keychain'; exit 1 ;;
esac
"""


@pytest.fixture
def helper(tmp_path, monkeypatch):
    path = tmp_path / "bin" / "docker-credential-test"
    path.parent.mkdir()
    path.write_text(HELPER)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")


@pytest.mark.parametrize("how", ["credsStore", "credHelpers"])
def test_a_helper_is_asked(tmp_path, helper, how):
    hosts = ("r.example", "t.example", "none.example", "docker.io")
    value = "test" if how == "credsStore" else dict.fromkeys(hosts, "test")
    write(tmp_path / "config.json", auths={"r.example": {}}, **{how: value})

    there = {"DOCKER_CONFIG": str(tmp_path)}
    assert found("r.example/a", **there) == USER
    assert found("t.example/a", **there) == Credential(identity_token="refresh")
    assert found("busybox", **there) == Credential(username="hub", password="s")
    assert found("none.example/a", **there) is None


@pytest.mark.parametrize(
    ("name", "host", "error"),
    [
        ("test", "broken.example", HostError),
        ("test", "sad.example", HostError),
        ("missing", "r.example", HostError),
        ("../bin/sh", "r.example", InputError),
    ],
)
def test_a_helper_that_fails_is_named(tmp_path, helper, name, host, error):
    write(tmp_path / "config.json", credHelpers={host: name})

    with pytest.raises(error, match=name):
        found(f"{host}/a", DOCKER_CONFIG=str(tmp_path))


def test_a_credential_does_not_show_itself():
    assert "secret" not in repr(Credential(username="u", password="secret"))


# Passing faults


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_a_passing_fault_is_tried_again(proxy, opened, describe, faults, code):
    proxy.fault("HEAD", faults.status(code), times=4)

    assert not has_blob(opened(f"{proxy.host}/a/b"), describe(DATA))
    assert proxy.count("HEAD") == 5


def test_a_fault_that_does_not_pass_is_75_with_what_was_said(proxy, opened, describe, faults):
    proxy.fault("POST", faults.status(503), times=99)

    with pytest.raises(TryAgainError, match="answers 503: TEST made 503") as caught:
        push(opened(f"{proxy.host}/a/b"), describe(DATA))
    assert caught.value.exit_code == 75
    assert proxy.count("POST") == 5


def test_what_the_registry_asks_to_wait_is_waited(proxy, opened, describe, faults, monkeypatch):
    waited = []
    monkeypatch.setattr("prewarm.ship.transport.time.sleep", waited.append)
    proxy.fault("HEAD", faults.status(429, Retry_After="7"))
    proxy.fault("HEAD", faults.status(429, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"))
    proxy.fault("HEAD", faults.status(429, Retry_After="soon"))

    has_blob(opened(f"{proxy.host}/a/b"), describe(DATA))

    assert waited[0] == 7
    assert max(waited[1:]) < 1


def test_a_registry_that_asks_for_an_hour_is_not_waited_for(proxy, opened, describe, faults):
    proxy.fault("HEAD", faults.status(429, Retry_After="3600"), times=99)

    with pytest.raises(TryAgainError, match="429"):
        has_blob(opened(f"{proxy.host}/a/b"), describe(DATA))
    assert proxy.count("HEAD") == 1


@pytest.mark.parametrize("code", [400, 403, 405, 415, 451])
def test_a_refusal_is_9_and_not_tried_again(proxy, opened, describe, faults, code):
    proxy.fault("POST", faults.status(code), times=99)

    with pytest.raises(RegistryError, match=f"answers {code}: TEST made {code}") as caught:
        push(opened(f"{proxy.host}/a/b"), describe(DATA))
    assert caught.value.exit_code == 9
    assert proxy.count("POST") == 1


def test_what_a_registry_says_cannot_disturb_a_terminal(proxy, opened, describe, faults):
    def make(handler, _):
        evil = json.dumps({"errors": [{"code": "\x1b[2J", "message": "x" * 9000}]}).encode()
        handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        faults.answer(handler, 400, evil)

    proxy.fault("POST", make)

    with pytest.raises(RegistryError) as caught:
        push(opened(f"{proxy.host}/a/b"), describe(DATA))
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_host_that_is_not_there_is_75(opened, describe):
    quick = Connection(attempts=2, backoff=0.01, timeout=1)

    with pytest.raises(TryAgainError, match=r"127\.0\.0\.1:1 cannot be reached"):
        has_blob(opened("127.0.0.1:1/a/b", quick), describe(DATA))


def test_a_host_that_speaks_something_else_is_an_error(opened, describe):
    import socket
    import threading

    with socket.create_server(("127.0.0.1", 0)) as server:

        def speak():
            for _ in range(3):
                connection, _ = server.accept()
                with connection:
                    connection.recv(1000)
                    connection.sendall(b"220 mail.example ESMTP\r\n")

        thread = threading.Thread(target=speak, daemon=True)
        thread.start()
        plain = Connection(plain_http=True, attempts=3, backoff=0.01, timeout=2)
        with pytest.raises(TryAgainError, match="cannot be reached"):
            has_blob(opened(f"127.0.0.1:{server.getsockname()[1]}/a/b", plain), describe(DATA))
        thread.join()
