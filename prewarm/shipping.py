"""The steps of the verbs that speak to a registry: push, pull, sign, attest, list and show."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from prewarm import render
from prewarm.core.errors import HostError, InputError
from prewarm.output import Output
from prewarm.ship.reference import names_a_registry, parse_reference

if TYPE_CHECKING:
    from prewarm.ship.pull import Pulled
    from prewarm.ship.signed import Trust
    from prewarm.ship.transport import Connection

PASSWORD = "PREWARM_KEY_PASSWORD"  # noqa: S105 (the name of a variable)
"""The variable with the password of a private key that has one."""


def push(
    out: Output,
    layout: Path,
    reference: str,
    *,
    index: str | None,
    mount_from: str | None,
    **reach: object,
) -> int:
    """Push the image in `layout` and write `repo@sha256:…`; return the exit code."""
    from prewarm.ship.push import push as push_

    done = push_(
        layout,
        parse_reference(reference),
        _connection(reach),
        index=index,
        mount_from=mount_from,
    )
    tagged = f" as {done.tag}" if done.tag else ""
    out.say(f"pushed {done.identity}{tagged}: {render.size(done.size)}, layer {done.layer}")
    if done.index is not None:
        out.say(f"in the index {index}, now {done.index}")
    out.product(done.reference, done)
    return 0


def sign(out: Output, reference: str, *, key: Path, **reach: object) -> int:
    """Sign what `reference` means and write each `repo@sha256:…`; return the exit code."""
    from prewarm.ship.keys import read_private_key
    from prewarm.ship.signed import sign_reference

    private = read_private_key(key, os.environ.get(PASSWORD))
    done = sign_reference(parse_reference(reference), private, _connection(reach))
    for each in done:
        out.say(f"{each.reference} {'signed' if each.new else 'was signed already'}")
    out.product("\n".join(each.reference for each in done), {"signed": done})
    return 0


def attest(out: Output, reference: str, *, key: Path | None, **reach: object) -> int:
    """Attach provenance and SBOM to what `reference` means; return the exit code."""
    from prewarm.ship.attest import attest as attest_
    from prewarm.ship.keys import read_private_key

    private = None if key is None else read_private_key(key, os.environ.get(PASSWORD))
    with _temporary() as directory:
        done = attest_(parse_reference(reference), directory, private, _connection(reach))
    for each in done:
        signed = "" if each.signed else ", unsigned"
        out.say(
            f"{each.reference}: {each.document}{signed}"
            f" {'attached' if each.new else 'was attached already'}"
        )
    out.product("\n".join(each.attached for each in done), {"attested": done})
    return 0


def pull(out: Output, reference: str, layout: Path, **how: Any) -> int:
    """Pull what `reference` means into `layout` and write `repo@sha256:…`; return the exit code."""
    done = _pull(out, reference, layout, **how)
    out.product(done.reference, done)
    return 0


def _pull(
    out: Output,
    reference: str,
    layout: Path,
    *,
    want: Sequence[str],
    key: Path | None,
    identity: str | None,
    **reach: object,
) -> Pulled:
    from prewarm.ship.choose import wanted_facts
    from prewarm.ship.pull import pull as pull_

    done = pull_(
        parse_reference(reference),
        layout,
        _connection(reach),
        want=wanted_facts(want),
        trust=trust_of(key, identity),
    )
    for line in done.decision:
        out.say(line)
    out.say(f"pulled {done.identity}: {render.size(done.size)}")
    return done


def trust_of(key: Path | None, identity: str | None) -> Trust | None:
    """Return whose signature `--key` and `--identity` ask for; raises InputError."""
    from prewarm.ship.keys import read_public_key
    from prewarm.ship.signed import Trust

    if identity is not None and key is None:
        raise InputError("--identity says who must have signed: name the --key as well")
    return Trust(key=read_public_key(key), identity=identity) if key else None


@contextlib.contextmanager
def fetched(out: Output, source: str, *, key: Path | None, **how: Any) -> Iterator[Path]:
    """Yield the path of `source`; a reference is pulled into a layout that is gone afterwards.

    Raises what `pull` does, HostError where there is no place to pull into, and InputError for
    a `key` where `source` is no reference: signatures stay in the registry.
    """
    if Path(source).exists() or not names_a_registry(source):
        if key is not None:
            raise InputError(
                f"{source} is on this machine, and signatures are in a registry",
                "prewarm install REF --key …; or on the way here: prewarm pull REF OUT --key …",
            )
        yield Path(source)
        return
    with _temporary() as directory:
        _pull(out, source, directory / "image", key=key, **how)
        yield directory / "image"


@contextlib.contextmanager
def _temporary() -> Iterator[Path]:
    try:
        directory = tempfile.TemporaryDirectory(prefix="prewarm-pull-")
    except OSError as error:
        raise HostError(
            f"there is no directory to pull into: {error.strerror or error}",
            "export TMPDIR=DIR, with a DIR that can be written",
        ) from error
    with directory as name:
        yield Path(name)


def list_(out: Output, repository: str, **reach: object) -> int:
    """Write the tags of a repository; return the exit code."""
    from prewarm.ship.catalogue import list_tags

    reference = parse_reference(repository)
    found = list_tags(reference, _connection(reach))
    out.product(render.tags(found), {"repository": reference.name, "tags": found})
    return 0


def show(
    out: Output,
    text: str,
    *,
    want: Sequence[str],
    key: Path | None,
    identity: str | None,
    **reach: object,
) -> int:
    """Write what is behind a reference, and beside it; return the exit code."""
    from prewarm.ship.catalogue import show_reference
    from prewarm.ship.choose import wanted_facts

    found = show_reference(
        parse_reference(text),
        _connection(reach),
        want=wanted_facts(want),
        trust=trust_of(key, identity),
    )
    images = [{**msgspec.to_builtins(image), "fits": image.fits} for image in found.images]
    out.product(render.shown(found), {**msgspec.to_builtins(found), "images": images})
    return 0


def _connection(reach: Mapping[str, object]) -> Connection:
    """Return how the options of a verb say that the registry is reached.

    `requests` is imported here and below, so that an install of what is here starts without it.
    """
    from prewarm.ship.transport import Connection

    return msgspec.convert(dict(reach), Connection)
