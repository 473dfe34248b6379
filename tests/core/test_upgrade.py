"""What `prewarm diff` says must be done again for a new vLLM."""

from __future__ import annotations

import msgspec
import pytest

from prewarm.core.digest import digest_of
from prewarm.core.manifest import (
    Argument,
    Candidate,
    Deployment,
    Kernel,
    Manifest,
    Model,
    Specialization,
    Trace,
)
from prewarm.core.toolchain import Ptxas, Toolchain
from prewarm.core.upgrade import KernelUpgrade, Reason, upgrade

DECODE = "vllm.ops:decode_kernel"
CHUNK = "vllm.ops:chunk_kernel"
CANDIDATES = tuple(
    Candidate(constexprs={"BV": size}, num_warps=warps, num_stages=3)
    for size in (32, 64)
    for warps in (2, 4)
)


def decode(batch, lines=512):
    value = {"unbound": True} if lines is None else {"value": lines}
    return Specialization(
        arguments={
            "q": Argument(type="*bf16", divisible_by_16=True),
            "batch": batch,
            "num_cache_lines": Argument(type="constexpr", **value),
        },
        options={"num_warps": 1},
        via=("decode",),
    )


def chunk(heads=16, gate="*fp32", candidates=(0, 1, 2, 3)):
    return Specialization(
        arguments={
            "g": Argument(type=gate, divisible_by_16=True),
            "H": Argument(type="constexpr", value=heads),
            "BV": Argument(type="constexpr", by_candidate=True),
        },
        tuning_key={"H": heads, "dtype of g": gate.removeprefix("*")},
        candidates=candidates,
        via=("prefill",),
    )


PLAIN, EVEN = Argument(type="i32"), Argument(type="i32", divisible_by_16=True)
DECODES = Kernel(name=DECODE, source="d", specializations=(decode(PLAIN), decode(EVEN)))
CHUNKS = Kernel(
    name=CHUNK, source="c", tuned_by=("H",), candidates=CANDIDATES, specializations=(chunk(),)
)


def manifest(*kernels, target="b200", **tools):
    plain = Toolchain(
        vllm="0.25.1",
        torch="2.11.0",
        cuda="13.0",
        triton="3.6.0",
        triton_key=digest_of(b"key"),
        ptxas=Ptxas(version="12.9.86", text=digest_of(b"ptxas"), chosen_by="triton"),
        python_abi="cpython-311",
        machine="x86_64",
        libc="glibc 2.36",
    )
    return Manifest(
        deployment=Deployment(
            model=Model(name="Qwen3.5", config=digest_of(b"config")),
            serve_args=("Qwen3.5",),
            target=target,
        ),
        toolchain=msgspec.structs.replace(plain, **tools),
        geometry={},
        trace=Trace(
            workloads=9, random_workloads=50, closure=50, seed=0, steps=80, gpu_blocks=(4096,)
        ),
        kernels=kernels or (DECODES, CHUNKS),
    )


def changed(kernel, **changes):
    return msgspec.structs.replace(kernel, **changes)


def of(old, new):
    """What becomes of the one kernel of two manifests."""
    (found,) = upgrade(manifest(old), manifest(new)).kernels
    return found


def test_nothing_is_done_again_for_the_same_launches_by_another_vllm():
    found = upgrade(manifest(), manifest(vllm="0.26.0", torch="2.12.0"))
    assert [(k.stay, k.change, k.come, k.go) for k in found.kernels] == [(2, 0, 0, 0), (4, 0, 0, 0)]
    assert found.verdict() == "compile again: 0 of 6 entries; tune again: 0 of 1 tuning keys"


@pytest.mark.parametrize(
    ("tools", "why"),
    [
        ({"triton_key": "sha256:1"}, "Triton's key differs"),
        ({"ptxas": Ptxas(version="13.0", text="t", chosen_by="triton")}, "ptxas differs"),
        (
            {"key_environment": {"TRITON_DISABLE_LINE_INFO": "1"}},
            "TRITON_DISABLE_LINE_INFO differs",
        ),
        (
            {"triton_key": "k", "key_environment": {"PTXAS_OPTIONS": "-v"}},
            "Triton's key and PTXAS_OPTIONS differ",
        ),
    ],
)
def test_what_enters_every_key_costs_every_entry_and_no_tunings(tools, why):
    found = upgrade(manifest(), manifest(**tools))
    assert found.verdict() == (
        f"compile again: 6 of 6 entries ({why}); tune again: 0 of 1 tuning keys"
    )


def test_another_gpu_costs_everything_and_one_of_the_same_architecture_the_tunings():
    assert upgrade(manifest(), manifest(target="h100")).verdict() == (
        "compile again: 6 of 6 entries (the GPU architecture differs);"
        " tune again: 1 of 1 tuning keys"
    )
    same_keys = upgrade(manifest(), manifest(target="gb200"))
    assert same_keys.compile_again == 0
    assert [each.reasons for each in same_keys.tunings] == [("another GPU",)]


