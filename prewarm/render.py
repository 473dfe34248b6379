"""Nouns as people read them: text and tables, nothing printed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from prewarm.core.cache import CacheManifest
from prewarm.core.finding import Finding
from prewarm.core.first_start import tuned_on
from prewarm.core.manifest import Candidate, Kernel, Manifest, launches_of
from prewarm.core.manifest_diff import Change
from prewarm.core.target import Target
from prewarm.core.tunings import (
    Clocks,
    KernelTunings,
    KeyTuning,
    Run,
    Size,
    SizeWinner,
    Tunings,
    key_text,
)

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


def document(found: Manifest | Tunings) -> RenderableType:
    """Return what a document holds."""
    return tunings(found) if isinstance(found, Tunings) else manifest(found)


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
        "autotune records": _records(found),
        "unbound launches": len(found.unbound) or None,
        "host modules": len(found.host_modules),
        "files": f"{len(found.files)}, {size(sum(file.size for file in found.files))}",
        "manifest": found.manifest,
    }
    return Group(facts(head), "", table(("kernel", "#launches"), sorted(by_kernel.items())))


def _records(found: CacheManifest) -> str:
    if found.selection is None or not found.autotune_records:
        return "none"
    keys = "every tuning key" if found.tuned else "some tuning keys"
    return f"{len(found.autotune_records)}, for {keys}, measured on {tuned_on(found.selection)}"


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


def tunings(found: Tunings) -> RenderableType:
    """Return what tunings hold: where they were measured, the winners, each key size by size."""
    head = {
        "GPU": f"{found.gpu}, sm_{found.arch}",
        "Triton": found.triton,
        "digest": found.digest,
    }
    keys = [(kernel, key) for kernel in found.kernels for key in kernel.keys]
    columns = ("kernel", "winner", "in the list", "#score", "#gain", "vLLM's own", "confirmed")
    parts: list[RenderableType] = [facts(head)]
    for number, run in enumerate(found.runs, 1):
        mine = [key for _, key in keys if key.run == number - 1]
        parts += ["", facts(_run(number, run)), "", table(_STEP_COLUMNS, _step_rows(mine, run))]
    parts += ["", table(columns, (_key_row(kernel, key) for kernel, key in keys))]
    for kernel, key in keys:
        parts += ["", *_key(kernel, key, found.runs[key.run])]
    return Group(*parts)


_STEP_COLUMNS = ("a step of", "#vLLM's own, µs", "#winners", "#faster", "#by size", "#faster")


def _step_rows(keys: Sequence[KeyTuning], run: Run) -> Iterator[tuple[object, ...]]:
    """Yield what the tuned kernels of a step take together at each size of `run`."""
    for at, size_ in enumerate(run.sizes):
        totals = [0.0, 0.0, 0.0]
        for key in keys:
            best = {(each.tokens, each.sequences): each.config for each in key.sizes}
            by_size = best.get((size_.tokens, size_.sequences), key.winner)
            for place, config in enumerate((key.reference, key.winner, by_size)):
                totals[place] += key.times(config)[at] or 0.0
        own, winners, sized = totals
        if own:
            yield (
                size_text(size_),
                f"{own:.1f}",
                f"{winners:.1f}",
                f"{own / winners:.2f}×",
                f"{sized:.1f}",
                f"{own / sized:.2f}×",
            )


def _run(number: int, run: Run) -> dict[str, object]:
    return {
        f"run {number}": f"{run.date}, {run.seconds:.0f} s, driver {run.driver}",
        "  model": run.model,
        "  serve arguments": " ".join(run.serve_args),
        "  clocks": "; ".join(map(_clocks, run.clocks)),
        "  sizes (weight)": ", ".join(f"{size_text(s)} ({s.weight:g})" for s in run.sizes),
        "  noise": percent(run.noise),
        "  winner is": run.objective,
    }


def _clocks(clocks: Clocks) -> str:
    return (
        f"SM {clocks.sm[0]}–{clocks.sm[1]} MHz, memory {clocks.memory} MHz,"
        f" {clocks.temperature[0]}–{clocks.temperature[1]} °C, {clocks.power_limit:g} W"
    )


def _key_row(kernel: KernelTunings, key: KeyTuning) -> tuple[object, ...]:
    return (
        short(kernel.name),
        config_text(key.winner),
        "yes" if key.winner in kernel.candidates else "no, beyond it",
        f"{key.score:.3f}",
        f"{key.gain:.2f}×",
        config_text(key.reference),
        "yes" if key.confirmed else "no",
    )


def _key(kernel: KernelTunings, key: KeyTuning, run: Run) -> list[RenderableType]:
    names = {"key": key_text(key.key), "shared": key_text(key.shared)}
    columns = ("size", "best", "#µs", "#winner slower", "#vLLM's own slower", "#noise")
    title = Text(short(kernel.name), style="bold")
    return [title, facts(names), table(columns, _size_rows(key, run))]


def _size_rows(key: KeyTuning, run: Run) -> Iterator[tuple[object, ...]]:
    best = {(each.tokens, each.sequences): each.config for each in key.sizes}
    noise = key.noise or (None,) * len(run.sizes)
    for at, size_ in enumerate(run.sizes):
        config = best.get((size_.tokens, size_.sequences))
        if config is None:
            yield size_text(size_), "not asked for", "", "", "", ""
            continue
        times = [key.times(each)[at] or math.nan for each in (config, key.winner, key.reference)]
        yield (
            size_text(size_),
            "the winner" if config == key.winner else config_text(config),
            f"{times[0]:.2f}",
            *(percent(time / times[0] - 1) for time in times[1:]),
            percent(noise[at] or 0.0),
        )


def percent(value: float) -> str:
    """Return a ratio in percent; what rounds to nothing has no sign."""
    return f"{round(100 * value, 1) + 0.0:.1f} %"


def size_text(found: Size | SizeWinner) -> str:
    """Return the size of a step: tokens, then sequences where there are several."""
    return f"{found.tokens}×{found.sequences}" if found.sequences > 1 else str(found.tokens)


def config_text(config: Candidate) -> str:
    """Return a config of an autotuned kernel in a few words."""
    parts = [
        " ".join(f"{name}={value}" for name, value in config.constexprs.items()),
        f"{config.num_warps} warp{'s' * (config.num_warps > 1)}",
        f"{config.num_stages} stage{'s' * (config.num_stages > 1)}",
        f"{config.num_ctas} CTAs" if config.num_ctas > 1 else "",
        f"at most {config.maxnreg} registers" if config.maxnreg else "",
    ]
    return ", ".join(filter(None, parts))
