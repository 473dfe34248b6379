"""What `prewarm diff` says of two manifests."""

from __future__ import annotations

import msgspec
import pytest

from prewarm.core.digest import digest_of
from prewarm.core.manifest import (
    Argument,
    Candidate,
    Deployment,
    Elsewhere,
    Kernel,
    Manifest,
    Model,
    Specialization,
    Trace,
    Unbound,
)
from prewarm.core.manifest_diff import compare
from prewarm.core.toolchain import Ptxas, Toolchain

DECODE = "vllm.ops:decode_kernel"
CHUNK = "vllm.ops:chunk_kernel"


def decode(stride, heads, *, via=("decode",)):
    return Specialization(
        arguments={
            "q": Argument(type="*bf16", divisible_by_16=True, seen="[1, 2] (2, 1)"),
            "N": Argument(type="i32"),
            "HV": Argument(type="constexpr", value=heads),
            "stride_init_state_token": Argument(type="constexpr", value=stride),
        },
        options={"num_warps": 1},
        via=via,
    )


def chunk(heads):
    return Specialization(
        arguments={
            "k": Argument(type="*bf16", divisible_by_16=True),
            "H": Argument(type="constexpr", value=heads),
            "BV": Argument(type="constexpr", by_candidate=True),
        },
        tuning_key={"H": heads, "dtype of k": "torch.bfloat16"},
        candidates=(0, 1),
        via=("prefill",),
    )


def manifest(tensor_parallel="1", stride=1073152, heads=64, **changes):
    plain = Manifest(
        deployment=Deployment(
            model=Model(name="Qwen3.5", config=digest_of(b"config")),
            serve_args=("Qwen3.5", "-tp", tensor_parallel, "--enable-expert-parallel"),
            target="b200",
        ),
        toolchain=Toolchain(
            vllm="0.25.1",
            torch="2.11.0",
            cuda="13.0",
            triton="3.6.0",
            triton_key=digest_of(b"key"),
            ptxas=Ptxas(version="12.9.86", text=digest_of(b"ptxas"), chosen_by="triton"),
            python_abi="cpython-311",
            machine="x86_64",
            libc="glibc 2.36",
        ),
        geometry={"value heads per rank": heads, "block size": 2096},
        trace=Trace(
            workloads=9, random_workloads=50, closure=50, seed=0, steps=80, gpu_blocks=(4096,)
        ),
        kernels=(
            Kernel(
                name=DECODE,
                source=digest_of(b"decode"),
                specializations=(decode(stride, heads), decode(stride, 2 * heads)),
            ),
            Kernel(
                name=CHUNK,
                source=digest_of(b"chunk"),
                tuned_by=("H",),
                candidates=(
                    Candidate(constexprs={"BV": 32}, num_warps=2, num_stages=3),
                    Candidate(constexprs={"BV": 64}, num_warps=4, num_stages=3),
                ),
                specializations=(chunk(heads),),
            ),
        ),
    )
    return msgspec.structs.replace(plain, **changes)


def lines(old, new):
    return [(c.section, c.item, c.old, c.new, c.count) for c in compare(old, new)]


def test_equal_manifests_have_no_differences():
    assert compare(manifest(), manifest()) == ()


def test_what_was_seen_on_the_way_is_no_difference():
    busier = manifest()
    kernels = (
        msgspec.structs.replace(
            busier.kernels[0],
            specializations=(
                decode(1073152, 64, via=("decode", "mixed")),
                decode(1073152, 128),
            ),
        ),
        busier.kernels[1],
    )
    busier = msgspec.structs.replace(busier, kernels=kernels)

    assert compare(manifest(), busier) == ()
    assert busier.digest != manifest().digest


def test_another_tensor_parallelism_reads_from_the_argument_down_to_the_stride():
    assert lines(manifest(), manifest("8", 135168, 8)) == [
        ("serve arguments", "-tp", "1", "8", 1),
        ("geometry", "value heads per rank", "64", "8", 1),
        (f"kernel {DECODE}", "HV", "64", "8", 1),
        (f"kernel {DECODE}", "stride_init_state_token", "1073152", "135168", 2),
        (f"kernel {DECODE}", "HV", "128", "16", 1),
        (f"kernel {CHUNK}", "H", "64", "8", 1),
        (f"kernel {CHUNK}", "tuning key H", "64", "8", 1),
    ]


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        (("m", "--a"), ("m",), ("--a", "(given)", "(absent)")),
        (("m", "--a=1"), ("m", "--a", "2"), ("--a", "1", "2")),
        (("m", "--a", "-1"), ("m", "--a", "-0.5"), ("--a", "-1", "-0.5")),
        (("m", "--a", "1", "2"), ("m", "--a", "1"), ("--a", "1 2", "1")),
    ],
)
def test_serve_arguments_are_compared_option_by_option(before, after, change):
    def given(args):
        deployment = msgspec.structs.replace(manifest().deployment, serve_args=args)
        return manifest(deployment=deployment)

    assert lines(given(before), given(after)) == [("serve arguments", *change, 1)]


