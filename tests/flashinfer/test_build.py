"""What is built of FlashInfer for a manifest, and how long that will take."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from prewarm.core.errors import HostError
from prewarm.core.flashinfer import (
    BLACKWELL,
    HOPPER,
    PrefillCall,
    every_hopper_instance,
    instances_of,
)
from prewarm.core.manifest import Elsewhere, Manifest
from prewarm.flashinfer.build import asked_instances, modules_of
from prewarm.flashinfer.forecast import forecast

Asked = Callable[..., Elsewhere]


def test_only_flashinfers_modules_are_built(asked: Asked, manifest: Manifest) -> None:
    other = msgspec.structs.replace(asked("gdn prefill by cutedsl"), backend="cutedsl")
    both = msgspec.structs.replace(manifest, elsewhere=(other, asked(HOPPER)))

    assert [module.name for module in modules_of(both)] == [HOPPER]
    assert modules_of(manifest) == ()


def test_a_deployment_asks_for_the_instances_of_its_calls(call: PrefillCall) -> None:
    even = msgspec.structs.replace(call, value_heads=2)
    kept = msgspec.structs.replace(call, checkpoints=True, dtype="fp16")

    assert instances_of(HOPPER, (call, even, kept, call)) == (
        "bf16_g0b1a1i1c0",
        "bf16_g1b1a1i1c0",
        "half_g1b1a1i1c1",
    )
    assert instances_of(BLACKWELL, (call, even)) == (
        "bf16_fp32_q2v2d128_i1f1c0",
        "bf16_fp32_q2v8d128_i1f1c0",
    )


def test_a_manifest_that_does_not_say_how_it_calls_gets_every_instance(asked: Asked) -> None:
    assert asked_instances(asked(HOPPER)) == every_hopper_instance()
    assert len(set(every_hopper_instance())) == 64

    with pytest.raises(HostError, match="does not say how"):
        asked_instances(asked(BLACKWELL))


def test_a_forecast_is_in_the_unit_that_fits() -> None:
    assert str(forecast(HOPPER, 64)) == "about 97 core-minutes, 6.6 GiB of memory a job"
    assert str(forecast(BLACKWELL, 1)) == "about 15 s, 1.0 GiB of memory a job"
