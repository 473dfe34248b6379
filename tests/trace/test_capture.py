"""Prefill steps captured with vLLM's own engine on a virtual GPU."""

from __future__ import annotations

import math
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from prewarm.core.capture import Capture, CapturedLaunch, Step, Storage, sized_by
from prewarm.core.digest import canonical_json
from prewarm.core.errors import InputError
from prewarm.core.manifest import Manifest
from prewarm.core.manifest_yaml import read_manifest
from prewarm.core.search_space import MOST
from prewarm.core.tunings import Size, SizedBy
from prewarm.trace.capture import capture

SMALL = "model-configs/Qwen3.5-0.8B"
TRITON = ("--gdn-prefill-backend", "triton")
SIZES = (
    Size(tokens=64, sequences=1),
    Size(tokens=700, sequences=4),
    Size(tokens=1000, sequences=3),
)

TUNED = [
    "chunk_local_cumsum_scalar_kernel",
    "chunk_scaled_dot_kkt_fwd_kernel",
    "merge_16x16_to_64x64_inverse_kernel",
    "recompute_w_u_fwd_kernel",
    "chunk_gated_delta_rule_fwd_kernel_h_blockdim64",
    "chunk_fwd_kernel_o",
]
BEFORE = ["_causal_conv1d_fwd_kernel", "_fused_post_conv_kernel"]

Planned = Callable[..., Path]


@pytest.fixture(scope="module")
def small(root: Path) -> str:
    """Return the directory of a small model."""
    return str(root / SMALL)


@pytest.fixture(scope="module")
def deployment(planned: Planned, small: str) -> Manifest:
    """Return the manifest of the small model."""
    return read_manifest(planned("h100", small, *TRITON))


@pytest.fixture(scope="module")
def captured(deployment: Manifest, small: str) -> Capture:
    """Return steps of one sequence, of four and of three."""
    return capture(deployment, SIZES, model=small)


def _name(launch: CapturedLaunch) -> str:
    return launch.kernel.partition(":")[2]


def _launch(step: Step, name: str) -> CapturedLaunch:
    (found,) = (launch for launch in step.launches if _name(launch) == name)
    return found


def _storage(step: Step, kernel: str, argument: str) -> Storage:
    return step.storages[_launch(step, kernel).tensors[argument].storage]


def _integers(step: Step, kernel: str, argument: str) -> tuple[int, ...]:
    """Return the elements of an argument of int32, row by row."""
    view = _launch(step, kernel).tensors[argument]
    storage = step.storages[view.storage]
    assert storage.data is not None
    assert view.dtype == "int32"
    found = struct.unpack(f"{storage.size // 4}i", storage.data)
    return found[view.offset : view.offset + math.prod(view.shape)]


def test_the_six_autotuned_kernels_follow_what_feeds_them(captured: Capture) -> None:
    """In the order of the layer, without what the model runner launches besides."""
    sizes = [Size(tokens=step.tokens, sequences=step.sequences) for step in captured.steps]

    assert tuple(sizes) == SIZES
    for step in captured.steps:
        assert [_name(launch) for launch in step.launches] == [*BEFORE, *TUNED]
        tuned = [_name(launch) for launch in step.launches if launch.tuning_key]
        assert tuned == TUNED
    assert [kernel.name.partition(":")[2] for kernel in captured.kernels] == TUNED


def test_sequences_end_where_their_requests_do(captured: Capture) -> None:
    """Tokens are spread evenly, and chunks cut at each sequence."""
    step = captured.steps[-1]

    assert _integers(step, "chunk_fwd_kernel_o", "cu_seqlens") == (0, 334, 667, 1000)
    pairs = _integers(step, "chunk_fwd_kernel_o", "chunk_indices")
    assert list(zip(pairs[::2], pairs[1::2], strict=True)) == [
        (sequence, chunk) for sequence in range(3) for chunk in range(6)
    ]


def test_inputs_look_like_activations(captured: Capture) -> None:
    """What linear layers would compute is normal; gates decay moderately; states begin at zero."""
    step = captured.steps[-1]

    for kernel, argument in [(BEFORE[0], "x_ptr"), (BEFORE[1], "v_ptr")]:
        normal = _storage(step, kernel, argument).normal
        assert normal == (pytest.approx(0, abs=0.1), pytest.approx(1, abs=0.1))
    gates = _storage(step, BEFORE[1], "A_log_ptr")
    assert gates.data is not None
    assert all(-4 < value < 2 for value in struct.unpack(f"{gates.size // 4}f", gates.data))
    for argument in ("h0", "Ai"):
        kernel = TUNED[4] if argument == "h0" else TUNED[2]
        storage = _storage(step, kernel, argument)
        assert (storage.data, storage.normal) == (None, None)


def test_results_go_where_the_next_kernel_reads(captured: Capture) -> None:
    """Kernels of a step share storages, in the layouts that the layer gave them."""
    step = captured.steps[-1]
    conv, prepared = (_launch(step, name).tensors for name in BEFORE)

    assert conv["o_ptr"].storage == prepared["mixed_qkv_ptr"].storage
    assert conv["x_ptr"].strides[0] == 1
    for name in ("q", "k"):
        assert prepared[f"{name}_ptr"].storage == _launch(step, TUNED[5]).tensors[name].storage
    assert prepared["g_ptr"].storage == _launch(step, TUNED[0]).tensors["s"].storage


