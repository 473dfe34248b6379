"""Manifests of real deployments, traced with vLLM's own engine on a virtual GPU."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from prewarm.core.audit import audit
from prewarm.core.errors import InputError, UnsupportedError
from prewarm.core.manifest import Argument, Kernel, Manifest
from prewarm.core.manifest_diff import compare
from prewarm.core.manifest_yaml import parse_manifest, read_manifest, render_manifest
from prewarm.core.target import target_named
from prewarm.trace.plan import plan

LARGE = "model-configs/Qwen3.5-397B-A17B-FP8"
SMALL = "model-configs/Qwen3.5-0.8B"
TRITON = ("--gdn-prefill-backend", "triton")
MAIN = (LARGE, "-dp", "8", "--enable-expert-parallel", *TRITON)
MTP = ("--speculative-config", '{"method":"mtp","num_speculative_tokens":2}')

CANDIDATES = {
    "chunk_local_cumsum_scalar_kernel": 4,
    "chunk_scaled_dot_kkt_fwd_kernel": 27,
    "merge_16x16_to_64x64_inverse_kernel": 12,
    "recompute_w_u_fwd_kernel": 9,
    "chunk_gated_delta_rule_fwd_kernel_h_blockdim64": 12,
    "chunk_fwd_kernel_o": 24,
}

Planned = Callable[..., Path]


@pytest.fixture(autouse=True)
def _in_the_checkout(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)


def _function(kernel: str) -> str:
    return kernel.partition(":")[2]


def _kernels(manifest: Manifest) -> dict[str, Kernel]:
    return {_function(kernel.name): kernel for kernel in manifest.kernels}


def _arguments(manifest: Manifest, kernel: str, argument: str) -> list[Argument]:
    return [one.arguments[argument] for one in _kernels(manifest)[kernel].specializations]


def _values(manifest: Manifest, kernel: str, argument: str) -> set[object]:
    return {each.value for each in _arguments(manifest, kernel, argument) if not each.unbound}


def test_the_six_autotuned_kernels_have_their_88_candidates(planned: Planned) -> None:
    """Prefill tunes six kernels, and each specialization may pick any candidate."""
    kernels = _kernels(read_manifest(planned("b200", *MAIN)))
    tuned = {name: kernel for name, kernel in kernels.items() if kernel.candidates}

    assert {name: len(kernel.candidates) for name, kernel in tuned.items()} == CANDIDATES
    for kernel in tuned.values():
        everything = tuple(range(len(kernel.candidates)))
        assert [one.candidates for one in kernel.specializations] == [everything]


def test_tuning_keys_are_those_of_inference(planned: Planned) -> None:
    """The three arguments that a hand-written warm-up got wrong: gate, ends, final state."""
    manifest = read_manifest(planned("b200", *MAIN))
    state = "chunk_gated_delta_rule_fwd_kernel_h_blockdim64"
    (one,) = _kernels(manifest)[state].specializations

    assert one.tuning_key["dtype of g"] == "torch.float32"
    assert one.tuning_key["dtype of cu_seqlens"] == "torch.int32"
    assert one.tuning_key["dtype of ht"] == "torch.float32"
    assert one.tuning_key["dtype of chunk_offsets"] == "torch.int64"
    assert one.arguments["ht"].type == "*fp32"


def test_decode_has_the_state_stride_that_vllm_lays_out(planned: Planned) -> None:
    """The padded KV page over the item size: 4,292,608 bytes of float32."""
    manifest = read_manifest(planned("b200", *MAIN))
    decode = "fused_recurrent_gated_delta_rule_packed_decode_kernel"

    assert _values(manifest, decode, "stride_init_state_token") == {1_073_152}
    assert manifest.geometry["block_size"] == 2096


def test_mixed_batches_reach_a_kernel_of_their_own(planned: Planned) -> None:
    """A prefill beside decodes takes the recurrent kernel, which neither takes alone."""
    kernels = _kernels(read_manifest(planned("b200", *MAIN)))
    (one,) = kernels["fused_sigmoid_gating_delta_rule_update_kernel"].specializations

    assert "mixed" in one.via
    assert not {"prefill", "decode", "chunked prefill"} & set(one.via)


def test_start_up_benchmarks_whatever_inference_asks_for(planned: Planned) -> None:
    """The GDN warm-up of this release runs in the memory profile, and asks for the right keys."""
    found = audit(read_manifest(planned("b200", *MAIN)))

    assert found.start_up.benchmarks == sum(CANDIDATES.values())
    assert found.inference.benchmarks == 0
    assert {_function(leak.kernel) for leak in found.leaks} == {"_zero_kv_blocks_kernel"}


def test_without_graphs_the_kernels_of_decode_leak(planned: Planned) -> None:
    """What a real engine compiled in inference on an H100, eager, after its own warm-up."""
    manifest = planned("h100", SMALL, *TRITON, "--enforce-eager", closure=2)
    leaks = audit(read_manifest(manifest)).leaks

    assert Counter(_function(leak.kernel) for leak in leaks) == {
        "_causal_conv1d_update_kernel": 3,
        "fused_recurrent_gated_delta_rule_packed_decode_kernel": 2,
        "layer_norm_fwd_kernel": 2,
        "_zero_kv_blocks_kernel": 1,
    }


def test_torch_compile_copies_the_gates_of_one_token(planned: Planned) -> None:
    """As an H200 showed: one row is contiguous to torch, and not to a graph of every batch size."""
    decode = "fused_recurrent_gated_delta_rule_packed_decode_kernel"
    eager = read_manifest(planned("h100", SMALL, *TRITON, "--enforce-eager", closure=2))
    compiled = read_manifest(planned("b200", SMALL, *TRITON, "--num-gpu-blocks-override", "3000"))

    (heads,) = _values(compiled, decode, "stride_a_tok")
    assert _values(eager, decode, "stride_a_tok") == {heads, 2 * heads}


def test_the_number_of_cache_lines_is_found_unbound(planned: Planned) -> None:
    """It follows the number of GPU blocks, but for the start-up's own measuring of graphs."""
    manifest = read_manifest(planned("b200", *MAIN))
    (unbound,) = manifest.unbound

    assert unbound.argument == "num_cache_lines"
    assert unbound.pin == "--num-gpu-blocks-override"
    assert [name.partition(":")[2] for name in unbound.kernels] == [
        "_causal_conv1d_fwd_kernel",
        "_causal_conv1d_update_kernel",
    ]
    assert unbound.seen == {str(n): n for n in manifest.trace.gpu_blocks}
    assert _values(manifest, "_causal_conv1d_update_kernel", "num_cache_lines") == {512}


