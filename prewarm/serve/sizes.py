"""The winner of each size: a tuning key does not hold the token count, a launch shows it.

Launches whose tuning key has size winners take the one measured nearest to them; every other
launch goes Triton's own way, and so does one that shows no size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prewarm.core.cache import CACHE_MANIFEST, CACHE_SCHEMA, CacheManifest
from prewarm.core.document import parse_json
from prewarm.core.errors import InputError, PrewarmError
from prewarm.core.selection import Choice, tuning_id
from prewarm.core.tunings import SizedBy

if TYPE_CHECKING:
    from prewarm.serve.triton_seam import Picked

_MOST_REMEMBERED = 4096
"""Sizes of one tuning key whose nearest winner is remembered."""
_UNREADABLE = (AttributeError, IndexError, TypeError)
"""What a launch raises whose arguments are not of the kind that tunings were measured with."""


def choices_of(cache: Path) -> tuple[Choice, ...]:
    """Return what tunings chose for the installed `cache`, the directory of TRITON_CACHE_DIR.

    Empty where it was made without tunings. Raises InputError where prewarm did not install it.
    """
    path = cache.resolve().parent / CACHE_MANIFEST
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{cache} is not an installed cache: cannot read {path}: {error.strerror}",
            "prewarm install …",
        ) from error
    selection = parse_json(data, CacheManifest, CACHE_SCHEMA, str(path)).selection
    return () if selection is None else selection.choices


class Installed:
    """The kernels of this process that take the winner of each size."""

    def __init__(self, tuners: Mapping[str, Any], left: Mapping[str, str]) -> None:
        self._tuners = dict(tuners)
        self.left = dict(left)
        """Kernel to why it stays as it is."""

    @property
    def kernels(self) -> tuple[str, ...]:
        """The kernels, as `module:function`."""
        return tuple(self._tuners)

    def uninstall(self) -> None:
        """Give every kernel back to Triton; the second time does nothing."""
        from prewarm.serve import triton_seam

        while self._tuners:
            _, tuner = self._tuners.popitem()
            triton_seam.restore_run(tuner)


def install(choices: Iterable[Choice], heard: Heard | None = None) -> Installed:
    """Let the kernels of `choices` take the winner of each size, and return which do.

    `heard` is called for each tuning key that they settle, when it is first met. Imports their
    modules. Raises nothing for a kernel that cannot: it is left as it is.
    """
    from prewarm.serve import triton_seam

    by_kernel: dict[str, list[Choice]] = {}
    for choice in choices:
        if choice.sized_by is not None and choice.sizes:
            by_kernel.setdefault(choice.kernel, []).append(choice)
    tuners: dict[str, Any] = {}
    left: dict[str, str] = {}
    for kernel, group in by_kernel.items():
        try:
            tuner = triton_seam.autotuner_named(kernel)
            triton_seam.replace_run(tuner, _Chooser(kernel, tuner, group, heard).pick)
            tuners[kernel] = tuner
        except PrewarmError as error:
            left[kernel] = str(error)
    return Installed(tuners, left)


class _Winners:
    """The winners of one tuning key."""

    def __init__(self, tuner: Any, choice: Choice) -> None:
        from prewarm.serve import triton_seam

        assert choice.sized_by is not None
        self.sized_by: SizedBy = choice.sized_by
        self._points = [
            (
                math.log2(each.tokens),
                math.log2(each.sequences),
                triton_seam.picked(tuner, each.config),
            )
            for each in choice.sizes
        ]
        self.remembered: dict[tuple[int, int], Picked] = {}

    def nearest(self, tokens: int, sequences: int) -> Picked | None:
        """Return the winner nearest in log2 of tokens and of sequences, and remember it."""
        if type(tokens) is not int or tokens < 1 or sequences < 1:
            return None
        x, y = math.log2(tokens), math.log2(sequences)
        *_, found = min(self._points, key=lambda point: math.hypot(point[0] - x, point[1] - y))
        if len(self.remembered) >= _MOST_REMEMBERED:
            self.remembered.clear()
        self.remembered[tokens, sequences] = found
        return found


Heard = Callable[[str, Mapping[str, Any]], None]
"""Told of a kernel and a tuning key of it, as a manifest names its parts."""
Known = tuple[int, int | None, _Winners]
"""Where a launch shows its tokens, where its sequences, and the winners of its tuning key."""


class _Form:
    """One way to pass the arguments: how many by position, then the names of the others."""

    def __init__(self, tuner: Any, positional: int, keywords: Iterable[str]) -> None:
        from prewarm.serve import triton_seam

        names = (*triton_seam.names_of_arguments(tuner)[:positional], *keywords)
        self.places = {name: place for place, name in enumerate(names)}
        self.key = tuple(self._present(triton_seam.names_of_key(tuner)))
        self.tensors = tuple(self._present(triton_seam.names_of_tensors(tuner)))
        self.known: dict[tuple[Any, ...], Known | None] = {}

    def _present(self, names: Sequence[str]) -> Iterator[int]:
        return (self.places[name] for name in names if name in self.places)

    def knowing(self, winners: _Winners) -> Known | None:
        """Return where this form shows the size, None where it does not."""
        by = winners.sized_by
        if by.tokens not in self.places or (by.sequences or by.tokens) not in self.places:
            return None
        sequences = None if by.sequences is None else self.places[by.sequences]
        return self.places[by.tokens], sequences, winners


class _Chooser:
    """Picks the config of each launch of one kernel.

    A launch is told by the values of the key's arguments and by the dtypes of the others, as
    Triton tells it; the names in its tuning key are put together for the first of a kind alone.
    """

    def __init__(
        self, kernel: str, tuner: Any, choices: Iterable[Choice], heard: Heard | None
    ) -> None:
        self._kernel = kernel
        self._tuner = tuner
        self._heard = heard
        self._winners = {tuning_id(kernel, c.key): _Winners(tuner, c) for c in choices}
        self._forms: dict[tuple[Any, ...], _Form] = {}

    def pick(self, args: tuple[Any, ...], keywords: dict[str, Any]) -> Picked | None:
        """Return the config of a launch, None where it is Triton's to find."""
        try:
            names = (len(args), *keywords)
            form = self._forms.get(names)
            if form is None:
                form = self._forms[names] = _Form(self._tuner, len(args), keywords)
            values = (*args, *keywords.values())
            kind = (
                *[values[place] for place in form.key],
                *[getattr(values[place], "dtype", None) for place in form.tensors],
            )
            if kind not in form.known:
                form.known[kind] = self._look_up(form, args, keywords)
            known = form.known[kind]
            if known is None:
                return None
            tokens_at, sequences_at, winners = known
            tokens = values[tokens_at]
            sequences = 1 if sequences_at is None else values[sequences_at].shape[0] - 1
            found = winners.remembered.get((tokens, sequences))
            return winners.nearest(tokens, sequences) if found is None else found
        except _UNREADABLE:
            return None

    def _look_up(
        self, form: _Form, args: tuple[Any, ...], keywords: Mapping[str, Any]
    ) -> Known | None:
        from prewarm.serve import triton_seam

        key = triton_seam.tuning_key_of(self._tuner, args, keywords)
        winners = self._winners.get(tuning_id(self._kernel, key))
        known = None if winners is None else form.knowing(winners)
        if known is not None and self._heard is not None:
            self._heard(self._kernel, key)
        return known
