"""A real registry, its logins and certificates, and a proxy before it that makes faults.

The registry is Debian's docker-registry. It answers no 429 or 5xx, cuts no connection and sends
no wrong byte when asked to: for those faults, and for the referrers API that it lacks, a proxy
stands before it and passes on everything else.
"""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import http.client
import io
import ipaddress
import json
import re
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

from prewarm.core.digest import digest_of
from prewarm.ship.credentials import Credential
from prewarm.ship.image import INDEX_TYPE, Descriptor
from prewarm.ship.reference import Reference, parse_reference
from prewarm.ship.registry import open_repository
from prewarm.ship.transport import Connection

USER, PASSWORD = "tester", "a secret"
HTPASSWD = f"{USER}:$2y$05$qS4bVlg3LiOJXSXb23YUduf8Wn1WYKSw5aRMMAMdP09POoMsArXtq\n"


@pytest.fixture(autouse=True)
def _no_logins_of_the_developer(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


class Registry(NamedTuple):
    """A docker-registry that runs."""

    host: str
    storage: Path
    process: subprocess.Popen

    def name(self, repository: str) -> str:
        return f"{self.host}/{repository}"


@contextlib.contextmanager
def running(directory: Path, address: str = "127.0.0.1:0", **settings) -> Iterator[Registry]:
    """Yield a docker-registry that keeps its blobs in `directory`."""
    if shutil.which("docker-registry") is None:
        pytest.skip("docker-registry is not installed")
    directory.mkdir(parents=True, exist_ok=True)
    plain = {
        "version": "0.1",
        "log": {"level": "info"},
        "storage": {
            "filesystem": {"rootdirectory": str(directory / "storage")},
            "delete": {"enabled": True},
        },
        **settings,
    }
    plain["http"] = {"addr": address, "secret": "s", **settings.get("http", {})}
    (directory / "registry.yml").write_text(json.dumps(plain))
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", directory / "registry.yml"],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield Registry(_address(directory / "log", process), directory / "storage", process)
    finally:
        process.kill()
        process.wait()


def _address(log: Path, process: subprocess.Popen) -> str:
    """Return the address that the registry says it listens on."""
    while process.poll() is None:
        found = re.search(r'listening on ([0-9.]+:[0-9]+)(?:, tls)?"', log.read_text())
        if found:
            return found[1]
        time.sleep(0.01)
    raise AssertionError(log.read_text())


@pytest.fixture(scope="session")
def plain_registry(tmp_path_factory) -> Iterator[Registry]:
    """A registry without TLS or login, that tests of one process share."""
    with running(tmp_path_factory.mktemp("registry")) as found:
        yield found


@pytest.fixture
def start_registry(tmp_path):
    """The function that starts a registry of the test's own."""
    with contextlib.ExitStack() as stack:
        yield lambda **settings: stack.enter_context(running(tmp_path / "registry", **settings))


@pytest.fixture
def repository_name(request) -> str:
    """A repository of the test's own."""
    plain = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")
    return f"t/{plain[:40].strip('-')}-{digest_of(request.node.nodeid.encode())[7:15]}"


@pytest.fixture
def quick() -> Connection:
    """A connection that waits milliseconds between attempts."""
    return Connection(backoff=0.01, timeout=5)


@pytest.fixture
def opened(quick):
    """The function that opens a repository for pushing until the test ends."""
    with contextlib.ExitStack() as stack:

        def open_(name: str | Reference, connection: Connection = quick, *, push: bool = True):
            reference = parse_reference(name) if isinstance(name, str) else name
            return stack.enter_context(open_repository(reference, connection, push=push))

        yield open_


def blob_of(data: bytes) -> Descriptor:
    return Descriptor(media_type="application/octet-stream", digest=digest_of(data), size=len(data))


@pytest.fixture
def describe():
    """The function from bytes to their descriptor."""
    return blob_of


# Certificates and logins


class Authority(NamedTuple):
    """A certificate authority of the tests, and a server's certificate of its making."""

    ca: Path
    certificate: Path
    key: Path


def _certificate(subject: str, key, issuer: str, issuer_key, *, ca: bool) -> x509.Certificate:
    name, by = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, n)]) for n in (subject, issuer))
    now = dt.datetime.now(dt.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(by)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("localhost"), address]), critical=False
        )
    )
    return builder.sign(issuer_key, hashes.SHA256())


def _write_key(path: Path, key) -> None:
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


@pytest.fixture(scope="session")
def authority(tmp_path_factory) -> Authority:
    """A test authority; nothing on the machine trusts it."""
    directory = tmp_path_factory.mktemp("authority")
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = _certificate("prewarm test", ca_key, "prewarm test", ca_key, ca=True)
    certificate = _certificate("127.0.0.1", key, "prewarm test", ca_key, ca=False)
    made = Authority(directory / "ca.pem", directory / "server.pem", directory / "server.key")
    made.ca.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    made.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    _write_key(made.key, key)
    return made


