"""What nvidia-smi prints, read (recorded lines: there is no GPU here)."""

from __future__ import annotations

import pytest

from prewarm.core.errors import HostError, InputError, TryAgainError
from prewarm.core.target import target_named
from prewarm.tune.nvidia_smi import clocks_of, parse, read_gpus, refuse_busy
from prewarm.tune.tune import gpus_here
from tests.tune.conftest import IDLE

BUSY = "1, GPU-bbbb, NVIDIA H100 80GB HBM3, 570.86, 97, 70123, 1980, 2619, 62, 700.00\n"
OTHER = "2, GPU-cccc, NVIDIA H200, 570.86, 0, 4, 345, 3201, 30, 700.00\n"


def test_a_line_is_a_reading():
    (reading,) = parse(IDLE)

    assert (reading.index, reading.name, reading.driver) == (0, "NVIDIA H100 80GB HBM3", "570.86")
    assert (reading.sm_clock, reading.memory_clock, reading.power_limit) == (345, 2619, 700.0)


def test_what_the_driver_does_not_know_counts_as_zero():
    (reading,) = parse("0, GPU-a, NVIDIA H100 80GB HBM3, 570.86, [N/A], 4, 345, 2619, 31, [N/A]\n")

    assert (reading.utilization, reading.power_limit) == (0, 0.0)


def test_a_line_cut_short_is_left_out():
    assert parse(IDLE + "0, GPU-aaaa, NVIDIA H1") == parse(IDLE)


def test_clocks_are_those_of_a_gpu_at_work():
    working = IDLE.replace(" 0, 4, 345", " 99, 900, 1755")
    readings = parse(IDLE + working + working.replace("1755", "1980") + BUSY)

    clocks = clocks_of(readings, "aaaa")

    assert clocks is not None
    assert clocks.sm == (1755, 1980)


def test_a_busy_gpu_is_refused_for_now():
    with pytest.raises(TryAgainError, match=r"GPU 1 .* is busy: 97 % in use"):
        refuse_busy(parse(IDLE + BUSY))


def test_all_gpus_of_the_kind_are_taken_by_default(says):
    says(IDLE + IDLE.replace("0, GPU-aaaa", "3, GPU-dddd"))

    assert gpus_here(target_named("h100"), ()) == ("GPU-aaaa", "GPU-dddd")


def test_gpus_are_named_by_index_or_uuid(says):
    says(IDLE + BUSY + OTHER)

    assert gpus_here(target_named("h100"), ("0",)) == ("GPU-aaaa",)
    assert gpus_here(target_named("h200"), ("GPU-cccc",)) == ("GPU-cccc",)


def test_what_cuda_hides_is_not_taken(says, monkeypatch):
    says(IDLE + BUSY)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")

    assert gpus_here(target_named("h100"), ()) == ("GPU-aaaa",)


def test_a_gpu_of_another_kind_is_refused_by_name(says):
    says(OTHER)

    with pytest.raises(InputError, match="GPU 2 is a NVIDIA H200, the manifest is for NVIDIA H100"):
        gpus_here(target_named("h100"), ())


def test_a_gpu_that_is_not_there_is_refused_with_those_that_are(says):
    says(IDLE)

    with pytest.raises(InputError, match=r"no GPU 7 here; there are 0 \(NVIDIA H100"):
        gpus_here(target_named("h100"), ("7",))


def test_a_machine_without_a_gpu_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(HostError, match="no NVIDIA GPU here"):
        read_gpus()
