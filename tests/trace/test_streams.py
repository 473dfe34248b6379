"""Random request streams: what a deployment admits, the same ones for the same seed."""

from __future__ import annotations

from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from prewarm.trace.streams import Bounds, streams

bounds = st.builds(
    Bounds,
    tokens=st.integers(16, 16384),
    sequences=st.integers(1, 1024),
    model_length=st.integers(64, 262144),
    blocks=st.lists(st.integers(16, 4096), min_size=1, max_size=2).map(tuple),
    graphs=st.sampled_from([(), (1, 2, 4, 8, 512)]),
    draft_tokens=st.integers(0, 3),
    data_parallel=st.booleans(),
)


@given(bounds, st.integers())
def test_every_client_can_be_served(admitted: Bounds, seed: int) -> None:
    """Prompt and answer fit the model, a prefix its prompt, and clients come in order."""
    for stream in islice(streams(admitted, seed, 20), 5):
        arrivals = [client.arrives for client in stream.clients]

        assert stream.clients
        assert arrivals == sorted(arrivals)
        for client in stream.clients:
            assert client.prompt >= 1
            assert client.output >= 1
            assert client.prompt + client.output <= admitted.model_length
            assert 0 <= client.prefix <= client.prompt
            assert client.leaves is None or client.leaves >= client.arrives


@given(bounds, st.integers())
def test_drafts_and_peers_are_those_of_the_deployment(admitted: Bounds, seed: int) -> None:
    """No more draft tokens are accepted than proposed, and only data parallelism has peers."""
    for stream in islice(streams(admitted, seed, 20), 5):
        assert bool(stream.accepted) == bool(admitted.draft_tokens)
        assert all(0 <= count <= admitted.draft_tokens for count in stream.accepted)
        assert bool(stream.peers) == admitted.data_parallel
        assert all(1 <= peer.tokens <= admitted.tokens for peer in stream.peers)


@given(bounds, st.integers())
def test_a_seed_is_its_streams(admitted: Bounds, seed: int) -> None:
    """The same seed gives the same streams."""
    once, again = (list(islice(streams(admitted, seed, 20), 3)) for _ in range(2))

    assert once == again


def test_streams_hold_what_makes_serving_hard() -> None:
    """Aborts, shared prefixes, few blocks, more than a step's budget, several at once."""
    admitted = Bounds(tokens=2048, sequences=256, model_length=32768, blocks=(528,))
    drawn = list(islice(streams(admitted, 0, 60), 100))
    clients = [client for stream in drawn for client in stream.clients]

    assert any(client.leaves is not None for client in clients)
    assert any(client.prefix >= 528 for client in clients)
    assert any(client.prompt > admitted.tokens for client in clients)
    assert any(client.prompt + client.output == admitted.model_length for client in clients)
    assert any(stream.free is not None for stream in drawn)
    assert any(len(stream.clients) > 100 for stream in drawn)
