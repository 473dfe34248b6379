"""What the driver library says of the GPUs here."""

import os
import subprocess
import sys

import pytest

from prewarm.device.gpu import visible_gpus
from prewarm.device.libcuda import stub_directory

ASK = "from prewarm.device.gpu import visible_gpus; print(visible_gpus())"


def asked(root, **environment):
    return subprocess.run(
        [sys.executable, "-c", ASK],
        env={"PYTHONPATH": os.pathsep.join([str(root), *sys.path]), **environment},
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def test_there_is_none_where_the_driver_sees_none(root):
    assert asked(root, LD_LIBRARY_PATH=str(stub_directory())) == "()\n"


@pytest.mark.gpu
def test_name_and_architecture_are_those_that_nvidia_smi_tells(root):
    rows = subprocess.run(
        ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    expected = [tuple(row.split(", ")) for row in rows]
    found = visible_gpus()
    assert [(gpu.name, f"{gpu.arch / 10:.1f}") for gpu in found] == expected
    assert asked(root, CUDA_VISIBLE_DEVICES="") == "()\n"
