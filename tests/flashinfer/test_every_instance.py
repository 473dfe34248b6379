"""Every instance of FlashInfer's Hopper library, as an image for unknown deployments has them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from prewarm.core.flashinfer import HOPPER, every_hopper_instance
from prewarm.core.flashinfer_file import read_built
from prewarm.core.manifest import Elsewhere
from prewarm.flashinfer.build import build_module
from prewarm.flashinfer.message import Kept, Made, Ready

Asked = Callable[..., Elsewhere]


@pytest.mark.soak  # 64 instances of 90 s of a core
def test_every_instance_is_built_and_what_an_interrupt_left_is_not_built_again(
    tmp_path: Path, asked: Asked
) -> None:
    interrupted = build_module(asked(HOPPER), "h100", tmp_path)
    made = [part.part for part in itertools.islice(interrupted, 5) if isinstance(part, Made)]
    interrupted.close()

    ready, *parts = build_module(asked(HOPPER), "h100", tmp_path)

    assert made
    assert isinstance(ready, Ready)
    assert {*made} <= {*ready.built}
    assert {part.part for part in parts if isinstance(part, Kept)} == {*ready.built}
    assert {part.part for part in parts if isinstance(part, Made)} == {*ready.parts} - {
        *ready.built
    }
    (library,) = read_built(tmp_path).libraries
    assert library.instances == every_hopper_instance()
    assert b"was built by prewarm with" not in (tmp_path / library.file).read_bytes()
