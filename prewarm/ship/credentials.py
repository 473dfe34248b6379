"""Credentials for registries, where docker and podman keep them.

Read, in this order: the file that REGISTRY_AUTH_FILE names and no other; else `config.json` in
DOCKER_CONFIG, podman's `auth.json`, `~/.docker/config.json`. Within a file a credential helper
for the host comes first, then `auths`, then the helper for all hosts.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from prewarm.core.errors import HostError, InputError
from prewarm.core.record import Record
from prewarm.ship.reference import DOCKER_HUB, Reference

_HUB_KEYS = ("index.docker.io", "registry-1.docker.io")
_HUB_SERVER = "https://index.docker.io/v1/"
_TOKEN_USER = "<token>"  # noqa: S105 (how helpers mark that the secret is an identity token)
_HELPER = re.compile(r"[A-Za-z0-9_-]+")
_HELPER_SECONDS = 60


class Credential(Record, kw_only=True):
    """What a registry, or its token server, is shown."""

    username: str = ""
    password: str = ""
    identity_token: str = ""
    """An OAuth2 refresh token, to be exchanged at the token server."""

    def __repr__(self) -> str:
        """Return nothing that a log must not hold."""
        return "Credential(…)"


class _Auth(msgspec.Struct, frozen=True):
    auth: str = ""
    username: str = ""
    password: str = ""
    identitytoken: str = ""


class _Config(msgspec.Struct, frozen=True, rename="camel"):
    auths: dict[str, _Auth] = {}
    cred_helpers: dict[str, str] = {}
    creds_store: str = ""


class _Answer(msgspec.Struct, frozen=True, rename="pascal"):
    username: str = ""
    secret: str = ""


def find_credential(
    reference: Reference, environment: Mapping[str, str] = os.environ
) -> Credential | None:
    """Return the credential for `reference`, None where there is none.

    Raises InputError for a file that cannot be read, HostError for a helper that fails.
    """
    for path in _files(environment):
        if path.exists():
            found = _in_file(path, reference)
            if found is not None:
                return found
    return None


def _files(environment: Mapping[str, str]) -> Iterator[Path]:
    named = environment.get("REGISTRY_AUTH_FILE")
    if named:
        yield Path(named)
        return
    if environment.get("DOCKER_CONFIG"):
        yield Path(environment["DOCKER_CONFIG"], "config.json")
    if environment.get("XDG_RUNTIME_DIR"):
        yield Path(environment["XDG_RUNTIME_DIR"], "containers", "auth.json")
    home = environment.get("HOME")
    if environment.get("XDG_CONFIG_HOME"):
        yield Path(environment["XDG_CONFIG_HOME"], "containers", "auth.json")
    elif home:
        yield Path(home, ".config", "containers", "auth.json")
    if home:
        yield Path(home, ".docker", "config.json")


def _in_file(path: Path, reference: Reference) -> Credential | None:
    try:
        config = msgspec.json.decode(path.read_bytes(), type=_Config)
    except (OSError, msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot read the registry credentials in {path}: {error}",
            "mend the file, or name another one with REGISTRY_AUTH_FILE",
        ) from error
    helper = _of_host(config.cred_helpers, reference.host)
    if helper is not None:
        return _ask(helper, reference.host)
    auth = _most_specific(config.auths, reference)
    if auth is not None:
        return _decoded(auth, path)
    return _ask(config.creds_store, reference.host) if config.creds_store else None


def _of_host(helpers: Mapping[str, str], host: str) -> str | None:
    return next((helpers[key] for key in helpers if _plain(key) == host), None)


def _most_specific(auths: Mapping[str, _Auth], reference: Reference) -> _Auth | None:
    """Return the entry whose key names most of the reference, as podman chooses it.

    An entry with nothing in it only says that a helper holds the credential.
    """
    there = {_plain(key): auth for key, auth in auths.items() if auth != _Auth()}
    parts = reference.name.split("/")
    prefixes = ("/".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((there[prefix] for prefix in prefixes if prefix in there), None)


def _plain(key: str) -> str:
    """Return the `host[/path]` of a key, which may be a URL of an API's version."""
    bare = re.sub(r"^https?://", "", key)
    bare = re.sub(r"/v[12]/?$", "", bare).rstrip("/")
    return DOCKER_HUB if bare in _HUB_KEYS else bare


def _decoded(auth: _Auth, path: Path) -> Credential | None:
    username, password = auth.username, auth.password
    if auth.auth:
        try:
            plain = base64.b64decode(auth.auth, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError) as error:
            raise InputError(f"a credential in {path} is not base64 of USER:PASSWORD") from error
        username, _, password = plain.rstrip("\0").partition(":")
    return _credential(username, password, auth.identitytoken)


def _credential(username: str, password: str, identity_token: str = "") -> Credential | None:
    if username == _TOKEN_USER:
        return Credential(identity_token=password)
    if identity_token:
        return Credential(username=username, identity_token=identity_token)
    return Credential(username=username, password=password) if username or password else None


def _ask(helper: str, host: str) -> Credential | None:
    """Return what the credential helper `helper` has for `host`."""
    if not _HELPER.fullmatch(helper):
        raise InputError(f"{helper!r} is not the name of a credential helper")
    program = f"docker-credential-{helper}"
    server = _HUB_SERVER if host == DOCKER_HUB else host
    try:
        done = subprocess.run(
            [program, "get"],
            input=server.encode(),
            capture_output=True,
            check=False,
            timeout=_HELPER_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostError(
            f"the credential helper {program} cannot be run: {error}",
            f"install {program}, or log in without it",
        ) from error
    if done.returncode != 0:
        said = (done.stdout + done.stderr).decode(errors="replace").strip()
        if "not found" in said:
            return None
        raise HostError(f"the credential helper {program} failed for {host}: {said[:200]}")
    try:
        answer = msgspec.json.decode(done.stdout, type=_Answer)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise HostError(f"the credential helper {program} does not answer in JSON") from error
    return _credential(answer.username, answer.secret)
