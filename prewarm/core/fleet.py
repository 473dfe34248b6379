"""A fleet: planned deployments, the launches that are distinct among them, and shards of those."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import msgspec

from prewarm.core.digest import canonical_json, digest_of
from prewarm.core.errors import InputError
from prewarm.core.manifest import (
    Deployment,
    Elsewhere,
    Kernel,
    Launch,
    Manifest,
    Model,
    Specialization,
    Trace,
)
from prewarm.core.record import Record
from prewarm.core.selection import Selection, selected_launches
from prewarm.core.target import target_named
from prewarm.core.toolchain import Toolchain

_PART = re.compile(r"([1-9][0-9]{0,5})/([1-9][0-9]{0,5})")
_NO_TRACE = Trace(workloads=0, random_workloads=0, closure=0, seed=0, steps=0, gpu_blocks=())


class Planned(Record, kw_only=True):
    """One deployment of the fleet, planned."""

    name: str
    manifest: Manifest
    selection: Selection | None = None
    flashinfer: bool = False
    """Whether its image holds FlashInfer's library, where it calls one."""


class Part(Record, kw_only=True):
    """One of so many equal parts of the work."""

    number: int
    """From 1."""
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def holds(self, identity: str) -> bool:
        """Return whether what has this identity, a digest, is in this part.

        It follows from the identity alone: what else there is moves nothing between parts.
        """
        return int(identity.partition(":")[2], 16) % self.of == self.number - 1


def parse_part(text: str) -> Part:
    """Return the part that `text` names: `3/16`; raises InputError."""
    found = _PART.fullmatch(text)
    if found is None or int(found[1]) > int(found[2]):
        raise InputError(f"{text!r} is not a part: the first is 1/16, the last 16/16")
    return Part(number=int(found[1]), of=int(found[2]))


class Distinct(Record, kw_only=True):
    """A launch that one or several deployments ask for, compiled once."""

    identity: str
    """Digest of the launch, the GPU architecture and the toolchain: what Triton's key follows."""
    launch: Launch


class Group(Record, kw_only=True):
    """Launches that one process compiles, which plays one target with one toolchain."""

    name: str
    target: str
    toolchain: Toolchain
    launches: tuple[Distinct, ...]

    @property
    def manifest(self) -> Manifest:
        """The launches as a manifest that asks for each by itself, no autotuner around it."""
        kernels: dict[str, list[Launch]] = {}
        for each in self.launches:
            kernels.setdefault(each.launch.kernel, []).append(each.launch)
        return Manifest(
            deployment=Deployment(
                model=Model(name=self.name, config=digest_of(b"")),
                serve_args=(),
                target=self.target,
            ),
            toolchain=self.toolchain,
            geometry={},
            trace=_NO_TRACE,
            kernels=tuple(_kernel(name, launches) for name, launches in kernels.items()),
        )


def _kernel(name: str, launches: Sequence[Launch]) -> Kernel:
    return Kernel(
        name=name,
        source=launches[0].source,
        specializations=tuple(
            Specialization(arguments=each.arguments, options=each.options, via=())
            for each in launches
        ),
    )


def bound_launches(planned: Planned) -> Iterator[Distinct]:
    """Yield every launch that an image of `planned` holds, once."""
    setting = _setting(planned.manifest)
    for launch in selected_launches(planned.manifest, planned.selection):
        if not launch.unbound:
            identity = digest_of(canonical_json([launch.digest, *setting]))
            yield Distinct(identity=identity, launch=launch)


def _setting(manifest: Manifest) -> tuple[int, str]:
    """Return the architecture and the digest of what of the toolchain enters keys."""
    tools = manifest.toolchain
    plain = msgspec.to_builtins(tools)
    for name in ("libc", "environment"):
        plain.pop(name, None)
    plain["ptxas"] = tools.ptxas.text
    return target_named(manifest.deployment.target).arch, digest_of(canonical_json(plain))


def groups_of(fleet: Sequence[Planned], part: Part) -> tuple[Group, ...]:
    """Return what shard `part` compiles of `fleet`: each launch in one group, and in one shard."""
    seen: set[str] = set()
    groups: dict[str, Group] = {}
    for planned in sorted(fleet, key=lambda each: each.name):
        group = _group(planned.manifest)
        mine = []
        for each in bound_launches(planned):
            if each.identity not in seen:
                seen.add(each.identity)
                if part.holds(each.identity):
                    mine.append(each)
        if mine:
            before = groups.get(group.name, group)
            more = (*before.launches, *mine)
            groups[group.name] = msgspec.structs.replace(before, launches=more)
    return tuple(groups.values())


def _group(manifest: Manifest) -> Group:
    """Return the group, still empty, in whose process the launches of `manifest` compile.

    Their modules read the environment that was planned, so that is the same throughout.
    """
    target, tools = manifest.deployment.target, manifest.toolchain
    name = f"{target}-{digest_of(canonical_json(tools)).partition(':')[2][:12]}"
    return Group(name=name, target=target, toolchain=tools, launches=())


def tuned_in(fleet: Sequence[Planned], part: Part) -> tuple[Planned, ...]:
    """Return the deployments whose autotune records shard `part` writes."""
    return tuple(
        each
        for each in fleet
        if each.selection is not None and part.holds(digest_of(each.name.encode()))
    )


class SharedLibrary(Record, kw_only=True):
    """A library of FlashInfer that one or several deployments call, built once."""

    name: str
    """A plain name that follows from what it is built of."""
    target: str
    module: Elsewhere


def library_of(planned: Planned) -> SharedLibrary | None:
    """Return the library that the image of `planned` holds; None where it holds none.

    How many heads a deployment has does not matter to it, which instances they call does.
    """
    module = next((each for each in planned.manifest.elsewhere if each.is_to_ship), None)
    if not planned.flashinfer or module is None:
        return None
    target, tools = planned.manifest.deployment.target, planned.manifest.toolchain
    arch = f"sm_{target_named(target).arch}a"
    made_of = [module.backend, module.instances, arch, tools.cuda, tools.machine, tools.torch]
    digest = digest_of(canonical_json(made_of)).partition(":")[2][:12]
    return SharedLibrary(name=f"{module.name}-{digest}", target=target, module=module)


def libraries_of(fleet: Sequence[Planned], part: Part) -> tuple[SharedLibrary, ...]:
    """Return the libraries that shard `part` builds of `fleet`, each once."""
    distinct: dict[str, SharedLibrary] = {}
    for planned in sorted(fleet, key=lambda each: each.name):
        library = library_of(planned)
        if library is not None and part.holds(digest_of(library.name.encode())):
            distinct.setdefault(library.name, library)
    return tuple(distinct.values())


class Extent(Record, kw_only=True):
    """How much a fleet asks for."""

    deployments: int
    launches: int
    """Of each deployment by itself, added up."""
    distinct: int


def extent(fleet: tuple[Planned, ...]) -> Extent:
    """Return how many launches `fleet` asks for, and how many of them are distinct."""
    every = [each.identity for planned in fleet for each in bound_launches(planned)]
    return Extent(deployments=len(fleet), launches=len(every), distinct=len(set(every)))
