"""Image references: `HOST[:PORT]/REPOSITORY[:TAG][@DIGEST]`, spelled as docker spells them."""

from __future__ import annotations

import ipaddress
import re

from prewarm.core.digest import DIGEST
from prewarm.core.errors import InputError
from prewarm.core.record import Record

DOCKER_HUB = "docker.io"
_DOCKER_HUB_NAMES = {DOCKER_HUB, "index.docker.io", "registry-1.docker.io"}
_DOCKER_HUB_API = "registry-1.docker.io"
_SCHEME = "docker://"

_HOST = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
)
_REPOSITORY = re.compile(
    r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_LONGEST = 255
_FORM = "HOST[:PORT]/REPOSITORY[:TAG][@sha256:DIGEST]"


class Reference(Record, kw_only=True):
    """Where an image is, or is to go."""

    host: str
    """With its port where it has one: `registry.example:5000`."""
    repository: str
    tag: str | None = None
    digest: str | None = None
    """`sha256:<hex>`; it decides where a tag is given as well."""

    def __str__(self) -> str:
        """Return the reference in its usual spelling."""
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.name}{tag}" + (f"@{self.digest}" if self.digest else "")

    @property
    def name(self) -> str:
        """The repository with its host."""
        return f"{self.host}/{self.repository}"

    @property
    def api_host(self) -> str:
        """The host that serves the registry's API, which Docker Hub has apart."""
        return _DOCKER_HUB_API if self.host == DOCKER_HUB else self.host

    @property
    def wanted(self) -> str:
        """What to ask the registry for: the digest, the tag, or `latest`."""
        return self.digest or self.tag or "latest"

    def at(self, digest: str) -> Reference:
        """Return the reference of the image `digest` of this repository."""
        return Reference(host=self.host, repository=self.repository, digest=digest)


def parse_reference(text: str) -> Reference:
    """Return the reference that `text` spells; raises InputError saying which part is wrong.

    Without a host it is Docker Hub's, without a namespace there `library`.
    """
    plain = text.removeprefix(_SCHEME)
    rest, at, digest = plain.partition("@")
    if at and not DIGEST.fullmatch(digest):
        raise _wrong(text, f"{digest!r} is not a sha256 digest")
    host, repository = _split_host(rest)
    before, colon, tag = repository.rpartition(":")
    if colon:
        repository = before
        if not _TAG.fullmatch(tag):
            raise _wrong(text, f"{tag!r} is not a tag")
    if not _HOST.fullmatch(host) or _port(host) > 65535:
        raise _wrong(text, f"{host!r} is not a host with or without a port")
    if host in _DOCKER_HUB_NAMES:
        host = DOCKER_HUB
        repository = repository if "/" in repository else f"library/{repository}"
    if len(repository) > _LONGEST or not _REPOSITORY.fullmatch(repository):
        raise _wrong(text, f"{repository!r} is not a repository in lower case")
    return Reference(
        host=host, repository=repository, tag=tag if colon else None, digest=digest or None
    )


def check_tag(text: str) -> None:
    """Raise InputError unless `text` can be the tag of an image."""
    if not _TAG.fullmatch(text):
        raise InputError(f"{text!r} is not a tag", "letters, digits, '.', '_' and '-', at most 128")


def names_a_registry(text: str) -> bool:
    """Return whether `text` is meant as a reference and not as a path: it begins with a host."""
    if text.startswith(_SCHEME):
        return True
    first, slash, _ = text.partition("/")
    return bool(slash) and _is_host(first) and bool(_HOST.fullmatch(first))


def is_local(host: str) -> bool:
    """Return whether `host`, with or without a port, is this machine."""
    name = (host if host.endswith("]") else re.sub(r":[0-9]+$", "", host)).strip("[]")
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def _split_host(text: str) -> tuple[str, str]:
    first, slash, rest = text.partition("/")
    return (first, rest) if slash and _is_host(first) else (DOCKER_HUB, text)


def _is_host(first: str) -> bool:
    return "." in first or ":" in first or first == "localhost"


def _port(host: str) -> int:
    found = re.search(r":([0-9]+)$", host)
    return int(found[1]) if found and not host.endswith("]") else 0


def _wrong(text: str, why: str) -> InputError:
    return InputError(f"{text!r} is not an image reference: {why}", _FORM)
