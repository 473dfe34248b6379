"""Several tunings as one, in whatever order, and never one over another."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prewarm.core.errors import InputError
from prewarm.core.manifest import Candidate
from prewarm.core.tunings import KernelTunings, KeyTuning, Measured, Run, Size, Tunings
from prewarm.core.tunings_merge import merge
from prewarm.core.tunings_yaml import parse_tunings, render_tunings

CONFIG = Candidate(num_warps=4, num_stages=2)


def run(day: int) -> Run:
    return Run(
        model="a/model",
        serve_args=("a/model", "-tp", str(day)),
        manifest=f"sha256:{day}",
        date=f"2026-11-{day:02}T00:00:00Z",
        driver="580",
        clocks=(),
        sizes=(Size(tokens=64, sequences=1),),
        objective="the fastest",
        noise=0.01,
        seconds=1.0,
    )


def key(n: int, place: int = 0, time: float = 1.0) -> KeyTuning:
    return KeyTuning(
        key={"n": n},
        run=place,
        winner=CONFIG,
        confirmed=True,
        score=1.0,
        reference=CONFIG,
        gain=1.0,
        measured=(Measured(config=CONFIG, times=(time,)),),
    )


def kernel(name: str, *keys: KeyTuning, source: str = "sha256:s") -> KernelTunings:
    return KernelTunings(name=name, source=source, candidates=(CONFIG,), keys=keys)


def tunings(*kernels: KernelTunings, runs: tuple[Run, ...] = (run(1),), **head) -> Tunings:
    plain = {"gpu": "GPU", "arch": 90, "triton": "3.6.0", **head}
    return Tunings(runs=runs, kernels=kernels, **plain)


def keys_and_dates(found: Tunings) -> dict[tuple[str, int], str]:
    return {
        (kernel.name, each.key["n"]): found.runs[each.run].date
        for kernel in found.kernels
        for each in kernel.keys
    }


def test_each_key_keeps_its_run():
    first = tunings(kernel("m:b", key(2), key(1)), runs=(run(5),))
    second = tunings(kernel("m:b", key(3)), kernel("m:a", key(1, 1)), runs=(run(7), run(3)))

    merged = merge([first, second])

    assert [each.date[8:10] for each in merged.runs] == ["03", "05", "07"]
    assert keys_and_dates(merged) == {
        ("m:a", 1): "2026-11-03T00:00:00Z",
        ("m:b", 1): "2026-11-05T00:00:00Z",
        ("m:b", 2): "2026-11-05T00:00:00Z",
        ("m:b", 3): "2026-11-07T00:00:00Z",
    }
    assert [each.name for each in merged.kernels] == ["m:a", "m:b"]
    assert parse_tunings(render_tunings(merged), "m") == merged


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 3), st.integers(1, 9)), min_size=1))
def test_the_order_of_the_arguments_and_of_the_merges_changes_nothing(made):
    days = {(name, n): day for name, n, day in made}
    parts = [
        tunings(kernel(f"m:{name}", key(n)), runs=(run(day),)) for (name, n), day in days.items()
    ]

    merged = merge(parts)

    assert merge(parts[::-1]) == merged
    assert merge([parts[-1], merge(parts)]) == merge([merged, parts[0]])
    assert len(keys_and_dates(merged)) == len(days)


def test_what_stands_in_two_files_stands_once_in_one():
    first = tunings(kernel("m:a", key(1)), runs=(run(1),))
    both = tunings(kernel("m:a", key(1, 1), key(2)), runs=(run(2), run(1)))

    merged = merge([first, both])

    assert len(merged.runs) == 2
    assert keys_and_dates(merged) == keys_and_dates(both)


def test_one_file_alone_stays_as_it_is():
    alone = tunings(kernel("m:b", key(2), key(1)), kernel("m:a"))

    assert merge([alone]) == alone


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(("day", "time"), [(2, 1.0), (2, 3.0), (1, 3.0)])
def test_a_key_that_was_measured_twice_is_a_conflict_naming_both_runs(day, time, order):
    parts = [
        tunings(kernel("m:a", key(1), key(7)), runs=(run(1),)),
        tunings(kernel("m:a", key(7, time=time)), runs=(run(day),)),
    ]

    with pytest.raises(InputError) as refused:
        merge(parts[::order])

    assert str(refused.value) == (
        "measured twice, and nothing says which counts:\n"
        f"  m:a, n=7: a/model -tp 1 of 2026-11-01T00:00:00Z and"
        f" a/model -tp {day} of 2026-11-0{day}T00:00:00Z"
    )


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ({"gpu": "NVIDIA H200"}, "GPU: GPU and NVIDIA H200"),
        ({"arch": 100}, "architecture: 100 and 90"),
        ({"triton": "3.7.0"}, "Triton: 3.6.0 and 3.7.0"),
    ],
)
def test_another_gpu_or_triton_is_refused_and_named(head, said):
    for parts in itertools.permutations([tunings(kernel("m:a")), tunings(**head)]):
        with pytest.raises(InputError, match="can be merged") as refused:
            merge(parts)
        assert said in str(refused.value)


def test_another_source_or_list_of_a_kernel_is_refused_and_named():
    one = tunings(kernel("m:a", key(1)), kernel("m:b"), runs=(run(1),))
    other = tunings(kernel("m:a", key(2), source="sha256:new"), runs=(run(2),))
    longer = msgspec.structs.replace(kernel("m:b", key(2)), candidates=(CONFIG, CONFIG))

    with pytest.raises(InputError, match=r"m:a: another source in .*-01T.* and .*-02T"):
        merge([one, other])
    with pytest.raises(InputError, match="m:b: another list of candidates"):
        merge([one, tunings(longer)])


def test_nothing_to_merge_is_bad_input():
    with pytest.raises(InputError, match="no tunings to merge"):
        merge([])
