"""Nouns as people read them: text and tables, nothing printed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from prewarm.core.asked import in_words
from prewarm.core.audit import Audit, Cause, Leak, Work
from prewarm.core.cache import CacheManifest
from prewarm.core.finding import Finding
from prewarm.core.first_start import tuned_on
from prewarm.core.flashinfer import BuiltModule
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
    faster_backends,
    key_text,
)
from prewarm.core.upgrade import KernelUpgrade, TuningUpgrade, Upgrade
from prewarm.prove.proof import Column, Proof

if TYPE_CHECKING:
    from prewarm.prove.closure import Closure
    from prewarm.ship.attestations import Beside
    from prewarm.ship.catalogue import Shown, Tagged
    from prewarm.ship.choose import Choice as ImageChoice

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
        "FlashInfer": found.flashinfer and _built(found.flashinfer),
        "files": f"{len(found.files)}, {size(sum(file.size for file in found.files))}",
        "manifest": found.manifest,
    }
    return Group(facts(head), "", table(("kernel", "#launches"), sorted(by_kernel.items())))


def _records(found: CacheManifest) -> str:
    if found.selection is None or not found.autotune_records:
        return "none"
    keys = "every tuning key" if found.tuned else "some tuning keys"
    return f"{len(found.autotune_records)}, for {keys}, measured on {tuned_on(found.selection)}"


def _built(found: BuiltModule) -> str:
    instances = sorted(name for library in found.libraries for name in library.instances)
    return (
        f"{found.flashinfer}, {found.module} for {found.arch} by {found.compiler}:"
        f" {', '.join(instances)}"
    )


def tags(found: Iterable[Tagged]) -> RenderableType:
    """Return the tags of a repository, each with what it is for."""
    columns = ("tag", "kind", "target", "arch", "vLLM", "Triton", "tuned", "#size", "digest")
    return table(
        columns,
        (
            (
                each.tag,
                each.kind if each.kind != "index" else f"index of {each.images}",
                *(
                    each.facts.get(name, "")
                    for name in ("target", "arch", "vllm", "triton", "tuned")
                ),
                size(each.size) if each.size else "",
                each.digest,
            )
            for each in found
        ),
    )


def shown(found: Shown) -> RenderableType:
    """Return what is behind a reference; of an index, which of its images fit this host."""
    head = facts(
        {
            "reference": found.reference,
            "media type": found.media_type,
            "layers": size(found.size) if found.size else None,
            **found.facts,
        }
    )
    parts: list[RenderableType] = [head]
    if found.images:
        parts += ["", _fitting(found.images)]
    if found.beside:
        parts += ["", _beside(found.beside)]
    return Group(*parts)


def _beside(found: Iterable[Beside]) -> RenderableType:
    columns = ("beside it", "signed by", "digest", "artifact type")
    return table(
        columns, ((each.what, each.signed_by, each.digest, each.artifact_type) for each in found)
    )


def _fitting(found: Iterable[ImageChoice]) -> RenderableType:
    rows = (
        (
            "no" if each.against else "yes",
            each.facts.get("target", ""),
            each.facts.get("arch", ""),
            each.facts.get("vllm", ""),
            each.facts.get("python-abi", ""),
            "; ".join(each.against),
            each.digest,
        )
        for each in found
    )
    columns = ("fits", "target", "arch", "vLLM", "Python ABI", "because", "digest")
    return table(columns, rows)


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


def upgrade_and_changes(found: Upgrade, every: Sequence[Change]) -> RenderableType:
    """Return what must be done again, then every change, then the verdict in one line."""
    return Group(upgrade(found), changes(every), "", Text(found.verdict()))


def upgrade(found: Upgrade) -> RenderableType:
    """Return what becomes of each kernel's entries and tunings, those left out that stay."""
    kernels = [each for each in found.kernels if each.reasons]
    stale = [each for each in found.tunings if each.reasons]
    parts: list[RenderableType] = []
    if kernels:
        columns = ("kernel", "#as before", "#changed", "#new", "#gone", "why")
        parts += [table(columns, map(_kernel_upgrade, kernels)), ""]
    if stale:
        parts += [table(("to be tuned again", "why"), map(_tuning_upgrade, stale)), ""]
    return Group(*parts)


def _kernel_upgrade(each: KernelUpgrade) -> tuple[object, ...]:
    why = "; ".join(f"{reason.text} ({reason.launches})" for reason in each.reasons)
    return short(each.kernel), each.stay, each.change, each.come, each.go, why


def _tuning_upgrade(each: TuningUpgrade) -> tuple[object, ...]:
    return short(each.kernel), ", ".join(each.reasons)


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
    note = " (a note)" if finding.note else ""
    return f"{finding}{note}\n  fix: {finding.fix}"


