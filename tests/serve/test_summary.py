"""The line of a worker that is ready."""

from pathlib import Path

from prewarm.serve.counts import INFERENCE, START_UP, Count, Counts
from prewarm.serve.summary import summary
from prewarm.serve.unbound import Done


def count(what, value, *, subject="m:k", phase=START_UP, planned=True) -> Count:
    return Count(what=what, subject=subject, phase=phase, planned=planned, value=value)


def test_the_line_tells_planned_kernels_from_others_and_start_up_from_inference():
    found = Counts(
        pid=1,
        counts=(
            count("hits", 95),
            count("compiles", 1),
            count("compile seconds", 1.44),
            count("hits", 7, phase=INFERENCE),
            count("compiles", 3, planned=False),
            count("compile seconds", 4.2, planned=False),
            count("benchmarks", 9, subject="m:other", planned=False),
            count("builds", 1, subject="cuda_utils", planned=False),
            count("build seconds", 0.2, subject="cuda_utils", planned=False),
        ),
    )
    done = Done(compiled=4, found=1, seconds=3.14, values={"num_cache_lines": 1204})

    assert summary(found, Path("/opt/prewarm"), done, ("m:k",)) == (
        "ready with the cache in /opt/prewarm: 95 hits, 1 compile (1.4 s), 0 benchmarks;"
        " unbound (num_cache_lines=1204): 4 compiled, 1 found, in 3.1 s;"
        " winners by size for 1 kernel;"
        " kernels outside the plan: 0 hits, 3 compiles (4.2 s), 9 benchmarks;"
        " 1 host module built in 0.2 s"
    )


def test_without_a_cache_everything_is_one_sum():
    assert summary(Counts(pid=1, counts=(count("hits", 1, planned=False),)), None, Done()) == (
        "ready without a cache: 1 hit, 0 compiles, 0 benchmarks"
    )
