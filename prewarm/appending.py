"""The steps of `append`: a base, a cache and a place for both, told as it goes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prewarm import render, shipping
from prewarm.core.errors import InputError
from prewarm.output import Output
from prewarm.ship.reference import Reference, names_a_registry, parse_reference

if TYPE_CHECKING:
    from prewarm.ship.append import Appended


def append(
    out: Output,
    base: str,
    source: str,
    *,
    to: str,
    mount_path: str | None,
    platform: str | None,
    override_env: bool,
    plain_http: bool,
    ca_file: str | None,
    **trust: Any,
) -> int:
    """Write the reference of the image that is made, of a layout its digest; return 0."""
    from prewarm.ship.append import append as append_
    from prewarm.ship.transport import Connection

    place, target = base_named(base), target_named(to)
    connection = Connection(plain_http=plain_http, ca_file=ca_file)
    with (
        shipping.fetched(out, source, plain_http=plain_http, ca_file=ca_file, **trust) as layout,
        out.progress("layers of the base") as advance,
    ):
        done = append_(
            place,
            layout,
            target,
            connection,
            mount_path=mount_path,
            platform=platform,
            override_env=override_env,
            advance=advance,
        )
    _tell(out, done)
    out.product(done.digest if isinstance(target, Path) else done.reference, done)
    return 0


def base_named(text: str) -> Reference | Path:
    """Return the layout or the reference that `text` means; without a host it is Docker Hub's."""
    return Path(text) if os.path.exists(text) else parse_reference(text)


def target_named(text: str) -> Reference | Path:
    """Return the reference or the directory that `text` means.

    A reference begins with its host, so that nothing is pushed to Docker Hub by mistake. Raises
    InputError for what looks like one without.
    """
    if not os.path.exists(text) and names_a_registry(text):
        return parse_reference(text)
    if ":" in text and not os.path.exists(text):
        raise InputError(
            f"{text!r} is a reference without a host, or a directory with a colon",
            f"--to docker.io/{text}",
        )
    return Path(text)


def _tell(out: Output, done: Appended) -> None:
    brought = ", ".join(f"{count} {how}" for how, count in done.base_layers.items())
    out.say(
        f"base {done.base}, {done.platform}, {done.base_digest}: layers: {brought or 'none'}"
        f" ({render.size(done.copied)} through this machine)"
    )
    for each in done.replaced:
        out.warn(f"{each.name} was {each.base!r} in the base and is {each.ours!r} now", None)
    for name, value in done.foreign.items():
        out.warn(
            f"the base sets {name}={value}, with which the cache was not built",
            f"prewarm verify {done.mount_path}, in the image, says whether it hits",
        )
    out.say(f"appended {done.identity} at {done.mount_path}: {render.size(done.size)}")
    for variable in done.environment:
        out.say(f"ENV {variable.name}={variable.value}")
    out.say(f"the first start with it {done.first_start}")
