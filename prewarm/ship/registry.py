"""A repository of a registry, as `blobs`, `manifests` and `referrers` speak to it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Literal

from prewarm.core.record import Record
from prewarm.ship.credentials import Credential, find_credential
from prewarm.ship.reference import Reference
from prewarm.ship.transport import Call, Connection, Transport


class Repository(Record, kw_only=True):
    """A repository, and what may be done there."""

    reference: Reference
    transport: Transport
    actions: Literal["pull", "pull,push"] = "pull"

    def call(
        self,
        method: str,
        path: str,
        doing: str,
        *,
        expect: tuple[int, ...] = (200,),
        headers: dict[str, str] | None = None,
        body: Callable[[], object] | None = None,
        mount_from: str | None = None,
    ) -> Call:
        """Return the request for `path` below this repository, or for the absolute URL `path`.

        Every request to a repository asks for the same scopes, so that one token does for all.
        """
        is_url = path.startswith(("http://", "https://", "/"))
        scopes = [f"repository:{self.reference.repository}:{self.actions}"]
        if mount_from is not None:
            scopes.append(f"repository:{mount_from}:pull")
        return Call(
            method=method,
            url=path if is_url else f"/v2/{self.reference.repository}/{path}",
            doing=doing,
            expect=expect,
            headers=headers or {},
            body=body,
            scopes=tuple(scopes),
        )


@contextlib.contextmanager
def open_repository(
    reference: Reference,
    connection: Connection | None = None,
    *,
    push: bool = False,
    credential: Callable[[Reference], Credential | None] = find_credential,
) -> Iterator[Repository]:
    """Yield the repository of `reference`, and close its connections afterwards.

    Nothing is asked yet. `credential` is called when the registry wants a login.
    """
    transport = Transport(
        reference.api_host, connection or Connection(), lambda: credential(reference)
    )
    try:
        yield Repository(
            reference=reference, transport=transport, actions="pull,push" if push else "pull"
        )
    finally:
        transport.close()