def test_another_python_costs_the_host_modules():
    assert upgrade(manifest(), manifest(python_abi="cpython-312")).verdict() == (
        "compile again: 0 of 6 entries;"
        " build again: every host module (the Python ABI differs); tune again: 0 of 1 tuning keys"
    )


def test_another_triton_release_costs_the_tunings_even_if_its_key_were_the_same():
    found = upgrade(manifest(), manifest(triton="3.7.0"))
    assert (found.compile_again, found.tune_again) == (0, 1)
    assert found.tunings[0].reasons == ("Triton: 3.6.0 → 3.7.0",)


def test_another_source_changes_every_entry_of_that_kernel_alone():
    found = upgrade(manifest(), manifest(DECODES, changed(CHUNKS, source="newer")))
    assert found.kernels[1] == KernelUpgrade(
        kernel=CHUNK, change=4, reasons=(Reason(text="its source", launches=4),)
    )
    assert found.tunings[0].reasons == ("its source",)
    assert (found.compile_again, found.tune_again) == (4, 1)


def test_one_argument_is_one_reason_whatever_the_candidate():
    found = of(CHUNKS, changed(CHUNKS, specializations=(chunk(heads=2),)))
    assert found == KernelUpgrade(
        kernel=CHUNK, change=4, reasons=(Reason(text="H: 16 → 2", launches=4),)
    )


def test_source_and_arguments_are_told_together():
    newer = changed(CHUNKS, source="newer", specializations=(chunk(gate="*bf16"),))
    assert of(CHUNKS, newer).reasons == (
        Reason(text="its source, g: *fp32 divisible by 16 → *bf16 divisible by 16", launches=4),
    )


def test_a_longer_list_of_candidates_adds_entries_and_keeps_the_others():
    longer = changed(
        CHUNKS,
        candidates=(*CANDIDATES, Candidate(constexprs={"BV": 128}, num_warps=8, num_stages=2)),
        specializations=(chunk(candidates=(0, 1, 2, 3, 4)),),
    )
    found = upgrade(manifest(CHUNKS), manifest(longer))
    assert found.kernels == (
        KernelUpgrade(
            kernel=CHUNK, stay=4, come=1, reasons=(Reason(text="its candidates", launches=1),)
        ),
    )
    assert found.tunings[0].reasons == ("its candidates",)
    assert found.verdict() == "compile again: 1 of 5 entries; tune again: 1 of 1 tuning keys"
    assert of(longer, CHUNKS) == KernelUpgrade(
        kernel=CHUNK, stay=4, go=1, reasons=(Reason(text="its candidates", launches=1),)
    )


def test_a_kernel_that_comes_and_one_that_goes():
    new = upgrade(manifest(DECODES), manifest(CHUNKS))
    assert new.kernels == (
        KernelUpgrade(kernel=CHUNK, come=4, reasons=(Reason(text="a new kernel", launches=4),)),
        KernelUpgrade(
            kernel=DECODE, go=2, reasons=(Reason(text="no longer asked for", launches=2),)
        ),
    )
    assert new.tunings[0].reasons == ("never tuned before",)


def test_a_launch_more_comes_with_what_tells_it_from_the_nearest_old_one():
    fewer = changed(DECODES, specializations=(decode(EVEN),))
    assert of(fewer, DECODES) == KernelUpgrade(
        kernel=DECODE,
        stay=1,
        come=1,
        reasons=(Reason(text="batch: i32 divisible by 16 → i32", launches=1),),
    )
    assert of(DECODES, fewer) == KernelUpgrade(
        kernel=DECODE, stay=1, go=1, reasons=(Reason(text="no longer asked for", launches=1),)
    )


def test_what_was_unbound_comes_and_what_becomes_unbound_goes():
    unbound = changed(DECODES, specializations=(decode(PLAIN, None),))
    bound = changed(DECODES, specializations=(decode(PLAIN),))
    assert of(unbound, bound) == KernelUpgrade(
        kernel=DECODE,
        come=1,
        reasons=(Reason(text="num_cache_lines: unbound → 512", launches=1),),
    )
    assert of(bound, unbound).go == 1
    assert of(unbound, unbound) == KernelUpgrade(kernel=DECODE)
    assert upgrade(manifest(unbound), manifest(unbound)).entries == 0


def test_a_tuning_key_with_another_value_is_tuned_again():
    other = changed(CHUNKS, specializations=(chunk(), chunk(heads=2)))
    found = upgrade(manifest(CHUNKS), manifest(other))
    assert [(each.key["H"], each.reasons) for each in found.tunings] == [
        (16, ()),
        (2, ("H: 16 → 2",)),
    ]
