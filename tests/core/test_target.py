"""Targets are data, and every one of them is usable."""

from __future__ import annotations

import pytest

from prewarm.core.errors import HostError, InputError
from prewarm.core.target import check_host, target_named, targets


def test_the_promised_targets_are_there() -> None:
    """By the names that users type."""
    assert list(targets()) == [
        "b200",
        "gb200",
        "b300",
        "h100",
        "h200",
        "a100",
        "l40s",
        "rtx-pro-6000-blackwell",
    ]


@pytest.mark.parametrize(("name", "arch"), [("b200", 100), ("b300", 103), ("l40s", 89)])
def test_triton_numbers_the_architecture(name: str, arch: int) -> None:
    """As its GPUTarget does."""
    assert target_named(name).arch == arch


def test_an_unknown_target_is_bad_input() -> None:
    """With the names that exist, and the nearest."""
    with pytest.raises(InputError, match="unknown target 'b20'; known targets: b200, gb200") as no:
        target_named("b20")

    assert no.value.hint == "--target b200"


def test_gb200_is_told_that_its_hosts_are_arm() -> None:
    """Another toolchain: nothing built on x86 would hit there."""
    with pytest.raises(HostError, match="NVIDIA GB200 sits on aarch64 hosts"):
        check_host(target_named("gb200"), "x86_64")

    check_host(target_named("gb200"), "aarch64")
    check_host(target_named("b200"), "x86_64")
