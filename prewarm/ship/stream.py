"""A blob of a registry as a stream, for another registry: never whole in memory or on a disk."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import requests

from prewarm.ship.blobs import (
    PIECE,
    check_digest,
    check_length,
    check_size,
    continues,
    path_of,
    short_of,
)
from prewarm.ship.image import Descriptor
from prewarm.ship.registry import Repository
from prewarm.ship.transport import PassingError


class BlobStream(io.BufferedReader):
    """The bytes of a blob, read from its registry as they are asked for.

    A connection that is cut is gone on with. The last bytes come only when the digest is right:
    reading raises IntegrityError where it is not, RegistryError or TryAgainError where the
    registry does not give them.
    """

    def __init__(self, repository: Repository, descriptor: Descriptor) -> None:
        """Ask nothing yet."""
        super().__init__(_Blob(repository, descriptor), PIECE)
        self._size = descriptor.size

    def __len__(self) -> int:
        # requests takes the length to announce from here, less what `tell` says; without both
        # it would send chunks, which not every registry takes.
        return self._size


class _Blob(io.RawIOBase):
    def __init__(self, repository: Repository, descriptor: Descriptor) -> None:
        self._repository = repository
        self._transport = repository.transport
        self._descriptor = descriptor
        self._doing = f"read the blob {descriptor.digest}"
        self._response: requests.Response | None = None
        self._at = 0
        self._faults = 0
        self._digest = hashlib.sha256()
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at - len(self._left)

    def readinto(self, buffer: Any) -> int:
        if not self._left:
            self._left = memoryview(self._next())
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count

    def close(self) -> None:
        self._hang_up()
        super().close()

    def _next(self) -> bytes:
        """Return the next bytes, none at the end, over as many connections as that takes."""
        while self._at < self._descriptor.size:
            try:
                piece = self._piece()
            except PassingError as fault:
                self._hang_up()
                self._faults += 1
                if self._faults >= self._transport.connection.attempts:
                    raise
                self._transport.wait(self._faults, fault)
                continue
            self._faults = 0
            return piece
        return b""

    def _piece(self) -> bytes:
        if self._response is None:
            self._response = self._open()
        piece = self._transport.piece(self._response, self._doing)
        if not piece:
            raise short_of(self._repository, self._descriptor, self._at)
        self._at += len(piece)
        check_size(self._repository, self._descriptor, self._at)
        self._digest.update(piece)
        if self._at == self._descriptor.size:
            found = f"sha256:{self._digest.hexdigest()}"
            check_digest(self._repository, self._descriptor, found)
        return piece

    def _open(self) -> requests.Response:
        headers = {"Range": f"bytes={self._at}-"} if self._at else {}
        call = self._repository.call(
            "GET", path_of(self._descriptor), self._doing, expect=(200, 206), headers=headers
        )
        response = self._transport.once(call)
        if not continues(response, self._at):
            response.close()
            raise short_of(self._repository, self._descriptor, self._at)
        left = self._descriptor.size - self._at
        check_length(self._repository, self._descriptor, response, left)
        return response

    def _hang_up(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None