def test_a_kernel_only_one_has_is_one_line():
    without = manifest(kernels=manifest().kernels[:1])

    assert lines(manifest(), without) == [
        (f"kernel {CHUNK}", "kernel", "1 specialisations", "(absent)", 1)
    ]


def test_a_specialisation_only_one_has_is_one_line():
    kernel = manifest().kernels[0]
    fewer = msgspec.structs.replace(kernel, specializations=kernel.specializations[:1])

    assert lines(manifest(kernels=(fewer,)), manifest(kernels=(kernel,))) == [
        (f"kernel {DECODE}", "specialisation", "(absent)", "one more, with HV=128", 1)
    ]


def test_another_release_of_vllm_shows_source_candidates_and_toolchain():
    tools = msgspec.structs.replace(manifest().toolchain, vllm="0.26.0", libc="glibc 2.39")
    kernel = manifest().kernels[1]
    changed = msgspec.structs.replace(
        kernel,
        source=digest_of(b"newer"),
        candidates=(kernel.candidates[0], Candidate(num_warps=8, num_stages=2, maxnreg=128)),
    )
    new = manifest(toolchain=tools, kernels=(manifest().kernels[0], changed))
    found = lines(manifest(), new)

    assert found[:2] == [
        ("toolchain", "vllm", "0.25.1", "0.26.0", 1),
        ("toolchain", "libc", "glibc 2.36", "glibc 2.39", 1),
    ]
    assert [line[1:4] for line in found[2:5]] == [
        ("source", digest_of(b"chunk"), digest_of(b"newer")),
        ("candidate", "BV=64, num_warps=4, num_stages=3, num_ctas=1", "(absent)"),
        ("candidate", "(absent)", "num_warps=8, num_stages=2, num_ctas=1, maxnreg=128"),
    ]


def test_a_plain_number_that_becomes_a_multiple_of_16_is_told():
    def with_n(argument):
        asked = decode(1, 1)
        asked = msgspec.structs.replace(asked, arguments={**asked.arguments, "N": argument})
        return manifest(kernels=(Kernel(name=DECODE, source="s", specializations=(asked,)),))

    plain = with_n(Argument(type="i32"))

    for argument, words in (
        (Argument(type="i32", divisible_by_16=True), "i32 divisible by 16"),
        (Argument(type="i32", equal_to_1=True), "i32 equal to 1"),
        (Argument(type="constexpr", unbound=True), "unbound"),
        (Argument(type="constexpr", value={"dtype": "bf16"}), "bf16"),
        (Argument(type="constexpr", value={"function": "vllm.ops:exp"}), "exp"),
        (Argument(type="constexpr", value=None), "None"),
    ):
        assert lines(plain, with_n(argument)) == [(f"kernel {DECODE}", "N", "i32", words, 1)]


def test_unbound_arguments_and_work_elsewhere_are_compared():
    unbound = Unbound(
        argument="num_cache_lines",
        kernels=(DECODE,),
        follows="number of GPU blocks",
        seen={"4096": 4096},
        pin="--num-gpu-blocks-override",
    )
    elsewhere = Elsewhere(
        name="GDN prefill", backend="FlashInfer", reason="", needs="", present="", cold=""
    )

    assert lines(manifest(), manifest(unbound=(unbound,), elsewhere=(elsewhere,))) == [
        ("unbound", "num_cache_lines", "(absent)", "follows the number of GPU blocks", 1),
        ("elsewhere", "GDN prefill", "(absent)", "FlashInfer", 1),
    ]


def test_the_model_and_the_target_are_compared():
    deployment = msgspec.structs.replace(
        manifest().deployment,
        model=Model(name="Qwen3.5", revision="abc", config=digest_of(b"config")),
        target="h100",
    )

    assert lines(manifest(), manifest(deployment=deployment)) == [
        ("model", "revision", "(absent)", "abc", 1),
        ("target", "target", "b200", "h100", 1),
    ]
