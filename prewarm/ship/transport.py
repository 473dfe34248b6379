"""HTTP to one registry: TLS, redirects, logins, retries, and what its errors mean.

Nothing that a registry sends is believed: bodies have limits, redirects an end, and what the
registry is shown to log in goes to no other host.
"""

from __future__ import annotations

import email.utils
import os
import random
import re
import ssl
import time
from collections.abc import Callable, Mapping
from typing import TypeVar
from urllib.parse import urljoin, urlsplit

import msgspec
import requests
import urllib3

import prewarm
from prewarm.core.errors import InputError, RegistryError, TryAgainError
from prewarm.core.record import Record
from prewarm.ship.credentials import Credential
from prewarm.ship.reference import is_local
from prewarm.ship.tokens import Tokens

T = TypeVar("T")

_REDIRECTS = {301, 302, 303, 307, 308}
_KEEP_METHOD = {307, 308}
_MOST_REDIRECTS = 5
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_ERROR_SIZE = 64 << 10
_PIECE = 1 << 20
_LONGEST_WAIT = 30.0


class Connection(Record, kw_only=True):
    """How a registry is reached."""

    plain_http: bool = False
    """Without TLS; registries on this machine are asked without it first in any case."""
    ca_file: str | None = None
    """Certificates of authorities, PEM; by default those that the environment names."""
    attempts: int = 5
    """How often a passing fault may follow another, before it is an error."""
    backoff: float = 0.5
    """Seconds before the second attempt, at most; twice as many before each further one."""
    patience: float = 120.0
    """Seconds that a registry may ask to be left alone for."""
    timeout: float = 60.0
    """Seconds that a registry may be silent."""


class NotThereError(RegistryError):
    """The registry has no such thing."""


class PassingError(TryAgainError):
    """A fault that the next attempt may not meet."""

    def __init__(self, message: str, hint: str | None = None, wait: float | None = None) -> None:
        super().__init__(message, hint)
        self.wait = wait
        """Seconds that the registry asks to be left alone for."""


class Call(Record, kw_only=True):
    """One request."""

    method: str
    url: str
    """Absolute, or a path below the registry."""
    doing: str
    """What is being done, for errors: `read the manifest v1`."""
    expect: tuple[int, ...] = (200,)
    headers: dict[str, str] = {}
    body: Callable[[], object] | None = None
    """Opens what is sent, anew for each attempt."""
    scopes: tuple[str, ...] = ()
    """What a token must allow."""


class _Session(requests.Session):
    """A session that leaves redirects alone.

    Even where it is not to follow one, requests reads the whole body that comes with it.
    """

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        return None


