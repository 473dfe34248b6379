"""What a registry is shown: basic logins, or bearer tokens for exactly what is to be done."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable
from urllib.parse import urlencode

import msgspec

from prewarm.core.errors import RegistryError
from prewarm.core.record import Record
from prewarm.ship.credentials import Credential

_WORD = re.compile(r"[\s,]*([A-Za-z0-9_.~+/-]+)(?:\s*=\s*(\"(?:[^\"\\]|\\.)*\"|[^\s\",]*))?")
_CLIENT = "prewarm"
_MARGIN = 5.0
"""Seconds before its end at which a token is not used any more."""


class Challenge(Record, kw_only=True):
    """How a registry wants a request to be authorised."""

    scheme: str
    """In lower case: `bearer`, `basic`."""
    values: dict[str, str]


class _Token(msgspec.Struct, frozen=True):
    token: str | None = None
    access_token: str | None = None
    expires_in: float | None = None


class Tokens:
    """The Authorization headers for one registry, each for its scopes."""

    def __init__(
        self,
        credential: Callable[[], Credential | None],
        ask: Callable[[str, str, str, str | None], bytes],
    ) -> None:
        """Show `credential`; `ask(method, realm, form, header)` asks a token server."""
        self._credential = credential
        self._ask = ask
        self._known: list[Credential | None] = []
        self._held: dict[frozenset[str], tuple[str, float]] = {}
        self._basic: str | None = None

    def held(self, scopes: tuple[str, ...]) -> str | None:
        """Return the header that worked for `scopes` and still holds."""
        header, until = self._held.get(frozenset(scopes), (None, 0.0))
        return header if header is not None and time.monotonic() < until else self._basic

    def fetch(self, challenge: str, scopes: tuple[str, ...], host: str) -> str:
        """Return a new header for `scopes`, as the registry's `challenge` asks for it.

        Raises RegistryError where there is no login, or the challenge is of no known kind.
        """
        self._held.pop(frozenset(scopes), None)
        challenges = {each.scheme: each for each in parse_challenges(challenge)}
        if "bearer" in challenges:
            return self._bearer(challenges["bearer"], scopes, host)
        if "basic" in challenges:
            self._basic = self._login(host)
            return self._basic
        raise RegistryError(f"{host} wants a login of a kind that prewarm does not know")

    def _login(self, host: str) -> str:
        credential = self._own()
        if credential is None or credential.identity_token:
            raise RegistryError(f"{host} wants a login", f"docker login {host}")
        return _basic(credential)

    def _bearer(self, challenge: Challenge, scopes: tuple[str, ...], host: str) -> str:
        realm, service = challenge.values.get("realm", ""), challenge.values.get("service", "")
        if not realm:
            raise RegistryError(f"{host} wants a token and names no server that gives it")
        asked = scopes or tuple(challenge.values.get("scope", "").split())
        fields = [("service", service)] if service else []
        credential = self._own()
        if credential is not None and credential.identity_token:
            fields += [
                ("grant_type", "refresh_token"),
                ("client_id", _CLIENT),
                ("scope", " ".join(asked)),
                ("refresh_token", credential.identity_token),
            ]
            answer = self._ask("POST", realm, urlencode(fields), None)
        else:
            fields += [("scope", scope) for scope in asked]
            header = None if credential is None else _basic(credential)
            answer = self._ask("GET", realm, urlencode(fields), header)
        return self._keep(answer, scopes, host)

    def _keep(self, answer: bytes, scopes: tuple[str, ...], host: str) -> str:
        try:
            token = msgspec.json.decode(answer, type=_Token)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise RegistryError(f"the token server of {host} answers no token") from error
        text = token.token or token.access_token or ""
        if not text.isascii() or not text.isprintable() or not text:
            raise RegistryError(f"the token server of {host} answers no token")
        header = f"Bearer {text}"
        # 60 seconds is what the token protocol says where the server does not.
        lasts = 60.0 if token.expires_in is None else token.expires_in
        self._held[frozenset(scopes)] = (header, time.monotonic() + lasts - _MARGIN)
        return header

    def _own(self) -> Credential | None:
        if not self._known:
            self._known.append(self._credential())
        return self._known[0]


def parse_challenges(header: str) -> list[Challenge]:
    """Return the challenges in the header WWW-Authenticate."""
    found: list[Challenge] = []
    for word in _WORD.finditer(header):
        name, value = word[1], word[2]
        if value is None:
            found.append(Challenge(scheme=name.lower(), values={}))
        elif found:
            plain = re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value
            found[-1].values[name.lower()] = plain
    return found


def _basic(credential: Credential) -> str:
    plain = f"{credential.username}:{credential.password}".encode()
    return "Basic " + base64.b64encode(plain).decode()
