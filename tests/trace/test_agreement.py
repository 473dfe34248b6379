"""A capture is refused where it would not be of its manifest."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from prewarm.core.capture import CapturedLaunch, Grid, Step, TunedKernel
from prewarm.core.digest import digest_of
from prewarm.core.errors import InputError
from prewarm.core.manifest import Manifest, Model
from prewarm.core.tunings import Size
from prewarm.trace.agreement import (
    Budget,
    check_kernels,
    check_keys,
    check_size,
    check_toolchain,
    planned_model,
)

BUDGET = Budget(tokens=8192, sequences=16, model_length=4096, draft_tokens=0)


@pytest.mark.parametrize(
    ("tokens", "sequences", "words"),
    [
        (8193, 8, r"budget is 8192 tokens in a step"),
        (8192, 17, r"budget is 16 sequences in a step"),
        (4096, 1, r"budget is 4096 tokens of prompt and answer"),
        (3, 4, r"there is no step of 3 tokens over 4 sequences"),
        (3, 0, r"there is no step of 3 tokens over 0 sequences"),
    ],
)
def test_a_size_that_is_not_served_is_refused(tokens: int, sequences: int, words: str) -> None:
    """With the budget that it breaks."""
    with pytest.raises(InputError, match=words):
        check_size(Size(tokens=tokens, sequences=sequences), BUDGET)


@pytest.mark.parametrize(("tokens", "sequences"), [(8192, 16), (4095, 1), (1, 1)])
def test_a_size_at_the_edge_of_the_budget_is_taken(tokens: int, sequences: int) -> None:
    """It is served."""
    check_size(Size(tokens=tokens, sequences=sequences), BUDGET)


def test_the_planned_model_may_lie_elsewhere(tmp_path: Path) -> None:
    """Its config tells it."""
    (tmp_path / "config.json").write_text("{}")
    planned = Model(name="a-model", config=digest_of(b"{}"))

    assert planned_model(planned, str(tmp_path)).directory == str(tmp_path)


def test_another_model_is_refused(tmp_path: Path) -> None:
    """Though it has the name."""
    (tmp_path / "config.json").write_text('{"hidden_size": 1}')

    with pytest.raises(InputError, match=r"another config\.json than the planned a-model"):
        planned_model(Model(name="a-model", config=digest_of(b"{}")), str(tmp_path))


def test_a_local_model_that_is_not_here_is_asked_for() -> None:
    """Not looked up at the hub, which does not know it."""
    with pytest.raises(InputError, match="there is no directory a-model here") as refused:
        planned_model(Model(name="a-model", config=digest_of(b"{}")), "a-model")

    assert refused.value.hint is not None
    assert "--model DIR" in refused.value.hint


def test_another_toolchain_is_refused(manifest: Manifest) -> None:
    """With what differs."""
    here = msgspec.structs.replace(
        manifest.toolchain, vllm="0.26.0", key_environment={"TRITON_DEBUG": "1"}
    )

    check_toolchain(manifest.toolchain, manifest.toolchain)
    with pytest.raises(InputError, match=r"vllm: 0\.25\.1, here 0\.26\.0\n.*TRITON_DEBUG"):
        check_toolchain(manifest.toolchain, here)


def test_another_kernel_is_refused(manifest: Manifest) -> None:
    """Another source, or other candidates."""
    (kernel,) = manifest.kernels
    found = TunedKernel(
        name=kernel.name,
        source=kernel.source,
        candidates=kernel.candidates,
        configs=kernel.candidates,
    )

    check_kernels(manifest, [found])
    for changed in (
        msgspec.structs.replace(found, source="sha256:other"),
        msgspec.structs.replace(found, candidates=kernel.candidates[:1]),
        msgspec.structs.replace(found, name="kernels:other"),
    ):
        with pytest.raises(InputError, match=f"with another {changed.name}"):
            check_kernels(manifest, [changed])


def test_a_tuning_key_that_was_not_planned_is_refused(manifest: Manifest) -> None:
    """A launch without an autotuner has none."""
    launch = CapturedLaunch(
        kernel="kernels:add",
        source="",
        tensors={},
        values={},
        tuning_key={"n": 1},
        grids=(Grid(blocks=(1, 1, 1)),),
    )
    other = msgspec.structs.replace(launch, tuning_key={"n": 2})
    plain = msgspec.structs.replace(launch, tuning_key={})

    check_keys(manifest, Step(tokens=1, sequences=1, storages=(), launches=(launch, plain)))
    with pytest.raises(InputError, match=r"kernels:add that was not planned: {'n': 2}"):
        check_keys(manifest, Step(tokens=1, sequences=1, storages=(), launches=(other,)))
