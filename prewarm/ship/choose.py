"""Which image of an index fits a host, and what keeps the others from it."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata

from prewarm.core.errors import InputError, MismatchError
from prewarm.core.record import Record
from prewarm.ship.image import LABEL, MANIFEST_TYPE
from prewarm.ship.layout import StoredImage
from prewarm.ship.manifests import MANIFEST_TYPES, Entry, Index, Platform

FACTS = ("arch", "machine", "vllm", "torch", "triton", "triton-key", "ptxas", "python-abi", "libc")
"""Labels of an image that must be as they are where it serves."""
DEPLOYMENT = ("target", "model", "serve")
"""Labels that tell images for one toolchain and one architecture apart."""
NAME = "deployment"
"""What the index of a fleet calls an image, which says no such thing of itself."""
CARRIED = (*FACTS, *DEPLOYMENT, "identity", "tuned", "tuned-on", "layer-size")
"""Labels that an index repeats, so that an image can be chosen without fetching it."""
_ASKED = (*FACTS, *DEPLOYMENT[:-1], NAME, *DEPLOYMENT[-1:])
_NVIDIA_SMI_SECONDS = 10


class Choice(Record, kw_only=True):
    """One image of an index, held against a host."""

    digest: str
    facts: dict[str, str]
    against: tuple[str, ...]
    """Why it does not fit, a line each; it fits where there is none."""

    @property
    def fits(self) -> bool:
        """Whether nothing that is known of the host is against it."""
        return not self.against


def wanted_facts(words: Sequence[str]) -> dict[str, str]:
    """Return what `FACT=VALUE` words say of the host; raises InputError for an unknown fact."""
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not value or name not in _ASKED:
            known = ", ".join(_ASKED)
            raise InputError(f"--want {word}: not FACT=VALUE with a FACT among {known}")
        found[name] = value
    return found


def host_facts() -> dict[str, str]:
    """Return what can be told of this host: its CPU, its GPUs, and vLLM's toolchain if here.

    The Python ABI and the releases are told only where vLLM is installed: elsewhere, as in an
    init container, the process that serves has other ones.
    """
    found = {"machine": platform.machine()}
    archs = _gpu_archs()
    if len(archs) == 1:
        found["arch"] = archs.pop()
    releases = {name: _release(name) for name in ("vllm", "torch", "triton")}
    if releases["vllm"] is not None:
        found |= {name: release for name, release in releases.items() if release is not None}
        found["python-abi"] = f"cpython-{sys.version_info.major}{sys.version_info.minor}"
    return found


def choices(index: Index, host: Mapping[str, str]) -> tuple[Choice, ...]:
    """Return every image of `index`, held against what is known of the host."""
    return tuple(
        _choice(entry, host) for entry in index.manifests if entry.media_type in MANIFEST_TYPES
    )


def choose(found: Sequence[Choice], host: Mapping[str, str], where: str) -> Choice:
    """Return the one that fits.

    Raises MismatchError with every reason where none does, and InputError where several do and
    what is known of the host does not tell them apart.
    """
    fitting = [each for each in found if each.fits]
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        lines = [f"{where}: none of {len(found)} images fits this host", *map(in_words, found)]
        raise MismatchError("\n  ".join(lines), "prewarm build --target TARGET -- SERVE ARGS")
    apart = [
        name
        for name in _ASKED
        if name not in host and len({each.facts.get(name) for each in fitting}) > 1
    ]
    lines = [f"{where}: {len(fitting)} images fit, as far as is known here"]
    lines += [f"{each.digest}: {_facts_in_words(each, apart)}" for each in fitting]
    raise InputError(
        "\n  ".join(lines),
        f"--want {apart[0]}={fitting[0].facts.get(apart[0])}" if apart else f"{where}@DIGEST",
    )


def in_words(choice: Choice) -> str:
    """Return in one line whether the image fits and what is against it."""
    return f"{choice.digest}: {'; '.join(choice.against) or 'fits'}"


def entry_of(image: StoredImage, name: str | None = None) -> Entry:
    """Return the entry of `image` in an index: its platform, and what to choose it by.

    `name` is what a fleet calls it.
    """
    labels = image.config.config.labels
    annotations = {key: labels[key] for key in map(_label, CARRIED) if key in labels}
    return Entry(
        media_type=MANIFEST_TYPE,
        digest=image.digest,
        size=image.size,
        platform=Platform(architecture=image.config.architecture, os=image.config.os),
        annotations=annotations | ({} if name is None else {_label(NAME): name}),
    )


def same_facts(there: Entry, entry: Entry) -> bool:
    """Return whether two images are for the same hosts and the same deployment."""
    ours, theirs = entry.annotations or {}, there.annotations or {}
    return all(ours.get(key) == theirs.get(key) for key in map(_label, (*FACTS, *DEPLOYMENT)))


def _label(name: str) -> str:
    return f"{LABEL}.{name}"


def facts_of(annotations: Mapping[str, str] | None) -> dict[str, str]:
    """Return what an image says of itself, without the prefix of our labels."""
    prefix = f"{LABEL}."
    return {
        name.removeprefix(prefix): value
        for name, value in (annotations or {}).items()
        if name.startswith(prefix)
    }


def _choice(entry: Entry, host: Mapping[str, str]) -> Choice:
    facts = facts_of(entry.annotations)
    against = tuple(
        f"{name}: built for {facts[name]}, here {value}"
        for name, value in host.items()
        if name in facts and not _agrees(name, facts[name], value)
    )
    if not facts:
        against = ("not a cache of prewarm's: it says nothing of itself",)
    return Choice(digest=entry.digest, facts=facts, against=against)


def _agrees(name: str, built: str, here: str) -> bool:
    """Return whether two values are the same; `0.25.1` is told where a build has `0.25.1+cu129`."""
    if name in ("vllm", "torch", "triton"):
        return built == here or built.partition("+")[0] == here
    return built == here


def _facts_in_words(choice: Choice, names: Sequence[str]) -> str:
    return ", ".join(f"{name} {choice.facts.get(name, 'unknown')}" for name in names) or "the same"


def _gpu_archs() -> set[str]:
    """Return the architectures of the GPUs here, none where no driver can be asked."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return set()
    try:
        done = subprocess.run(
            [program, "--query-gpu=compute_cap", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=False,
            timeout=_NVIDIA_SMI_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return set()
    lines = done.stdout.split() if done.returncode == 0 else []
    return {"sm_" + line.replace(".", "") for line in lines if line.replace(".", "").isdecimal()}


def _release(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