@pytest.fixture
def log_in(tmp_path, monkeypatch):
    """The function that writes a docker config with a login for a host."""

    def write(host: str, password: str = PASSWORD, **other: str) -> Path:
        auth = base64.b64encode(f"{USER}:{password}".encode()).decode()
        directory = tmp_path / "docker"
        directory.mkdir(exist_ok=True)
        config = {"auths": {host: other or {"auth": auth}}}
        (directory / "config.json").write_text(json.dumps(config))
        monkeypatch.setenv("DOCKER_CONFIG", str(directory))
        return directory / "config.json"

    return write


@pytest.fixture
def credential() -> Credential:
    return Credential(username=USER, password=PASSWORD)


@pytest.fixture
def htpasswd(tmp_path) -> dict:
    """Settings of a registry that wants basic logins."""
    path = tmp_path / "htpasswd"
    path.write_text(HTPASSWD)
    return {"auth": {"htpasswd": {"realm": "r", "path": str(path)}}}


class TokenServer:
    """A token server as registries use them: scopes in, a signed token out.

    Everybody may pull, the tester may push. It keeps what it was asked.
    """

    def __init__(self, directory: Path) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = _certificate("tokens", self.key, "tokens", self.key, ca=True)
        self.bundle = directory / "tokens.pem"
        self.bundle.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        self.asked: list[dict] = []
        self.lasts = 300
        self.refresh_token = "the-refresh-token"
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.answer(self, parse_qs(urlsplit(self.path).query))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                server.answer(self, parse_qs(body))

            def log_message(self, *_) -> None:
                pass

        self.server = _Server(("127.0.0.1", 0), Handler)
        self.realm = f"http://127.0.0.1:{self.server.server_address[1]}/token"

    @property
    def settings(self) -> dict:
        token = {"realm": self.realm, "service": "s", "issuer": "i"}
        return {"auth": {"token": {**token, "rootcertbundle": str(self.bundle)}}}

    def answer(self, handler: BaseHTTPRequestHandler, query: dict) -> None:
        login = handler.headers.get("Authorization")
        self.asked.append({"method": handler.command, "login": login, **query})
        right = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        refresh = query.get("refresh_token")
        if login not in (None, right) or refresh not in (None, [self.refresh_token]):
            return _answer(handler, 401, b"{}")
        may_push = login is not None or refresh is not None
        scopes = [word for scope in query.get("scope", []) for word in scope.split()]
        token = self.token([_access(scope, may_push=may_push) for scope in scopes])
        name = "access_token" if refresh else "token"
        plain = {name: token, "expires_in": self.lasts}
        return _answer(handler, 200, json.dumps(plain).encode())

    def token(self, access: list[dict]) -> str:
        der = self.certificate.public_bytes(serialization.Encoding.DER)
        header = {"typ": "JWT", "alg": "ES256", "x5c": [base64.b64encode(der).decode()]}
        now = int(time.time())
        claims = {"iss": "i", "sub": USER, "aud": "s", "jti": "1", "access": access}
        claims |= {"exp": now + 300, "nbf": now - 10, "iat": now}
        signed = f"{_base64url(json.dumps(header))}.{_base64url(json.dumps(claims))}"
        r, s = decode_dss_signature(self.key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{_base64url(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def _access(scope: str, *, may_push: bool) -> dict:
    kind, name, actions = scope.split(":")
    asked = actions.split(",")
    return {"type": kind, "name": name, "actions": asked if may_push else ["pull"]}


def _base64url(data: str | bytes) -> str:
    raw = data.encode() if isinstance(data, str) else data
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _answer(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_) -> None:
        """A client that hangs up is what some tests are about."""


@contextlib.contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def token_server(tmp_path) -> Iterator[TokenServer]:
    made = TokenServer(tmp_path)
    with serving(made.server):
        yield made


# Faults


class Seen(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]


class Fault(NamedTuple):
    pattern: str
    """Of METHOD and path."""
    times: list[int]
    make: Callable


class Proxy:
    """Passes requests on to a registry, but for those that meet a fault."""

    def __init__(self, upstream: str, tls: Authority | None = None) -> None:
        self.upstream = upstream
        self.seen: list[Seen] = []
        self.faults: list[Fault] = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                proxy.handle(self)

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815

            def log_message(self, *_) -> None:
                pass

        self.server = _Server(("127.0.0.1", 0), Handler)
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls.certificate, tls.key)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.host = f"127.0.0.1:{self.server.server_address[1]}"

    def fault(self, pattern: str, make: Callable, times: int = 1) -> None:
        """Let `make(handler, passed_on)` answer the next `times` requests like `pattern`."""
        self.faults.append(Fault(pattern, [times], make))

    def count(self, pattern: str) -> int:
        return sum(bool(re.search(pattern, f"{s.method} {s.path}")) for s in self.seen)

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        self.seen.append(Seen(handler.command, handler.path, dict(handler.headers)))
        for fault in self.faults:
            if fault.times[0] > 0 and re.search(fault.pattern, f"{handler.command} {handler.path}"):
                fault.times[0] -= 1
                fault.make(handler, self)
                return
        status, headers, body = self.passed_on(handler)
        self.send(handler, status, headers, body)

    def passed_on(self, handler: BaseHTTPRequestHandler) -> tuple[int, list, bytes]:
        """Return what the registry answers."""
        length = int(handler.headers.get("Content-Length", 0))
        body = handler.rfile.read(length) if length else None
        connection = http.client.HTTPConnection(self.upstream, timeout=20)
        with contextlib.closing(connection):
            connection.putrequest(
                handler.command, handler.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in handler.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()

    @staticmethod
    def send(handler: BaseHTTPRequestHandler, status: int, headers: list, body: bytes) -> None:
        handler.send_response(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                handler.send_header(name, value)
        if not any(name.lower() == "content-length" for name, _ in headers):
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(body)


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    """Close the connection without another byte."""
    handler.wfile.flush()
    handler.close_connection = True
    with contextlib.suppress(OSError):
        handler.connection.shutdown(2)


def status(code: int, **headers: str) -> Callable:
    """A fault: answer with `code`, as registries do."""

    def make(handler, proxy) -> None:
        length = int(handler.headers.get("Content-Length", 0))
        handler.rfile.read(length)
        body = json.dumps({"errors": [{"code": "TEST", "message": f"made {code}"}]}).encode()
        _answer(handler, code, body, **headers)

    return make


def cut_after(size: int) -> Callable:
    """A fault: the connection ends after `size` bytes of the body that was announced."""

    def make(handler, proxy) -> None:
        code, headers, body = proxy.passed_on(handler)
        announced = [(name, value) for name, value in headers if name != "Content-Length"]
        announced.append(("Content-Length", str(len(body))))
        proxy.send(handler, code, announced, body[:size])
        hang_up(handler)

    return make


def changed(change: Callable[[bytes], bytes], **headers: str) -> Callable:
    """A fault: the body, or headers, are others than the registry's."""

    def make(handler, proxy) -> None:
        code, old, body = proxy.passed_on(handler)
        new = change(body)
        given = {name.replace("_", "-").lower(): value for name, value in headers.items()}
        kept = [(n, v) for n, v in old if n.lower() not in ("content-length", *given)]
        proxy.send(handler, code, [*kept, *((n, v) for n, v in given.items() if v)], new)

    return make


def no_answer(handler, proxy) -> None:
    """A fault: the connection ends before an answer."""
    hang_up(handler)


def redirect(url: str, code: int = 307) -> Callable:
    """A fault: what is asked for is elsewhere."""

    def make(handler, proxy) -> None:
        handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        _answer(handler, code, b"", Location=url.replace("PATH", handler.path))

    return make


class Faults(NamedTuple):
    status: Callable = staticmethod(status)
    cut_after: Callable = staticmethod(cut_after)
    changed: Callable = staticmethod(changed)
    no_answer: Callable = staticmethod(no_answer)
    redirect: Callable = staticmethod(redirect)
    answer: Callable = staticmethod(_answer)


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def start_proxy():
    """The function that puts a proxy before a registry until the test ends."""
    with contextlib.ExitStack() as stack:

        def start(upstream: str, tls: Authority | None = None) -> Proxy:
            made = Proxy(upstream, tls)
            stack.enter_context(serving(made.server))
            return made

        yield start


@pytest.fixture
def proxy(plain_registry, start_proxy) -> Proxy:
    """A proxy before the shared registry."""
    return start_proxy(plain_registry.host)


@pytest.fixture
def referrers_proxy(proxy) -> Proxy:
    """A proxy with the referrers API, which the registry behind it lacks."""
    there: dict[str, list[dict]] = {}

    def put(handler, proxy) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        handler.rfile = io.BytesIO(body)
        code, headers, answer = proxy.passed_on(handler)
        manifest = json.loads(body)
        if code == 201 and "subject" in manifest:
            subject = manifest["subject"]["digest"]
            entry = {"mediaType": manifest["mediaType"], "digest": digest_of(body)}
            entry |= {"size": len(body), "artifactType": manifest["artifactType"]}
            entry |= {"annotations": manifest.get("annotations", {})}
            there.setdefault(subject, []).append(entry)
            headers = [*headers, ("OCI-Subject", subject)]
        handler.close_connection = True
        proxy.send(handler, code, headers, answer)

    def get(handler, proxy) -> None:
        index = {"schemaVersion": 2, "mediaType": INDEX_TYPE}
        index["manifests"] = there.get(handler.path.rpartition("/")[2], [])
        body = json.dumps(index).encode()
        proxy.send(handler, 200, [("Content-Type", INDEX_TYPE)], body)

    proxy.fault("PUT .*/manifests/", put, times=1000)
    proxy.fault("GET .*/referrers/", get, times=1000)
    return proxy
