"""Many deployments through one process, each as if it were alone."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from prewarm.core.errors import InputError, PrewarmError
from prewarm.core.manifest import Manifest
from prewarm.core.manifest_yaml import render_manifest
from prewarm.core.target import target_named
from prewarm.trace.plan import Planner, plan

B200 = target_named("b200")
TRITON = ("--gdn-prefill-backend", "triton")


def _plan(planner: Planner, model: Path, *arguments: str) -> Manifest:
    return planner.plan((str(model), *arguments), B200, closure=0)


def test_a_further_deployment_is_planned_as_the_first_would_be(model_configs: Path) -> None:
    """What one leaves behind, an error among it, is not seen by the next."""
    small = model_configs / "Qwen3.5-0.8B"
    with Planner() as planner:
        with pytest.raises(InputError, match="vLLM refuses this deployment"):
            _plan(planner, small, *TRITON, "-tp", "3")
        with pytest.raises(PrewarmError, match="no-such-flag"):
            _plan(planner, small, "--no-such-flag")
        _plan(planner, model_configs / "Kimi-Linear-48B-A3B-Instruct", "-tp", "4")
        further = _plan(planner, small, *TRITON)

    alone = plan((str(small), *TRITON), B200, closure=0)
    assert render_manifest(further) == render_manifest(alone)


def test_a_killed_plan_is_told_and_the_next_one_answered(model_configs: Path) -> None:
    small = model_configs / "Qwen3.5-0.8B"
    asked = (str(small), *TRITON)

    def kill(_: str) -> None:
        server = planner._servers["b200"].process.pid
        children = Path(f"/proc/{server}/task/{server}/children").read_text().split()
        for child in children:
            os.kill(int(child), signal.SIGKILL)

    with Planner() as planner:
        with pytest.raises(PrewarmError, match="was killed, most likely for want of memory"):
            planner.plan(asked, B200, closure=1000, progress=kill)
        assert _plan(planner, small, *TRITON).kernels


def test_nothing_is_left_running(model_configs: Path) -> None:
    with Planner() as planner:
        with pytest.raises(InputError):
            _plan(planner, model_configs / "Qwen3.5-0.8B", *TRITON, "-tp", "3")
        server = planner._servers["b200"].process.pid
        assert Path(f"/proc/{server}").exists()

    assert not Path(f"/proc/{server}").exists()