def audit(of: Manifest, found: Audit) -> RenderableType:
    """Return what start-up leaves to inference: how much, why, and for which kernels."""
    deployment = _deployment(of)
    head = {name: deployment[name] for name in ("model", "serve arguments", "target", "toolchain")}
    head |= {f"not audited: {each.name}": f"by {each.backend}" for each in of.elsewhere}
    parts: list[RenderableType] = [facts(head), "", table(_AUDIT_COLUMNS, _audit_rows(found))]
    if not found.leaks:
        return Group(*parts, "", "nothing leaks into inference")
    columns = ("kernel", "#tuning keys", "#benchmarks", "#compiles", "why", "reached by")
    return Group(
        *parts,
        "",
        *(Text(_cause(each)) for each in found.causes),
        *([""] if found.causes else []),
        table(columns, _leaking_rows(found.leaks)),
        *_autotune_events(found),
    )


_AUDIT_COLUMNS = ("on each rank", "#benchmarks", "#compiles")


def _audit_rows(found: Audit) -> Iterator[tuple[object, ...]]:
    in_vain = sum((waste.work for waste in found.in_vain), start=Work())
    for text, work in (
        ("start-up and graph capture", found.start_up),
        ("  that no inference asks for", in_vain),
        ("left to inference", found.inference),
    ):
        yield text, work.benchmarks, work.compiles


def _cause(cause: Cause) -> str:
    """Return in one line what differs, or how much more where that is a lot."""
    kernels = [short(kernel) for kernel in cause.kernels]
    where = kernels[0] if len(kernels) == 1 else counted(len(kernels), "kernel")
    counts = [counted(cause.work.compiles, "compile")]
    if cause.work.benchmarks:
        counts.insert(0, counted(cause.work.benchmarks, "benchmark"))
    words = [
        in_words(each.difference, "in start-up", here="in inference")
        for each in cause.mismatches[:_MOST_TOLD]
    ]
    if more := len(cause.mismatches) - len(words):
        words.append(f"{more} more differ{'s' * (more == 1)}")
    return f"{'; '.join(words)}: {', '.join((where, *counts))}"


_MOST_TOLD = 3
"""Differences that a line names."""


def _leaking_rows(leaks: Sequence[Leak]) -> Iterator[tuple[object, ...]]:
    by_kernel: dict[str, list[Leak]] = {}
    for leak in leaks:
        by_kernel.setdefault(leak.kernel, []).append(leak)
    for kernel, mine in by_kernel.items():
        work = sum((leak.work for leak in mine), start=Work())
        keys = sum(bool(leak.work.benchmarks) for leak in mine)
        reached = sorted({via for leak in mine for via in leak.via})
        yield (
            short(kernel),
            keys or "",
            work.benchmarks or "",
            work.compiles,
            _why(mine),
            ", ".join(reached),
        )


def _why(leaks: Sequence[Leak]) -> str:
    every = [each.difference.field for leak in leaks for each in leak.mismatches or ()]
    fields = [*dict.fromkeys(every)]
    more = len(fields) - _MOST_TOLD
    told = [*fields[:_MOST_TOLD], f"{more} more"] if more > 1 else fields
    return ", ".join(told) or "start-up never launches it"


def _autotune_events(found: Audit) -> tuple[RenderableType, ...]:
    if not found.inference.benchmarks:
        return ()
    text = (
        "A benchmark, or autotune event, is one rank timing one candidate of a kernel for one\n"
        "tuning key; that happens once for each key in a process, whatever the other arguments\n"
        f"are. A first prefill asks each kernel for one key: {found.one_of_each} benchmarks."
    )
    return "", Text(text)


