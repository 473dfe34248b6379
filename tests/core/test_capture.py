"""What a captured step is cut down to, and what is read off it."""

from __future__ import annotations

import msgspec

from prewarm.core.capture import (
    CapturedLaunch,
    Grid,
    Step,
    Storage,
    TensorView,
    needed,
    shared,
    sized_by,
)
from prewarm.core.manifest import Constexpr
from prewarm.core.tunings import SizedBy

ONE = (Grid(blocks=(1, 1, 1)),)


def _view(storage: int, *shape: int) -> TensorView:
    strides = tuple(1 for _ in shape)
    return TensorView(storage=storage, dtype="int32", offset=0, shape=shape, strides=strides)


def _launch(kernel: str, *storages: int, **values: Constexpr) -> CapturedLaunch:
    tensors = {f"x{place}": _view(storage, 4) for place, storage in enumerate(storages)}
    return CapturedLaunch(kernel=kernel, source="", tensors=tensors, values=values, grids=ONE)


def _step(tokens: int, sequences: int, *launches: CapturedLaunch) -> Step:
    return Step(tokens=tokens, sequences=sequences, storages=(), launches=launches)


def _sized(tokens: int, ends: int, **values: Constexpr) -> CapturedLaunch:
    return CapturedLaunch(
        kernel="m:tuned",
        source="",
        tensors={"x": _view(0, 1, tokens), "ends": _view(1, ends), "offsets": _view(2, ends)},
        values={"H": 64, "T": tokens, **values},
        constexprs=("H",),
        tuning_key={"H": 64},
        grids=ONE,
    )


def test_what_feeds_an_autotuned_kernel_is_kept_in_order() -> None:
    """Through any number of storages; what comes after it, or feeds nothing, is dropped."""
    storages = [Storage(size=size, dtype="int32") for size in range(7)]
    launches = [
        _launch("m:first", 6, 5),
        _launch("m:aside", 0, 1),
        _launch("m:second", 5, 3),
        _launch("m:tuned", 3, 2),
        _launch("m:after", 2, 4),
    ]

    kept, found = needed(storages, launches, {"m:tuned"})

    assert [launch.kernel for launch in found] == ["m:first", "m:second", "m:tuned"]
    assert [storage.size for storage in kept] == [2, 3, 5, 6]
    assert [[view.storage for view in launch.tensors.values()] for launch in found] == [
        [3, 2],
        [2, 1],
        [1, 0],
    ]


def test_what_lies_between_two_autotuned_kernels_is_kept() -> None:
    """It feeds the second."""
    storages = [Storage(size=0, dtype="int32")] * 3
    launches = [_launch("m:tuned", 0), _launch("m:between", 0, 1), _launch("m:tuned", 1)]

    assert len(needed(storages, launches, {"m:tuned"})[1]) == 3


def test_a_step_without_autotuned_kernels_keeps_nothing() -> None:
    """No launch, no storage."""
    assert needed([Storage(size=1, dtype="int8")], [_launch("m:f", 0)], {"m:tuned"}) == ((), ())


def test_the_arguments_that_hold_the_size_are_found() -> None:
    """A run-time integer, and the first tensor that is one longer than the sequences."""
    steps = [_step(64, 1, _sized(64, 2)), _step(300, 3, _sized(300, 4))]

    assert sized_by(steps, "m:tuned") == SizedBy(tokens="T", sequences="ends")


def test_a_compile_time_argument_never_holds_the_size() -> None:
    """Though at one size it may happen to be equal: 64 heads, 64 tokens."""
    steps = [_step(64, 1, _sized(64, 2))]

    assert sized_by(steps, "m:tuned") == SizedBy(tokens="T", sequences="ends")


def test_one_launch_of_another_size_leaves_no_argument() -> None:
    """An argument must hold the size of every step."""
    other = _step(300, 3, _sized(256, 5))

    assert sized_by([_step(64, 1, _sized(64, 2)), other], "m:tuned") is None
    assert sized_by([_step(64, 1, _sized(64, 2))], "m:another") is None


def test_the_sequences_may_not_show() -> None:
    """Then the tokens alone decide."""
    steps = [_step(64, 1, _sized(64, 9)), _step(300, 3, _sized(300, 9))]

    assert sized_by(steps, "m:tuned") == SizedBy(tokens="T")


def test_shared_are_the_compile_time_integers_outside_the_key() -> None:
    """Neither switches nor run-time sizes: those that another deployment may have otherwise."""
    launch = msgspec.structs.replace(
        _sized(64, 2, Hg=16, USE_G=True, NAME="ieee"), constexprs=("H", "Hg", "USE_G", "NAME")
    )

    assert shared(launch) == {"Hg": 16}
