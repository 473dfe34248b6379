"""Blobs of a registry: read, downloaded with resumption, uploaded, mounted. Each is checked.

A download goes to a file beside its place and is renamed when size and digest are right. An
upload is one request; where it is cut, a new one begins, because registries forget what came.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit, urlunsplit

import requests

from prewarm.core.digest import DIGEST, digest_of
from prewarm.core.errors import InputError, IntegrityError, RegistryError
from prewarm.core.files import host_errors
from prewarm.ship.image import Descriptor
from prewarm.ship.registry import Repository
from prewarm.ship.transport import PassingError, joined

PIECE = 1 << 20
"""Bytes that are held of a blob at a time."""
_CHUNK = 16 << 20
_MOST_ATTEMPTS = 100
"""Attempts at one blob, even where each of them gets some bytes further."""

Open = Callable[[], BinaryIO]


def has_blob(repository: Repository, descriptor: Descriptor) -> bool:
    """Return whether the repository holds the blob."""
    call = repository.call(
        "HEAD", path_of(descriptor), f"look for the blob {descriptor.digest}", expect=(200, 404)
    )
    with repository.transport.send(call) as response:
        return response.status_code == 200


def read_blob(repository: Repository, descriptor: Descriptor, limit: int) -> bytes:
    """Return the blob, of at most `limit` bytes; raises IntegrityError unless it is as described.

    Raises RegistryError or TryAgainError where the registry does not give it.
    """
    doing = f"read the blob {descriptor.digest}"
    if not 0 <= descriptor.size <= limit:
        raise IntegrityError(
            f"{repository.reference.name}: the blob {descriptor.digest} is said to have"
            f" {descriptor.size} bytes, more than the {limit} that it may"
        )
    transport = repository.transport

    def attempt() -> bytes:
        with transport.once(repository.call("GET", path_of(descriptor), doing)) as response:
            check_length(repository, descriptor, response, descriptor.size)
            body = bytearray()
            while piece := transport.piece(response, doing):
                body += piece
                check_size(repository, descriptor, len(body))
            if len(body) < descriptor.size:
                raise short_of(repository, descriptor, len(body))
            return bytes(body)

    data = transport.patiently(attempt)
    check_digest(repository, descriptor, digest_of(data))
    return data


def download(repository: Repository, descriptor: Descriptor, path: Path) -> None:
    """Put the blob at `path`, whole or not at all.

    What an earlier download left beside it is gone on with. Raises IntegrityError unless size
    and digest are right, RegistryError or TryAgainError where the registry does not give it,
    and HostError where it cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    with host_errors(f"write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        if _is_there(path, descriptor):
            return
        with _opened(part) as stream:
            resumed = stream.seek(0, os.SEEK_END) > 0
            _complete(repository, descriptor, stream)
            if resumed and _digest(stream) != descriptor.digest:
                # What was left may be of another blob or damaged; it gets no second chance.
                _emptied(stream)
                _complete(repository, descriptor, stream)
            found = _digest(stream)
            if found != descriptor.digest:
                os.unlink(part)
            check_digest(repository, descriptor, found)
            os.fsync(stream.fileno())
        os.chmod(part, 0o644)
        os.replace(part, path)


def _is_there(path: Path, descriptor: Descriptor) -> bool:
    if path.is_symlink() or not path.is_file() or path.stat().st_size != descriptor.size:
        return False
    with path.open("rb") as stream:
        return _digest(stream) == descriptor.digest


def _opened(part: Path) -> BinaryIO:
    handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    return os.fdopen(handle, "r+b")


def _emptied(stream: BinaryIO) -> int:
    """Empty `stream`, and return the bytes that it has then."""
    stream.seek(0)
    return stream.truncate(0)


def _complete(repository: Repository, descriptor: Descriptor, stream: BinaryIO) -> None:
    """Add to `stream` what it lacks of the blob, over as many connections as that takes."""
    faults = 0
    for _ in range(_MOST_ATTEMPTS):
        have = stream.seek(0, os.SEEK_END)
        if have > descriptor.size:
            have = _emptied(stream)
        if have == descriptor.size:
            return
        try:
            _add(repository, descriptor, stream, have)
        except PassingError as fault:
            faults = faults + 1 if stream.seek(0, os.SEEK_END) <= have else 1
            if faults >= repository.transport.connection.attempts:
                raise
            repository.transport.wait(faults, fault)
    if stream.seek(0, os.SEEK_END) != descriptor.size:
        raise short_of(repository, descriptor, stream.tell())


def _add(repository: Repository, descriptor: Descriptor, stream: BinaryIO, have: int) -> None:
    """Add what one connection brings to the `have` bytes of the blob in `stream`."""
    doing = f"download the blob {descriptor.digest}"
    headers = {"Range": f"bytes={have}-"} if have else {}
    call = repository.call(
        "GET", path_of(descriptor), doing, expect=(200, 206, 416), headers=headers
    )
    with repository.transport.once(call) as response:
        if response.status_code == 416 or not continues(response, have):
            have = _emptied(stream)
        if response.status_code == 416:
            raise PassingError(f"{repository.reference.name}: no part of a blob to go on with")
        check_length(repository, descriptor, response, descriptor.size - have)
        while piece := repository.transport.piece(response, doing):
            have += len(piece)
            check_size(repository, descriptor, have)
            stream.write(piece)
            stream.flush()
    if have < descriptor.size:
        raise short_of(repository, descriptor, have)


def continues(response: requests.Response, have: int) -> bool:
    """Return whether what comes begins where the `have` bytes end."""
    if response.status_code != 206:
        return have == 0
    found = re.match(r"bytes ([0-9]{1,18})-", response.headers.get("Content-Range", ""))
    return found is not None and int(found[1]) == have


def mount(repository: Repository, descriptor: Descriptor, mount_from: str) -> bool:
    """Return whether the registry took the blob from its repository `mount_from`.

    Raises RegistryError where it refuses to, or TryAgainError.
    """
    attempt = _Upload(repository, descriptor, lambda: io.BytesIO(b""))
    return repository.transport.patiently(partial(attempt.mount, mount_from))


def upload(
    repository: Repository,
    descriptor: Descriptor,
    opened: Open,
    *,
    mount_from: str | None = None,
    chunk: int | None = None,
) -> str:
    """Bring the blob that `opened` opens to the repository; return how that went.

    `there` where it was there already, `mounted` where the registry took it from its repository
    `mount_from`, else `uploaded`: in one request, or in pieces of `chunk` bytes, as also where
    the registry finds one request too large. Raises RegistryError or TryAgainError.
    """
    if has_blob(repository, descriptor):
        return "there"
    attempt = _Upload(repository, descriptor, opened)
    patiently = repository.transport.patiently
    if mount_from is not None and patiently(partial(attempt.mount, mount_from)):
        return "mounted"
    if chunk is not None or not patiently(attempt.whole):
        patiently(partial(attempt.in_chunks, chunk or _CHUNK))
    return "uploaded"


class _Upload:
    """Attempts to bring one blob to a repository."""

    def __init__(self, repository: Repository, descriptor: Descriptor, opened: Open) -> None:
        self.repository = repository
        self.transport = repository.transport
        self.descriptor = descriptor
        self.opened = opened
        self.doing = f"upload the blob {descriptor.digest}"

    def mount(self, mount_from: str) -> bool:
        """Return whether the registry took the blob from its repository `mount_from`."""
        path = f"blobs/uploads/?mount={self.descriptor.digest}&from={mount_from}"
        call = self.repository.call(
            "POST", path, self.doing, expect=(201, 202), mount_from=mount_from
        )
        with self.transport.once(call) as response:
            if response.status_code == 201:
                return True
            self._abandon(response)
            return False

    def whole(self) -> bool:
        """Send all of it in one request; return whether the registry takes as much."""
        location = self._begin()
        with contextlib.ExitStack() as stack:
            call = self.repository.call(
                "PUT",
                _with_digest(location, self.descriptor.digest),
                self.doing,
                expect=(201, 204, 413),
                headers={
                    "Content-Type": "application/octet-stream",
                    "Content-Length": str(self.descriptor.size),
                },
                body=lambda: stack.enter_context(self.opened()) if self.descriptor.size else b"",
            )
            with self.transport.once(call) as response:
                return response.status_code != 413

    def in_chunks(self, size: int) -> None:
        """Send it in pieces of `size` bytes, or of more where the registry wants that."""
        with self.opened() as stream:
            with self._post() as response:
                least = response.headers.get("OCI-Chunk-Min-Length", "")
                location, at = self._location(response), 0
            size = max(size, min(int(least), 1 << 30) if re.fullmatch("[0-9]{1,18}", least) else 0)
            while piece := stream.read(size):
                call = self.repository.call(
                    "PATCH",
                    location,
                    self.doing,
                    expect=(202, 204),
                    headers={
                        "Content-Type": "application/octet-stream",
                        "Content-Range": f"{at}-{at + len(piece) - 1}",
                    },
                    body=partial(bytes, piece),
                )
                with self.transport.once(call) as response:
                    location = self._location(response)
                at += len(piece)
            url = _with_digest(location, self.descriptor.digest)
            call = self.repository.call("PUT", url, self.doing, expect=(201, 204))
            self.transport.once(call).close()

    def _begin(self) -> str:
        with self._post() as response:
            return self._location(response)

    def _post(self) -> requests.Response:
        call = self.repository.call("POST", "blobs/uploads/", self.doing, expect=(202,))
        return self.transport.once(call)

    def _location(self, response: requests.Response) -> str:
        location = response.headers.get("Location")
        if not location:
            raise RegistryError(f"{self.transport.host} does not say where to {self.doing}")
        return joined(response.url, location, self.doing)

    def _abandon(self, response: requests.Response) -> None:
        """Let go of an upload that was begun in place of a mount; a registry may keep it."""
        call = self.repository.call(
            "DELETE", self._location(response), self.doing, expect=(200, 202, 204)
        )
        with contextlib.suppress(RegistryError, PassingError):
            self.transport.once(call).close()


def _with_digest(location: str, digest: str) -> str:
    """Return the `location` of an upload, its own query kept, that ends it as `digest`."""
    parts = urlsplit(location)
    query = f"{parts.query}&digest={digest}" if parts.query else f"digest={digest}"
    return urlunsplit(parts._replace(query=query))


def path_of(descriptor: Descriptor) -> str:
    """Return where a repository has the blob; raises InputError for what is no digest."""
    if not DIGEST.fullmatch(descriptor.digest):
        raise InputError(f"{descriptor.digest!r} is not a sha256 digest")
    return f"blobs/{descriptor.digest}"


def _digest(stream: BinaryIO) -> str:
    stream.seek(0)
    found = hashlib.sha256()
    while piece := stream.read(PIECE):
        found.update(piece)
    return f"sha256:{found.hexdigest()}"


def check_length(
    repository: Repository, descriptor: Descriptor, response: requests.Response, left: int
) -> None:
    """Raise IntegrityError where the registry announces more than is `left` of the blob."""
    length = response.headers.get("Content-Length", "")
    if length.isdecimal() and int(length) > left:
        check_size(repository, descriptor, descriptor.size - left + int(length))


def check_size(repository: Repository, descriptor: Descriptor, size: int) -> None:
    """Raise IntegrityError where `size` bytes are more than the blob has."""
    if size > descriptor.size:
        raise IntegrityError(
            f"{repository.reference.name}: the blob {descriptor.digest} has {size} bytes or"
            f" more, expected {descriptor.size}"
        )


def check_digest(repository: Repository, descriptor: Descriptor, found: str) -> None:
    """Raise IntegrityError unless `found` is the digest of the blob."""
    if found != descriptor.digest:
        raise IntegrityError(
            f"{repository.reference.name}: the blob {descriptor.digest} has the digest {found}",
            "push the image again, and see what stands between here and the registry",
        )


def short_of(repository: Repository, descriptor: Descriptor, size: int) -> PassingError:
    """Return the fault that only `size` bytes of the blob came."""
    return PassingError(
        f"{repository.reference.name}: only {size} of {descriptor.size} bytes of the blob"
        f" {descriptor.digest} came",
        "run the same command again",
    )