class Transport:
    """Requests to one registry."""

    def __init__(
        self, host: str, connection: Connection, credential: Callable[[], Credential | None]
    ) -> None:
        """Reach `host`; `credential` is asked once, when the registry wants a login."""
        self.host = host
        self.connection = connection
        self._session = _Session()
        # Else requests would send the login that ~/.netrc has for a host in place of ours.
        self._session.auth = _as_it_is
        self._session.headers["User-Agent"] = f"prewarm/{prewarm.__version__}"
        self._session.headers["Accept-Encoding"] = "identity"
        self._verify = _authorities(connection)
        self._tokens = Tokens(credential, self._ask_for_token)
        self._base: str | None = None

    def close(self) -> None:
        """Close every connection."""
        self._session.close()

    @property
    def base(self) -> str:
        """The registry's URL, found out once."""
        if self._base is None:
            plain = self.connection.plain_http or (is_local(self.host) and self._speaks_plain())
            self._base = f"{'http' if plain else 'https'}://{self.host}"
        return self._base

    def send(self, call: Call) -> requests.Response:
        """Return the answer to `call`, one of the statuses that it expects, not yet read.

        Raises NotThereError for 404, RegistryError where the registry refuses for good, and
        PassingError where it could not be asked, again and again.
        """
        return self.patiently(lambda: self.once(call))

    def patiently(self, attempt: Callable[[], T]) -> T:
        """Return what `attempt` returns, repeating it after passing faults."""
        for count in range(1, self.connection.attempts):
            try:
                return attempt()
            except PassingError as fault:
                self.wait(count, fault)
        return attempt()

    def wait(self, count: int, fault: PassingError) -> None:
        """Wait after the passing fault number `count`; raises it when that would be too long."""
        if fault.wait is not None and fault.wait > self.connection.patience:
            raise fault
        longest = min(_LONGEST_WAIT, self.connection.backoff * 2 ** (count - 1))
        jitter = longest * (0.5 + random.random() / 2)  # noqa: S311 (no secret)
        time.sleep(max(jitter, fault.wait or 0.0))

    def once(self, call: Call) -> requests.Response:
        """Return the answer to `call` as `send` does, without a second attempt."""
        response = self._follow(call, self._tokens.held(call.scopes))
        if response.status_code == 401 and self._is_home(response.url or ""):
            challenge = response.headers.get("WWW-Authenticate", "")
            response.close()
            header = self._tokens.fetch(challenge, call.scopes, self.host)
            response = self._follow(call, header)
        if response.status_code in call.expect:
            return response
        with response:
            raise self._problem(call, response)

    def read(self, response: requests.Response, limit: int, doing: str) -> bytes:
        """Return the body of `response`; raises RegistryError when it has more than `limit` bytes.

        Raises PassingError when the connection is cut.
        """
        body = bytearray()
        while piece := self.piece(response, doing):
            body += piece
            if len(body) > limit:
                raise RegistryError(f"{self.host} answers with more than {limit} bytes to {doing}")
        length = response.headers.get("Content-Length", "")
        if length.isdecimal() and response.request.method != "HEAD" and len(body) < int(length):
            raise self._cut(doing, f"{len(body)} of {length} bytes came")
        return bytes(body)

    def piece(self, response: requests.Response, doing: str) -> bytes:
        """Return the next bytes of a body as they were sent, none at its end."""
        try:
            found: bytes = response.raw.read(_PIECE, decode_content=False)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise self._cut(doing, _reason(error)) from error
        return found

    def _follow(self, call: Call, authorization: str | None) -> requests.Response:
        """Return the answer at the end of all redirects."""
        url = urljoin(self.base, call.url)
        for _ in range(_MOST_REDIRECTS + 1):
            self._check_scheme(url, call.doing)
            headers = dict(call.headers)
            if authorization is not None and self._is_home(url):
                headers["Authorization"] = authorization
            response = self._exchange(call, url, headers)
            location = response.headers.get("Location")
            if response.status_code not in _REDIRECTS or not location:
                return response
            response.close()
            if call.method not in ("GET", "HEAD") and response.status_code not in _KEEP_METHOD:
                raise RegistryError(f"{self.host} redirects the request to {call.doing}")
            url = joined(url, location, call.doing)
        raise RegistryError(f"{self.host} redirects again and again: cannot {call.doing}")

    def _exchange(self, call: Call, url: str, headers: Mapping[str, str]) -> requests.Response:
        where = urlsplit(url).netloc.rpartition("@")[2]
        try:
            return self._session.request(
                call.method,
                url,
                headers=dict(headers),
                data=None if call.body is None else call.body(),  # type: ignore[arg-type]
                allow_redirects=False,
                stream=True,
                verify=self._verify,
                timeout=(min(15.0, self.connection.timeout), self.connection.timeout),
            )
        except requests.exceptions.SSLError as error:
            if _has(error, ssl.SSLCertVerificationError):
                raise RegistryError(
                    f"the certificate of {where} is not trusted: {_reason(error)}",
                    "--ca-file CA.pem, or export SSL_CERT_FILE=CA.pem",
                ) from error
            raise self._unreachable(call, where, error) from error
        except (requests.exceptions.ConnectionError, requests.exceptions.Timeout) as error:
            raise self._unreachable(call, where, error) from error
        except OSError as error:
            if isinstance(error, requests.exceptions.RequestException):
                raise RegistryError(f"cannot {call.doing} at {where}: {_reason(error)}") from error
            raise InputError(f"cannot use the certificates: {error}", "--ca-file CA.pem") from error
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            raise RegistryError(f"cannot {call.doing} at {where}: {_reason(error)}") from error

    def _unreachable(self, call: Call, where: str, error: Exception) -> PassingError:
        return PassingError(
            f"cannot {call.doing}: {where} cannot be reached: {_reason(error)}",
            "check the host's name and the network, then run the same command again",
        )

    def _cut(self, doing: str, why: str) -> PassingError:
        return PassingError(f"cannot {doing}: the connection to {self.host} was cut: {why}")

    def _speaks_plain(self) -> bool:
        """Return whether the registry on this machine answers without TLS.

        Asked without any login. A server that wants TLS answers 400 to plain HTTP, or hangs up.
        """
        probe = Call(method="GET", url="/v2/", doing="reach the registry")
        try:
            with self._exchange(probe, f"http://{self.host}/v2/", {}) as response:
                return response.status_code != 400
        except PassingError as error:
            if _has(error, ConnectionRefusedError):
                raise
            return False

    def _check_scheme(self, url: str, doing: str) -> None:
        scheme = urlsplit(joined(url, "", doing)).scheme
        if scheme == "https" or (scheme == "http" and self.base.startswith("http:")):
            return
        raise RegistryError(f"{self.host} wants to {doing} without TLS, at {_bare(url)}")

    def _is_home(self, url: str) -> bool:
        ours, theirs = urlsplit(self.base), urlsplit(url)
        return (ours.scheme, _with_port(ours)) == (theirs.scheme, _with_port(theirs))

    def _problem(self, call: Call, response: requests.Response) -> Exception:
        status = response.status_code
        said = self._said(response)
        told = f"cannot {call.doing}: {self.host} answers {status}{said}"
        if status in _PASSING:
            return PassingError(told, None, retry_after(response.headers.get("Retry-After")))
        if status == 404:
            return NotThereError(told)
        if status in (401, 403):
            return RegistryError(told, f"docker login {self.host}, as a user who may do that")
        return RegistryError(told)

    def _said(self, response: requests.Response) -> str:
        try:
            body = self.read(response, _ERROR_SIZE, "read an error")
            errors = msgspec.json.decode(body, type=_Errors).errors
        except (PassingError, RegistryError, msgspec.MsgspecError, RecursionError, ValueError):
            return ""
        words = "; ".join(f"{each.code} {each.message or ''}".strip() for each in errors)
        return f": {_printable(words)}" if words else ""

    def _ask_for_token(self, method: str, realm: str, form: str, header: str | None) -> bytes:
        """Return what the token server at `realm` answers."""
        doing = f"get a token for {self.host}"
        self._check_scheme(realm, doing)
        headers = {} if header is None else {"Authorization": header}
        url = realm
        if method == "POST":
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        else:
            url = f"{realm}{'&' if '?' in realm else '?'}{form}"
        call = Call(
            method=method, url=url, doing=doing, body=form.encode if method == "POST" else None
        )
        with self._exchange(call, url, headers) as response:
            if response.status_code != 200:
                raise self._problem(call, response)
            return self.read(response, _ERROR_SIZE << 2, doing)


