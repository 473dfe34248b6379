"""Which ways a release of vLLM has, and vLLM 0.18.1 traced in an environment of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from prewarm.core.errors import UnsupportedError
from prewarm.core.manifest import Manifest
from prewarm.core.manifest_yaml import read_manifest
from prewarm.trace.vllm_releases import RELEASES, SEEN, not_found, release_of

LARGE = "model-configs/Qwen3.5-397B-A17B-FP8"
MTP = '{"method":"mtp","num_speculative_tokens":2}'
PINS = "constraints/vllm-0.18.1.txt"


def test_releases_stand_in_their_order() -> None:
    """The newest entry that is not too new is taken."""
    every = [release.since for release in RELEASES]

    assert every == sorted(set(every))


@pytest.mark.parametrize(
    ("version", "since"),
    [
        ("0.18.0", (0, 18)),
        ("0.18.1", (0, 18)),
        ("0.19.1", (0, 19)),
        ("0.20.2", (0, 20)),
        ("0.21.0", (0, 20)),
        ("0.22.1", (0, 22)),
        ("0.25.1", (0, 25)),
        ("0.25.1+cu129", (0, 25)),
        ("0.26.0rc1.dev3", (0, 25)),
        ("0.28.0", (0, 28)),
        ("0.31.0", (0, 31)),
        ("0.32.0", (0, 31)),
        ("1.0", RELEASES[-1].since),
    ],
)
def test_a_version_has_the_ways_of_its_release(version: str, since: tuple[int, int]) -> None:
    """Whatever stands behind its first two numbers."""
    assert release_of(version).since == since


@pytest.mark.parametrize("version", ["0.17.1", "0.9.2"])
def test_an_older_vllm_is_unsupported(version: str) -> None:
    """Exit 3, and the oldest that is known."""
    with pytest.raises(UnsupportedError, match=rf"vLLM {version} cannot be traced: .* from 0\.18"):
        release_of(version)


def test_a_name_that_an_unknown_vllm_lacks_is_unsupported_and_named() -> None:
    """Exit 3: the release was tried, and the name is what to look for."""
    lacking = not_found("0.99.0", ImportError("cannot import name 'Gone' from 'vllm.there'"))

    assert isinstance(lacking, UnsupportedError)
    assert "vLLM 0.99.0" in str(lacking)
    assert "'Gone' from 'vllm.there'" in str(lacking)


@pytest.mark.parametrize("version", [*SEEN, "0.25.1+cu129"])
def test_a_name_that_a_seen_vllm_lacks_is_our_own_mistake(version: str) -> None:
    """It is reported as a bug, not as a release that is not supported."""
    assert not_found(version, AttributeError("gone")) is None


Plan = Callable[..., Manifest]


@pytest.fixture(scope="module")
def plan_with_0_18_1(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Return a function that traces with vLLM 0.18.1, whose environment is made if need be."""
    script = root / "scripts" / "env.sh"
    subprocess.run([script, "make", PINS], check=True)
    made = subprocess.run([script, "path", PINS], check=True, capture_output=True, text=True)
    python = Path(made.stdout.strip(), "bin", "python")

    def plan(target: str, *serve_args: str) -> Manifest:
        out = tmp_path_factory.mktemp("planned") / "m.yaml"
        options = ("--target", target, "--closure", "0", "-o", str(out))
        argv = [python, "-m", "prewarm", "plan", *options, "--", *serve_args]
        subprocess.run(argv, check=True, cwd=root)
        return read_manifest(out)

    return plan


@pytest.mark.soak
def test_vllm_0_18_1_launches_what_was_recorded_of_it(root: Path, plan_with_0_18_1: Plan) -> None:
    """The manifest in which `make test` looks for the three mismatches is no fiction."""
    recorded = read_manifest(root / "tests" / "core" / "vllm-0.18.1.yaml")

    found = plan_with_0_18_1("b200", LARGE, "-dp", "8", "--enable-expert-parallel")

    assert found.kernels == recorded.kernels
    assert found.geometry == recorded.geometry


@pytest.mark.soak
@pytest.mark.parametrize(
    ("target", "serve_args", "backend", "kernel"),
    [
        ("h100", ("model-configs/Qwen3.5-0.8B",), "flashinfer", "_causal_conv1d_fwd_kernel"),
        (
            "b200",
            (LARGE, "-tp", "8", "--speculative-config", MTP),
            "triton",
            "fused_sigmoid_gating_delta_rule_update_kernel",
        ),
        ("b200", ("model-configs/Olmo-Hybrid-7B",), "triton", "chunk_fwd_kernel_o"),
    ],
    ids=["flashinfer", "mtp", "olmo"],
)
def test_other_deployments_are_traced_with_vllm_0_18_1(
    plan_with_0_18_1: Plan, target: str, serve_args: tuple[str, ...], backend: str, kernel: str
) -> None:
    """Its layers stand in model files, and choose their backend by themselves."""
    found = plan_with_0_18_1(target, *serve_args)

    assert found.geometry["gdn_prefill_backend"] == backend
    assert kernel in {each.name.partition(":")[2] for each in found.kernels}
