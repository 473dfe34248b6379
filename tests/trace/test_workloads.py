"""Workloads stay within what the deployment admits, whatever it is."""

from __future__ import annotations

from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from prewarm.trace.workloads import Limits, boundary_workloads, random_workloads

limits = st.builds(
    Limits,
    tokens=st.integers(16, 16384),
    sequences=st.integers(1, 1024),
    model_length=st.integers(64, 262144),
    graph_size=st.just(0),
    graph_sizes=st.just(()),
    block=st.integers(16, 4096),
    data_parallel=st.booleans(),
    prefix_caching=st.booleans(),
    draft_tokens=st.integers(0, 3),
)


@given(limits)
def test_every_request_can_be_served(limits: Limits) -> None:
    """Prompt and output fit the model, and no workload is empty."""
    for workload in [*boundary_workloads(limits), *islice(random_workloads(limits, 0), 20)]:
        assert bool(workload.arrivals) != (workload.kind == "idle rank")
        for arrival in workload.arrivals:
            assert arrival.prompt >= 1
            assert arrival.prompt + arrival.output <= limits.model_length
            assert 0 <= arrival.prefix <= arrival.prompt


@given(limits, st.integers())
def test_a_seed_is_a_stream(limits: Limits, seed: int) -> None:
    """The same seed gives the same workloads."""
    once, again = (list(islice(random_workloads(limits, seed), 5)) for _ in range(2))

    assert once == again


def test_the_edges_are_there() -> None:
    """The sizes at which Triton specializes or vLLM changes its way."""
    budget = Limits(
        tokens=8192,
        sequences=1024,
        model_length=262144,
        graph_size=512,
        graph_sizes=(1, 2, 4, 8, 512),
        block=2096,
        data_parallel=True,
        prefix_caching=True,
        draft_tokens=2,
    )
    workloads = list(boundary_workloads(budget))
    single = {
        w.arrivals[0].prompt for w in workloads if w.kind == "prefill" and len(w.arrivals) == 1
    }
    decodes = {len(w.arrivals) for w in workloads if w.kind == "decode"}

    assert {1, 2, 15, 16, 17, 63, 64, 65, 8191, 8192} <= single
    assert {1, 2, 15, 16, 17, 512, 513, 1024} <= decodes
    assert {w.kind for w in workloads} == {
        "prefill",
        "chunked prefill",
        "decode",
        "mixed",
        "prefix",
        "speculative decode",
        "speculative mixed",
        "end of the model's length",
        "idle rank",
    }
    assert {w.peers_graph for w in workloads} == {None, "none", "piecewise"}