class _Problem(msgspec.Struct, frozen=True):
    code: str = ""
    message: str | None = None


class _Errors(msgspec.Struct, frozen=True):
    errors: tuple[_Problem, ...] = ()


def joined(url: str, location: str, doing: str) -> str:
    """Return where `location` leads from `url`; raises RegistryError where it is no address."""
    try:
        found = urljoin(url, location)
        urlsplit(found)
    except ValueError as error:
        where = _printable(location[:80])
        raise RegistryError(f"cannot {doing} at {where!r}, which is no address") from error
    return found


def retry_after(value: str | None) -> float | None:
    """Return the seconds that the header Retry-After asks for, None where it asks for nothing."""
    if not value:
        return None
    if value.strip().isdecimal() and len(value) < 10:
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _authorities(connection: Connection) -> bool | str:
    """Return what requests must hold certificates against.

    Told with each request: else REQUESTS_CA_BUNDLE would overrule what was asked for.
    """
    named = (connection.ca_file, os.environ.get("SSL_CERT_FILE"))
    found = next((name for name in named if name), None)
    if found is not None and not os.path.exists(found):
        raise InputError(f"there are no certificates at {found}", "--ca-file CA.pem")
    return found or True


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _with_port(parts: object) -> tuple[str | None, int | None]:
    from_scheme = {"http": 80, "https": 443}
    try:
        port = parts.port  # type: ignore[attr-defined]
    except ValueError:
        return None, None
    return parts.hostname, port or from_scheme.get(parts.scheme)  # type: ignore[attr-defined]


def _bare(url: str) -> str:
    """Return `url` without its query, which may be signed, and without a login."""
    parts = urlsplit(url)
    return _printable(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}")


def _reason(error: BaseException) -> str:
    """Return the innermost reason, without the URL that outer ones quote."""
    inner = error
    while True:
        cause = getattr(inner, "reason", None)
        if not isinstance(cause, BaseException):
            cause = next((arg for arg in inner.args if isinstance(arg, BaseException)), None)
        if cause is None or cause is inner:
            break
        inner = cause
    said = str(inner.args[-1]) if isinstance(inner, OSError) and inner.args else str(inner)
    return _printable(re.sub(r"^<[^>]*>:? ?|^\w*Connection\([^)]*\): ", "", said))


def _has(error: BaseException, kind: type[BaseException]) -> bool:
    seen: list[BaseException] = [error]
    for each in seen:
        if isinstance(each, kind):
            return True
        inner = [each.__cause__, each.__context__, getattr(each, "reason", None), *each.args]
        seen += [one for one in inner if isinstance(one, BaseException) and one not in seen]
    return False


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)[:300]