def test_a_pinned_number_of_blocks_leaves_nothing_unbound(planned: Planned) -> None:
    """What the manifest says to do about it works."""
    manifest = read_manifest(planned("b200", SMALL, *TRITON, "--num-gpu-blocks-override", "3000"))

    assert manifest.unbound == ()
    assert not any(launch.unbound for launch in manifest.launches())
    assert _values(manifest, "_causal_conv1d_fwd_kernel", "num_cache_lines") == {3000}


def test_the_same_inputs_give_the_same_bytes(planned: Planned) -> None:
    """Two traces of one deployment, in two processes, with random workloads."""
    first = planned("h100", SMALL, *TRITON, "--enforce-eager", closure=2).read_bytes()
    again = plan((SMALL, *TRITON, "--enforce-eager"), target_named("h100"), closure=2)

    assert render_manifest(again).encode() == first


def test_the_manifest_names_no_path_of_this_machine(planned: Planned, root: Path) -> None:
    """It is made to be committed."""
    text = planned("b200", *MAIN).read_text()

    assert str(root) not in text
    assert str(Path.home()) not in text
    assert sys.prefix not in text


def test_a_default_given_by_hand_changes_no_launch(planned: Planned) -> None:
    """`--max-num-batched-tokens 8192` is what `vllm serve` takes on this GPU."""
    default = read_manifest(planned("b200", *MAIN))
    by_hand = read_manifest(planned("b200", *MAIN, "--max-num-batched-tokens", "8192"))

    assert by_hand.kernels == default.kernels
    assert by_hand.geometry == default.geometry


