"""Which prefill sizes are measured."""

from __future__ import annotations

import pytest

from prewarm.core.errors import InputError
from prewarm.core.tunings import Size
from prewarm.tune.sizes import default_sizes, parse_sizes


class Planned:
    """What of a manifest the sizes depend on."""

    def __init__(self, tokens: int, sequences: int) -> None:
        self.geometry = {"max_num_batched_tokens": tokens, "max_num_seqs": sequences}


def sizes(found):
    return [(size.tokens, size.sequences) for size in found]


def test_the_default_runs_from_one_chunk_to_the_budget_as_one_and_as_several_sequences():
    found = default_sizes(Planned(8192, 1024))

    one = [64, 256, 1024, 2048, 4096, 8192]
    assert sizes(found) == [(t, 1) for t in one] + [(t, 8) for t in one if t >= 512]


def test_a_budget_that_is_no_power_of_two_is_measured_itself():
    assert (5000, 1) in sizes(default_sizes(Planned(5000, 4)))


def test_a_deployment_of_few_sequences_is_not_measured_with_more():
    assert all(count == 1 for _, count in sizes(default_sizes(Planned(8192, 4))))


def test_the_users_sizes_keep_their_weights_and_the_warm_up_is_added_without_one():
    assert parse_sizes("2048, 8192x8=2.5") == (
        Size(tokens=64, sequences=1, weight=0.0),
        Size(tokens=2048, sequences=1, weight=1.0),
        Size(tokens=8192, sequences=8, weight=2.5),
    )


@pytest.mark.parametrize("text", ["", "many", "8x16", "0", "64=", "64=0", "64,64", "-1", "8192x"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(InputError):
        parse_sizes(text)