def counted(count: int, what: str) -> str:
    """Return how many there are of what can be counted."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


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
        parts += _prefills(run)
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


def _prefills(run: Run) -> Iterator[RenderableType]:
    """Yield the backends of GDN prefill side by side, which one is faster where, and its price."""
    if not run.prefills:
        return
    alone = Counter(each.backend for each in run.prefills)
    names = (f"#{p.backend if alone[p.backend] == 1 else p.name}, µs" for p in run.prefills)
    yield from ("", table(("prefill of", *names, "faster"), _prefill_rows(run)), "")
    faster = Counter(faster_backends(run))
    equal = faster.pop(None, 0)
    sizes = [f"{backend} is at {count}" for backend, count in sorted(faster.items())]
    sizes += [f"they are equal at {equal}"] if equal else []
    yield Text(f"faster of --gdn-prefill-backend, of {len(run.sizes)} sizes: {', '.join(sizes)}")
    for each in run.prefills:
        host = f"{min(each.host):.0f}–{max(each.host):.0f} µs"
        yield Text(f"{each.name}: {host} of a CPU to launch; cold: {each.cold}")


def _prefill_rows(run: Run) -> Iterator[tuple[object, ...]]:
    for at, (size_, backend) in enumerate(zip(run.sizes, faster_backends(run), strict=True)):
        times = (f"{each.times[at]:.1f}" for each in run.prefills)
        yield size_text(size_), *times, backend or "equal"


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


def proof(found: Proof) -> RenderableType:
    """Return what serving processes did beside one another, and what the plan missed."""
    columns = ("", *(f"#{each.name}" for each in found.columns))
    idle = sum(each.launches for each in found.idle)
    parts: list[RenderableType] = [
        facts({"GPU": found.gpu, "depth": _DEPTHS[found.depth], "workloads": found.workloads}),
        "",
        table(columns, _proof_rows(found.columns, found.modules)),
        "",
        Text(
            "An autotune event is the timing of one config of one kernel. Launches of the plan are"
            " those of GDN layers and of the model runner."
        ),
        "",
    ]
    if found.escapes:
        rows = ((short(e.kernel), e.phase, e.count, e.words) for e in found.escapes)
        missed = table(("asked for and not planned", "in", "#times", "how it differs"), rows)
        parts += [missed, ""]
    else:
        parts.append("every launch that was asked for was planned")
    if idle:
        parts.append(
            f"{counted(idle, 'planned launch')} of {counted(len(found.idle), 'kernel')} that these"
            f" workloads never asked for: {', '.join(short(each.kernel) for each in found.idle)}"
        )
    for name in found.modules:
        taken = found.columns[-1].taken(name)
        if not taken.loaded:
            how = "built" if taken.builds else "never called for"
            parts.append(f"{name} of FlashInfer was {how}")
    parts += [f"{name}: outside Triton, and not counted here" for name in found.uncounted]
    parts.append("the cache holds" if found.holds else "the cache does not hold")
    return Group(*parts)


def closure(found: Closure) -> RenderableType:
    """Return what random request streams found in a manifest, and what they never asked for."""
    parts: list[RenderableType] = [
        facts(
            {
                "streams": f"{found.streams}, seed {found.seed}",
                "scheduler steps": f"{found.steps:,}",
                "requests": f"{found.requests:,}: {counted(found.preemptions, 'preemption')},"
                f" {counted(found.prefix_hits, 'prefix hit')}, {found.aborts} aborted",
                "GPU blocks": ", ".join(map(str, found.gpu_blocks)),
                "launches": f"{found.calls:,}, of them different: {found.asked}",
                "planned": f"{found.planned} launches",
            }
        ),
        "",
    ]
    if found.escapes:
        rows = ((short(e.kernel), e.launches, e.first, e.words) for e in found.escapes)
        missed = ("asked for and not planned", "#launches", "first in", "how it differs")
        parts += [table(missed, rows), ""]
    else:
        parts.append("every launch that was asked for was planned")
    parts.append(f"dead weight: {found.dead_weight:.1%}")
    for title, idle in (
        ("planned and never asked for", found.dead),
        ("asked for before serving only", found.before_serving),
    ):
        if idle:
            rows_of = ((short(each.kernel), each.launches, ", ".join(each.via)) for each in idle)
            parts += ["", table((title, "#launches", "planned because of"), rows_of)]
    return Group(*parts)


_DEPTHS = {
    "layer": "GDN layers, without weights",
    "engine": "vLLM's whole engine, with dummy weights",
}


def _proof_rows(columns: Sequence[Column], modules: Sequence[str]) -> Iterator[tuple[object, ...]]:
    def row(name: str, value: Callable[[Column], object]) -> tuple[object, ...]:
        return (name, *(value(each) for each in columns))

    yield row("start-up, s", lambda c: f"{c.start_up:.1f}")
    yield row("autotune events in start-up", lambda c: c.planned["start-up"].benchmarks)
    yield row("autotune events in inference", lambda c: c.planned["inference"].benchmarks)
    yield row("compiles in start-up", lambda c: c.planned["start-up"].compiles)
    yield row("  unbound, compiled by prewarm", lambda c: c.planned["unbound"].compiles)
    yield row("compiles in inference", lambda c: c.planned["inference"].compiles)
    yield row("hits", lambda c: sum(work.hits for work in c.planned.values()))
    yield row("first request, ms", lambda c: f"{c.first * 1e3:.1f}")
    yield row("last of the same, ms", lambda c: f"{c.tenth * 1e3:.1f}")
    yield row("tokens per second", lambda c: f"{c.tokens_per_second:,.0f}")
    yield row("slowest workload after, ms", lambda c: f"{c.worst * 1e3:.1f} ({c.slowest})")
    yield row("host modules built", lambda c: sum(c.host_modules.values()))
    for name in modules:
        taken = [each.taken(name) for each in columns]
        yield f"{name}: loads", *(each.loads for each in taken)
        yield "  builds", *(each.builds for each in taken)
        yield "  s", *(f"{each.seconds:.1f}" for each in taken)
    yield row("other kernels: compiles in start-up", lambda c: c.others["start-up"].compiles)
    yield row("  s", lambda c: f"{c.others['start-up'].seconds:.1f}")
    yield row("other kernels: compiles in inference", lambda c: c.others["inference"].compiles)
    yield row("GPU blocks", lambda c: ", ".join(map(str, dict.fromkeys(c.gpu_blocks))))