@pytest.mark.parametrize(
    ("ways", "words"),
    [
        (("-tp", "2"), ("num_v_heads_per_rank", "64", "32")),
        (("-tp", "4"), ("num_v_heads_per_rank", "64", "16")),
        (("-tp", "8"), ("num_v_heads_per_rank", "64", "8")),
        (("--kv-cache-dtype", "fp8"), ("stride_init_state_token", "1073152")),
        (MTP, ("num_accepted_tokens",)),
    ],
    ids=["tp 2", "tp 4", "tp 8", "fp8 cache", "mtp"],
)
def test_a_difference_is_explained(
    planned: Planned, ways: tuple[str, ...], words: tuple[str, ...]
) -> None:
    """What changes from TP 1 is said in a vLLM user's words, and the chunked kernels stay tuned."""
    one = read_manifest(planned("b200", LARGE, *TRITON))
    other = read_manifest(planned("b200", LARGE, *TRITON, *ways))
    text = "\n".join(map(str, compare(one, other)))

    assert all(word in text for word in words), text
    assert {n: len(k.candidates) for n, k in _kernels(other).items() if k.candidates} == CANDIDATES


def test_speculation_reaches_decode_with_accepted_tokens(planned: Planned) -> None:
    """MTP with two draft tokens widens the convolution's state and passes what was accepted."""
    manifest = read_manifest(planned("b200", LARGE, *TRITON, *MTP))
    accepted = _arguments(manifest, "_causal_conv1d_update_kernel", "num_accepted_tokens_ptr")

    assert {argument.type for argument in accepted} == {"*i32", "constexpr"}
    assert manifest.geometry["conv_state"] == "bfloat16 5x12288"
    vias = {via for k in manifest.kernels for one in k.specializations for via in one.via}
    assert {"speculative decode", "speculative mixed"} <= vias


def test_drafts_become_fewer_at_the_end_of_the_model(planned: Planned) -> None:
    """A step is as wide as its longest draft, which the model's length cuts token by token."""
    manifest = read_manifest(planned("b200", LARGE, *TRITON, *MTP))
    kernel = "eagle_prepare_next_token_padded_kernel"
    widths = _arguments(manifest, kernel, "BLOCK_SIZE_TOKENS")
    requests = _arguments(manifest, kernel, "num_reqs")
    classes = {(one.equal_to_1, one.divisible_by_16) for one in requests}

    assert sorted(str(width.value) for width in widths) == [
        "1",
        "1",
        "1",
        "2",
        "2",
        "2",
        "4",
        "4",
        "4",
    ]
    assert classes == {(True, False), (False, True), (False, False)}


def test_prefix_caching_copies_states_with_a_kernel_of_its_own(planned: Planned) -> None:
    """States are kept aligned to blocks, and copied where a prefix ends."""
    manifest = read_manifest(planned("b200", SMALL, *TRITON, "--enable-prefix-caching"))
    (copy,) = _kernels(manifest)["batch_memcpy_kernel"].specializations

    assert manifest.geometry["mamba_cache_mode"] == "align"
    assert "prefix" in copy.via


