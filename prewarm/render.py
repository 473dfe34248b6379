"""Nouns as people read them: text and tables, nothing printed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from prewarm.core.cache import CacheManifest
from prewarm.core.finding import Finding
from prewarm.core.manifest import Kernel, Manifest, launches_of
from prewarm.core.manifest_diff import Change
from prewarm.core.target import Target

_KIB = 1024


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Return a plain table; columns whose name starts with `#` are numbers."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        right = column.startswith("#")
        made.add_column(
            column.removeprefix("#"), justify="right" if right else "left", overflow="fold"
        )
    for row in rows:
        made.add_row(*(Text(str(cell)) for cell in row))
    return made


def facts(values: Mapping[str, object]) -> Table:
    """Return names and values in two columns, those without a value left out."""
    made = Table(box=None, pad_edge=False, show_header=False)
    made.add_column(style="bold")
    made.add_column(overflow="fold")
    for name, value in values.items():
        if value not in (None, "", ()):
            made.add_row(name, Text(str(value)))
    return made


def size(count: int) -> str:
    """Return a number of bytes in words."""
    amount, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB"):
        if amount < _KIB:
            break
        amount, unit = amount / _KIB, larger
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"


def short(kernel: str) -> str:
    """Return the function of `module:function`."""
    return kernel.rpartition(":")[2]


def manifest(found: Manifest) -> RenderableType:
    """Return what a manifest holds: its deployment, its geometry and its kernels."""
    head = {
        **_deployment(found),
        "kernels": f"{len(found.kernels)}, {sum(1 for _ in found.launches())} launches",
        "traced": f"{found.trace.workloads} boundary and {found.trace.random_workloads} random"
        f" workloads, {found.trace.steps} scheduler steps",
        **{f"  {name}": value for name, value in found.geometry.items()},
        **{
            f"unbound {each.argument}": f"follows the {each.follows}; settled by {each.pin}"
            for each in found.unbound
        },
        **{f"elsewhere {each.name}": f"{each.backend}: {each.cold}" for each in found.elsewhere},
    }
    columns = ("kernel", "#specialisations", "#candidates", "#launches", "tuning key")
    return Group(facts(head), "", table(columns, map(_kernel_row, found.kernels)))


def _deployment(found: Manifest | CacheManifest) -> dict[str, object]:
    deployment, tools = found.deployment, found.toolchain
    model = deployment.model
    at = f" at {model.revision}" if model.revision else ""
    return {
        "model": f"{model.name}{at}",
        "serve arguments": " ".join(deployment.serve_args),
        "target": deployment.target,
        "toolchain": f"vLLM {tools.vllm}, torch {tools.torch}, Triton {tools.triton},"
        f" ptxas {tools.ptxas.version} (chosen by {tools.ptxas.chosen_by})",
        "host": f"{tools.python_abi}, {tools.machine}, {tools.libc}",
    }


def _kernel_row(kernel: Kernel) -> tuple[object, ...]:
    launches = {
        launch.digest
        for specialization in kernel.specializations
        for launch in launches_of(kernel, specialization)
    }
    return (
        short(kernel.name),
        len(kernel.specializations),
        len(kernel.candidates) or "",
        len(launches),
        ", ".join(kernel.tuned_by or ()),
    )


def cache(found: CacheManifest, identity: str | None = None) -> RenderableType:
    """Return what a cache holds, be it an image or installed."""
    by_kernel = Counter(short(launch.kernel) for launch in found.launches)
    head = {
        "identity": identity,
        **_deployment(found),
        "architecture": f"sm_{found.target_arch}",
        "autotune records": "for every tuning key" if found.tuned else "not for every tuning key",
        "unbound launches": len(found.unbound) or None,
        "host modules": len(found.host_modules),
        "files": f"{len(found.files)}, {size(sum(file.size for file in found.files))}",
        "manifest": found.manifest,
    }
    return Group(facts(head), "", table(("kernel", "#launches"), sorted(by_kernel.items())))


def targets(found: Iterable[Target]) -> RenderableType:
    """Return the known targets."""
    columns = ("target", "GPU", "architecture", "#multiprocessors", "#memory", "host CPU")
    return table(
        columns,
        (
            (
                each.name,
                each.device_name,
                f"sm_{each.arch}",
                each.multiprocessors,
                size(each.memory),
                each.host_architecture or "any",
            )
            for each in found
        ),
    )


def changes(found: Sequence[Change]) -> RenderableType:
    """Return what differs between two manifests, section by section."""
    sections: dict[str, list[Change]] = {}
    for change in found:
        sections.setdefault(change.section, []).append(change)
    parts: list[RenderableType] = []
    for section, its_changes in sections.items():
        parts.append(Text(_section(section), style="bold"))
        parts.extend(Text(f"  {_change(change)}") for change in its_changes)
    return Group(*parts)


def _section(section: str) -> str:
    kind, _, name = section.partition(" ")
    module, colon, function = name.rpartition(":")
    return f"{kind} {function} ({module})" if colon else section


def _change(change: Change) -> str:
    times = f"  ({change.count} specialisations)" if change.count > 1 else ""
    return f"{change.item}: {change.old} → {change.new}{times}"


def findings(found: Sequence[Finding]) -> RenderableType:
    """Return findings, each with what mends it."""
    return Text("\n".join(map(_finding, found)))


def _finding(finding: Finding) -> str:
    note = " (a note: no harm by itself)" if finding.note else ""
    return f"{finding}{note}\n  fix: {finding.fix}"
