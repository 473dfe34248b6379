"""What changes with the number of GPU blocks is unbound; nothing else is."""

from __future__ import annotations

from prewarm.core.manifest import Argument, Kernel, Specialization
from prewarm.trace.unbound import unbind


def _kernel(*rows: dict[str, Argument]) -> Kernel:
    return Kernel(
        name="module:kernel",
        source="sha256:0",
        specializations=tuple(Specialization(arguments=row, via=("decode",)) for row in rows),
    )


def _constexpr(value: int) -> Argument:
    return Argument(type="constexpr", value=value)


def test_a_constexpr_that_follows_the_blocks_is_unbound() -> None:
    """Its value is gone from the launch, and both values are on record."""
    here = _kernel({"lines": _constexpr(100), "width": _constexpr(4)})
    there = _kernel({"lines": _constexpr(117), "width": _constexpr(4)})

    (kernel,), (unbound,) = unbind([here], [there], (100, 117))

    (one,) = kernel.specializations
    assert one.arguments["lines"] == Argument(type="constexpr", unbound=True)
    assert one.arguments["width"] == _constexpr(4)
    assert (unbound.argument, unbound.seen) == ("lines", {"100": 100, "117": 117})


def test_a_value_seen_with_both_numbers_stays_bound() -> None:
    """The same argument can be settled in one launch and unbound in another."""
    here = _kernel({"lines": _constexpr(512)}, {"lines": _constexpr(100)})
    there = _kernel({"lines": _constexpr(512)}, {"lines": _constexpr(117)})

    (kernel,), _ = unbind([here], [there], (100, 117))

    values = [one.arguments["lines"] for one in kernel.specializations]
    assert sorted(map(repr, values)) == sorted(
        map(repr, (_constexpr(512), Argument(type="constexpr", unbound=True)))
    )


def test_a_plain_integer_in_another_class_is_another_launch() -> None:
    """Both classes are kept: either may be asked for."""
    here = _kernel({"lines": Argument(type="i32", divisible_by_16=True)})
    there = _kernel({"lines": Argument(type="i32")})

    (kernel,), unbound = unbind([here], [there], (96, 97))

    assert unbound == ()
    assert [one.arguments["lines"].divisible_by_16 for one in kernel.specializations] in (
        [True, False],
        [False, True],
    )


def test_launches_that_become_one_are_reached_by_what_reached_each() -> None:
    """Start-up and inference may see different values, or a class with one number only."""

    def kernel(lines: int, *vias: str) -> Kernel:
        rows = tuple(
            Specialization(arguments={"lines": _constexpr(lines + i)}, via=(via,))
            for i, via in enumerate(vias)
        )
        return Kernel(name="module:kernel", source="sha256:0", specializations=rows)

    here, there = kernel(100, "start-up", "prefill"), kernel(117, "decode")
    (merged,), _ = unbind([here], [there], (100, 117))

    (one,) = merged.specializations
    assert one.via == ("decode", "prefill", "start-up")


def test_equal_traces_leave_the_kernels_as_they_are() -> None:
    """With or without compile-time values."""
    here = _kernel({"x": _constexpr(3), "y": Argument(type="*fp32", divisible_by_16=True)})

    assert unbind([here], [here], (1, 2)) == ((here,), ())
