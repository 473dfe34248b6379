"""At which captured steps results are compared (the comparison itself needs a GPU)."""

from __future__ import annotations

import pytest

from prewarm.core.capture import Step
from prewarm.tune.bench import steps_to_check


def step(tokens: int, sequences: int = 1) -> Step:
    return Step(tokens=tokens, sequences=sequences, storages=(), launches=())


@pytest.mark.parametrize(
    ("sizes", "compared"),
    [
        ([(64, 1), (1024, 1), (8192, 1), (512, 8), (1024, 8)], [(64, 1), (1024, 8), (1024, 1)]),
        ([(64, 1), (4096, 1), (16384, 1)], [(64, 1), (4096, 1)]),
        ([(2048, 4), (4096, 4)], [(2048, 4), (4096, 4)]),
        ([(64, 1)], [(64, 1)]),
    ],
)
def test_results_are_compared_on_a_small_a_shared_and_a_long_step(sizes, compared):
    steps = [step(*size) for size in sizes]

    assert [(each.tokens, each.sequences) for each in steps_to_check(steps)] == compared
