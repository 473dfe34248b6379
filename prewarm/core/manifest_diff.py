"""Two manifests compared, kernel by kernel, in words that a user of vLLM follows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from msgspec import UnsetType

from prewarm.core.manifest import (
    Argument,
    Candidate,
    Constexpr,
    Kernel,
    Manifest,
    Specialization,
)
from prewarm.core.record import Record

ABSENT = "(absent)"
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
    return {name: _value(value) for name, value in values.items()}


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
    all_before, all_after = _asked(old), _asked(new)
    for before, after in _pairs(all_before, all_after):
        if before is None or after is None:
            texts = _line(before, all_before), _line(after, all_after)
            changes["specialisation", *texts] += 1
            continue
        for item in dict.fromkeys((*before, *after)):
            was, is_now = before.get(item, ABSENT), after.get(item, ABSENT)
            if was != is_now:
                changes[item, was, is_now] += 1
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


def candidate_text(candidate: Candidate) -> str:
    """Return `candidate` in one line: `BV=64, num_warps=4, num_stages=2, num_ctas=1`."""
    values = {**candidate.constexprs, **candidate.options()}
    return ", ".join(f"{name}={_value(value)}" for name, value in values.items())


_Asked = dict[str, str]
"""What a specialisation asks for: argument, option or tuning key to its text."""


def _asked(kernel: Kernel) -> list[_Asked]:
    return [_flat(kernel, specialization) for specialization in kernel.specializations]


def _flat(kernel: Kernel, asked: Specialization) -> _Asked:
    flat = {name: _argument(argument) for name, argument in asked.arguments.items()}
    flat |= {f"option {name}": _value(value) for name, value in asked.options.items()}
    flat |= {f"tuning key {name}": _value(value) for name, value in asked.tuning_key.items()}
    if asked.candidates is not None:
        texts = sorted(candidate_text(kernel.candidates[index]) for index in asked.candidates)
        flat["candidates after pruning"] = f"{len(texts)}: {'; '.join(texts)}"
    return flat


def _pairs(old: list[_Asked], new: list[_Asked]) -> Iterator[tuple[_Asked | None, _Asked | None]]:
    """Yield specialisations that differ, each beside the one that it is most like."""
    before = [asked for asked in old if asked not in new]
    after = [asked for asked in new if asked not in old]
    distances = sorted(
        (_distance(was, is_now), i, j)
        for i, was in enumerate(before)
        for j, is_now in enumerate(after)
    )
    mates: dict[int, int] = {}
    for _, i, j in distances:
        if i not in mates and j not in mates.values():
            mates[i] = j
    for i, was in enumerate(before):
        yield was, after[mates[i]] if i in mates else None
    for j in range(len(after)):
        if j not in mates.values():
            yield None, after[j]


def _distance(old: _Asked, new: _Asked) -> int:
    return sum(old.get(item) != new.get(item) for item in {*old, *new})


def _line(asked: _Asked | None, among: list[_Asked]) -> str:
    """Return what tells `asked` from the specialisation of its own manifest most like it."""
    if asked is None:
        return ABSENT
    others = [other for other in among if other is not asked]
    if not others:
        return ", ".join(f"{name}={text}" for name, text in asked.items())
    nearest = min(others, key=lambda other: _distance(asked, other))
    own = [f"{name}={text}" for name, text in asked.items() if nearest.get(name) != text]
    return f"one more, with {', '.join(own)}"


def _argument(argument: Argument) -> str:
    if argument.unbound:
        return "unbound"
    if argument.by_candidate:
        return "by candidate"
    if not isinstance(argument.value, UnsetType):
        return _value(argument.value)
    if argument.equal_to_1:
        return f"{argument.type} equal to 1"
    return f"{argument.type} divisible by 16" if argument.divisible_by_16 else argument.type


def _value(value: Constexpr) -> str:
    if isinstance(value, dict):
        return ", ".join(text.rpartition(":")[2] for text in value.values())
    return str(value)