def test_flashinfer_prefill_is_listed_elsewhere(planned: Planned) -> None:
    """By default B200 with CUDA 13 prefills with FlashInfer; the other kernels remain Triton."""
    manifest = read_manifest(planned("b200", SMALL))
    kernels = _kernels(manifest)

    (elsewhere,) = manifest.elsewhere
    assert elsewhere.backend.startswith("FlashInfer")
    assert manifest.geometry["gdn_prefill_backend"] == "flashinfer"
    assert not CANDIDATES.keys() & kernels.keys()
    assert {
        "_causal_conv1d_fwd_kernel",
        "_causal_conv1d_update_kernel",
        "_fused_post_conv_kernel",
        "fused_recurrent_gated_delta_rule_packed_decode_kernel",
        "fused_sigmoid_gating_delta_rule_update_kernel",
    } <= kernels.keys()


@pytest.mark.parametrize(
    ("model", "ways", "kernel"),
    [
        ("Qwen3-Next-80B-A3B-Instruct", ("-tp", "4", *TRITON), "chunk_fwd_kernel_o"),
        ("Kimi-Linear-48B-A3B-Instruct", ("-tp", "4"), "chunk_gla_fwd_kernel_o"),
        ("Olmo-Hybrid-7B", (), "chunk_fwd_kernel_o"),
    ],
)
def test_other_families_go_the_same_way(
    planned: Planned, model: str, ways: tuple[str, ...], kernel: str
) -> None:
    """No table of models: whatever vLLM knows with such layers is traced."""
    manifest = read_manifest(planned("b200", f"model-configs/{model}", *ways))

    assert kernel in _kernels(manifest)
    assert manifest.unbound[0].argument == "num_cache_lines"


def test_what_vllm_refuses_is_refused_with_its_reason() -> None:
    """In one line, and as bad input."""
    target = target_named("b200")

    with pytest.raises(InputError, match="unrecognized arguments: --no-such-flag"):
        plan((SMALL, "--no-such-flag"), target)
    with pytest.raises(InputError, match=r"vLLM refuses this deployment: .*divisible by"):
        plan((SMALL, "-tp", "3"), target)
    with pytest.raises(InputError, match="refuses this deployment: 12 is not divisible by 8"):
        plan((SMALL, "-tp", "8"), target)


def test_a_model_without_gdn_layers_is_unsupported(tmp_path: Path) -> None:
    """Exit 3, and the architecture by name."""
    (tmp_path / "config.json").write_text(
        '{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 1024,'
        ' "num_hidden_layers": 2, "num_attention_heads": 16, "num_key_value_heads": 8,'
        ' "head_dim": 128, "intermediate_size": 3072, "vocab_size": 1000,'
        ' "max_position_embeddings": 4096, "dtype": "bfloat16"}'
    )

    with pytest.raises(UnsupportedError, match="Qwen3ForCausalLM has no gated delta net"):
        plan((str(tmp_path),), target_named("b200"))


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "qwen3_5"'])
def test_an_invalid_config_is_bad_input(tmp_path: Path, text: str) -> None:
    """The file is named."""
    (tmp_path / "config.json").write_text(text)

    with pytest.raises(InputError, match=r"config\.json"):
        plan((str(tmp_path),), target_named("b200"))


def test_a_manifest_edited_by_hand_is_refused(planned: Planned) -> None:
    """With the command that plans it again."""
    text = planned("b200", *MAIN).read_text().replace("1073152", "1073168")

    with pytest.raises(InputError, match="was edited after it was planned") as refused:
        parse_manifest(text, "m.yaml")

    assert refused.value.hint == f"prewarm plan --target b200 -o m.yaml -- {' '.join(MAIN)}"


def test_planning_leaves_this_process_as_it_was(root: Path) -> None:
    """The patched world lives in a child: torch is not even imported here."""
    code = (
        "import sys\n"
        "from prewarm.trace.plan import plan\n"
        "from prewarm.core.target import target_named\n"
        f"plan(({SMALL!r}, '--enforce-eager'), target_named('a100'), closure=0)\n"
        "sys.exit(bool({'torch', 'triton', 'vllm'} & set(sys.modules)))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=root).returncode == 0