def test_the_grid_follows_the_block_size(captured: Capture, deployment: Manifest) -> None:
    """One grid for each set of meta-parameters that is to be measured, the list's own first."""
    step = captured.steps[-1]
    listed = {kernel.name: kernel.candidates for kernel in deployment.kernels}
    grids = {grid.constexprs["BV"]: grid.blocks for grid in _launch(step, TUNED[4]).grids}

    assert grids[32] == (4, 3 * 16, 1)
    assert grids[64] == (2, 3 * 16, 1)
    for kernel in captured.kernels:
        launch = _launch(step, kernel.name.partition(":")[2])
        assert kernel.configs[: len(kernel.candidates)] == listed[kernel.name]
        assert 0 < len(kernel.configs) - len(kernel.candidates) <= MOST
        assert {canonical_json(grid.constexprs) for grid in launch.grids} == {
            canonical_json(config.constexprs) for config in kernel.configs
        }


def test_a_tuned_launch_leaves_its_candidate_open(captured: Capture) -> None:
    """Neither its meta-parameters nor its warps; an optional tensor that is not there is None."""
    launch = _launch(captured.steps[0], TUNED[4])

    assert not {"BV", "num_warps", "num_stages"} & (launch.values.keys() | launch.options.keys())
    assert launch.values["gk"] is None
    assert launch.values["T"] == 64
    assert "T" not in launch.constexprs
    assert {"H", "Hg", "K"} < set(launch.constexprs)
    assert _launch(captured.steps[0], BEFORE[1]).options == {"num_stages": 2, "num_warps": 4}


def test_tuning_keys_are_the_planned_ones(captured: Capture, deployment: Manifest) -> None:
    """Though the capture has far fewer KV cache blocks."""
    planned = {
        (kernel.name, canonical_json(one.tuning_key))
        for kernel in deployment.kernels
        for one in kernel.specializations
    }
    for step in captured.steps:
        for launch in step.launches:
            assert (
                not launch.tuning_key
                or (
                    launch.kernel,
                    canonical_json(launch.tuning_key),
                )
                in planned
            )
        states = _launch(step, BEFORE[0]).tensors["initial_states_ptr"]
        assert states.shape[0] < deployment.trace.gpu_blocks[0] / 4
    assert captured.manifest == deployment.digest


def test_every_tuned_launch_shows_its_size(captured: Capture) -> None:
    """By the same two arguments."""
    for kernel in captured.kernels:
        found = sized_by(captured.steps, kernel.name)
        assert found == SizedBy(tokens="T", sequences="cu_seqlens")


def test_the_same_steps_give_the_same_bytes(
    captured: Capture, deployment: Manifest, small: str
) -> None:
    """In another process, and after steps of several requests."""
    again = capture(deployment, SIZES, model=small)

    assert msgspec.json.encode(again) == msgspec.json.encode(captured)


def test_a_prompt_is_cut_where_vllm_cuts_it(
    planned: Planned, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With prefix caching at a block: the step says what it holds and what was asked for."""
    monkeypatch.chdir(root)
    manifest = read_manifest(planned("b200", SMALL, *TRITON, "--enable-prefix-caching"))
    block = manifest.geometry["block_size"]
    assert isinstance(block, int)

    (step,) = capture(manifest, [Size(tokens=2 * block + 10, sequences=2)]).steps

    assert (step.tokens, step.sequences) == (2 * block, 2)
    assert step.asked == Size(tokens=2 * block + 10, sequences=2)
    assert _integers(step, "chunk_fwd_kernel_o", "cu_seqlens") == (0, block, 2 * block)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (Size(tokens=100_000, sequences=1), r"its budget is \d+ tokens in a step"),
        (Size(tokens=4, sequences=4), r"4 tokens over 4 sequences launch no autotuned kernel"),
    ],
)
def test_a_size_without_a_step_is_refused(
    deployment: Manifest, small: str, size: Size, words: str
) -> None:
    """By the process that knows the deployment."""
    with pytest.raises(InputError, match=words):
        capture(deployment, [size], model=small)


def test_a_deployment_that_tunes_nothing_is_refused(manifest: Manifest) -> None:
    """With the argument that makes vLLM take Triton's kernels."""
    kernels = tuple(msgspec.structs.replace(k, tuned_by=None) for k in manifest.kernels)

    with pytest.raises(InputError, match="launches no autotuned kernel") as refused:
        capture(msgspec.structs.replace(manifest, kernels=kernels), SIZES)

    assert refused.value.hint == "plan with --gdn-prefill-backend triton"


def test_capturing_leaves_this_process_as_it_was() -> None:
    """Neither torch nor vLLM is imported to ask for it."""
    code = "import sys, prewarm.trace.capture\nsys.exit(bool({'torch', 'vllm'} & set(sys.modules)))"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
