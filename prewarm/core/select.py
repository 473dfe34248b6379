"""A manifest and tunings -> the configs to compile; whatever is stale is refused."""

from __future__ import annotations

from prewarm.core.errors import InputError
from prewarm.core.manifest import Constexpr, Manifest
from prewarm.core.record import Record
from prewarm.core.selection import Choice, Selection, tuning_id
from prewarm.core.target import target_named
from prewarm.core.tuning_keys import tuning_keys
from prewarm.core.tunings import KeyTuning, Run, Tunings

_AGAIN = "tune again: prewarm tune MANIFEST -o TUNINGS"


class Untuned(Record, kw_only=True):
    """A tuning key of the manifest that the tunings do not hold."""

    kernel: str
    key: dict[str, Constexpr]


class Selected(Record, kw_only=True):
    """What tunings choose for a manifest, and for which of its keys they say nothing."""

    selection: Selection
    untuned: tuple[Untuned, ...] = ()


def select(
    manifest: Manifest,
    tunings: Tunings,
    *,
    all_candidates: bool = False,
    one_winner: bool = False,
    other_gpu: bool = False,
) -> Selected:
    """Return what `tunings` choose for `manifest`.

    Keys are joined by GPU, Triton, kernel source, candidate list and tuning key. With
    `all_candidates` the kernels' own candidates are compiled besides; with `one_winner` the
    winners of single sizes are left out; with `other_gpu` tunings of another GPU than the
    manifest's target will do. Raises InputError where the GPU, Triton or a kernel is another
    one, and where no key of the manifest is in the tunings.
    """
    foreign = _is_foreign(manifest, tunings, other_gpu=other_gpu)
    _check_triton(manifest, tunings)
    _check_kernels(manifest, tunings)
    tuned = {
        tuning_id(kernel.name, key.key): (key, tunings.runs[key.run])
        for kernel in tunings.kernels
        for key in kernel.keys
    }
    asked = {
        tuning_id(each.kernel, each.key): Untuned(kernel=each.kernel, key=each.key)
        for each in tuning_keys(manifest, None)
    }
    choices = tuple(
        _choice(asked[each].kernel, *tuned[each], one_winner=one_winner)
        for each in asked
        if each in tuned
    )
    if not choices:
        raise _nothing_matches(len(asked), tunings)
    return Selected(
        selection=Selection(
            gpu=tunings.gpu,
            foreign=foreign,
            tunings=tunings.digest,
            all_candidates=all_candidates,
            choices=choices,
        ),
        untuned=tuple(key for each, key in asked.items() if each not in tuned),
    )


def _is_foreign(manifest: Manifest, tunings: Tunings, *, other_gpu: bool) -> bool:
    target = target_named(manifest.deployment.target)
    if tunings.gpu != target.device_name and not other_gpu:
        raise InputError(
            f"the tunings were measured on {tunings.gpu}, the manifest is for {target.device_name}",
            "tune on that GPU; or, knowing that other winners may be right there:"
            " --tunings-of-another-gpu",
        )
    return tunings.gpu != target.device_name


def _check_triton(manifest: Manifest, tunings: Tunings) -> None:
    tools = manifest.toolchain
    if tunings.triton != tools.triton:
        raise InputError(
            f"the tunings were measured with Triton {tunings.triton},"
            f" the manifest was planned with Triton {tools.triton}",
            _AGAIN,
        )


def _check_kernels(manifest: Manifest, tunings: Tunings) -> None:
    tuned = {kernel.name: kernel for kernel in tunings.kernels}
    changed = []
    for kernel in manifest.kernels:
        found = tuned.get(kernel.name)
        if found is not None and found.source != kernel.source:
            changed.append(f"{kernel.name}: its source")
        elif found is not None and found.candidates != kernel.candidates:
            changed.append(f"{kernel.name}: its list of candidates")
    if changed:
        raise InputError(
            "kernels have changed since the tunings were measured:\n  " + "\n  ".join(changed),
            _AGAIN,
        )


def _choice(kernel: str, tuning: KeyTuning, run: Run, *, one_winner: bool) -> Choice:
    by_size = not one_winner and any(size.config != tuning.winner for size in tuning.sizes)
    return Choice(
        kernel=kernel,
        key=tuning.key,
        winner=tuning.winner,
        time=_time(tuning, run),
        sized_by=tuning.sized_by,
        sizes=tuning.sizes if by_size else (),
    )


def _time(tuning: KeyTuning, run: Run) -> float:
    """Return the winner's microseconds at the size that counts most, then the largest."""
    counted = zip(run.sizes, tuning.times(tuning.winner), strict=True)
    known = [(size.weight, size.tokens, time) for size, time in counted if time is not None]
    return max(known)[-1]


def _nothing_matches(asked: int, tunings: Tunings) -> InputError:
    if not asked:
        return InputError(
            "the manifest has no autotuned kernel that tunings could choose for",
            "leave the tunings out; or plan with --gdn-prefill-backend triton",
        )
    count = sum(len(kernel.keys) for kernel in tunings.kernels)
    return InputError(
        f"none of the {asked} tuning keys of the manifest is among the {count} of the"
        " tunings: they were measured for another model or another tensor parallelism",
        _AGAIN,
    )
