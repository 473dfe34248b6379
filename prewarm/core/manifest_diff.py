"""Two manifests compared, kernel by kernel, in words that a user of vLLM follows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from prewarm.core.asked import (
    ABSENT,
    Asked,
    asked_by,
    candidate_text,
    constexpr_text,
    differences,
    distance,
    pairs,
)
from prewarm.core.manifest import Constexpr, Kernel, Manifest
from prewarm.core.record import Record

GIVEN = "(given)"


class Change(Record, kw_only=True):
    """One thing that differs between an old manifest and a new one."""

    section: str
    """`serve arguments`, `model`, `target`, `toolchain`, `geometry`, …, or `kernel NAME`."""
    item: str
    old: str
    new: str
    count: int = 1
    """In how many specialisations of the kernel."""


def compare(old: Manifest, new: Manifest) -> tuple[Change, ...]:
    """Return what differs between `old` and `new`, from the deployment down to arguments.

    Empty where both ask for the same launches by the same means; two manifests can still differ
    in how they were found (workloads, shapes seen), which changes their digest and nothing else.
    """
    return (
        *_mappings("serve arguments", _options(old), _options(new)),
        *_mappings("model", _model(old), _model(new)),
        *_mappings("target", {"target": _target(old)}, {"target": _target(new)}),
        *_toolchains(old, new),
        *_mappings("geometry", _texts(old.geometry), _texts(new.geometry)),
        *_mappings("unbound", _unbound(old), _unbound(new)),
        *_mappings("elsewhere", _elsewhere(old), _elsewhere(new)),
        *_kernels(old, new),
    )


def _mappings(section: str, old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[Change]:
    for item in dict.fromkeys((*old, *new)):
        before, after = old.get(item, ABSENT), new.get(item, ABSENT)
        if before != after:
            yield Change(section=section, item=item, old=before, new=after)


def _options(manifest: Manifest) -> dict[str, str]:
    """Return option to values of the serve arguments; the model is told of elsewhere."""
    options: dict[str, str] = {}
    option = "MODEL"
    for argument in manifest.deployment.serve_args:
        name, equals, value = argument.partition("=")
        if argument.startswith("-") and not _is_number(argument):
            option = name
            options[option] = value if equals else ""
        else:
            options[option] = f"{options.get(option, '')} {argument}".strip()
    options.pop("MODEL", None)
    return {option: value or GIVEN for option, value in options.items()}


def _is_number(text: str) -> bool:
    return text.lstrip("-").replace(".", "", 1).isdecimal()


def _model(manifest: Manifest) -> dict[str, str]:
    model = manifest.deployment.model
    return {"name": model.name, "revision": model.revision or ABSENT, "config.json": model.config}


def _target(manifest: Manifest) -> str:
    return manifest.deployment.target


def _toolchains(old: Manifest, new: Manifest) -> Iterator[Change]:
    for item, before, after in old.toolchain.differences(new.toolchain):
        yield Change(section="toolchain", item=item, old=before, new=after)
    yield from _mappings("toolchain", {"libc": old.toolchain.libc}, {"libc": new.toolchain.libc})
    yield from _mappings("environment", old.toolchain.environment, new.toolchain.environment)


def _texts(values: Mapping[str, Constexpr]) -> dict[str, str]:
    return {name: constexpr_text(value) for name, value in values.items()}


def _unbound(manifest: Manifest) -> dict[str, str]:
    return {each.argument: f"follows the {each.follows}" for each in manifest.unbound}


def _elsewhere(manifest: Manifest) -> dict[str, str]:
    return {each.name: each.backend for each in manifest.elsewhere}


def _kernels(old: Manifest, new: Manifest) -> Iterator[Change]:
    before = {kernel.name: kernel for kernel in old.kernels}
    after = {kernel.name: kernel for kernel in new.kernels}
    for name in dict.fromkeys((*before, *after)):
        if name in before and name in after:
            yield from _kernel(before[name], after[name])
        else:
            yield Change(
                section=f"kernel {name}",
                item="kernel",
                old=_size(before.get(name)),
                new=_size(after.get(name)),
            )


def _size(kernel: Kernel | None) -> str:
    return ABSENT if kernel is None else f"{len(kernel.specializations)} specialisations"


def _kernel(old: Kernel, new: Kernel) -> Iterator[Change]:
    section = f"kernel {old.name}"
    yield from _mappings(section, _head(old), _head(new))
    yield from _candidates(section, old, new)
    changes: Counter[tuple[str, str, str]] = Counter()
    all_before, all_after = _every(old), _every(new)
    for before, after in _pairs(all_before, all_after):
        if before is None or after is None:
            texts = _line(before, all_before), _line(after, all_after)
            changes["specialisation", *texts] += 1
            continue
        for each in differences(before, after):
            changes[each.field, each.known, each.here] += 1
    for (item, was, is_now), count in changes.items():
        yield Change(section=section, item=item, old=was, new=is_now, count=count)


def _head(kernel: Kernel) -> dict[str, str]:
    tuned_by = "not autotuned" if kernel.tuned_by is None else ", ".join(kernel.tuned_by)
    return {"source": kernel.source, "autotuned by": tuned_by}


def _candidates(section: str, old: Kernel, new: Kernel) -> Iterator[Change]:
    before = [candidate_text(candidate) for candidate in old.candidates]
    after = [candidate_text(candidate) for candidate in new.candidates]
    for text in dict.fromkeys((*before, *after)):
        if (text in before) != (text in after):
            there = text if text in before else ABSENT
            now = text if text in after else ABSENT
            yield Change(section=section, item="candidate", old=there, new=now)


def _every(kernel: Kernel) -> list[Asked]:
    return [asked_by(kernel, specialization) for specialization in kernel.specializations]


def _pairs(old: list[Asked], new: list[Asked]) -> Iterator[tuple[Asked | None, Asked | None]]:
    """Yield specialisations that differ, each beside the one that it is most like."""
    before = [asked for asked in old if asked not in new]
    after = [asked for asked in new if asked not in old]
    for i, j in pairs(before, after):
        yield None if i is None else before[i], None if j is None else after[j]


def _line(asked: Asked | None, among: list[Asked]) -> str:
    """Return what tells `asked` from the specialisation of its own manifest most like it."""
    if asked is None:
        return ABSENT
    others = [other for other in among if other is not asked]
    if not others:
        return ", ".join(f"{name}={text}" for name, text in asked.items())
    alike = min(others, key=lambda other: distance(asked, other))
    own = [f"{name}={text}" for name, text in asked.items() if alike.get(name) != text]
    return f"one more, with {', '.join(own)}"
