"""What start-up leaves to inference, of manifests made by hand and of one recorded with vLLM."""

from __future__ import annotations

import msgspec
import pytest

from prewarm.core.asked import Difference, in_words
from prewarm.core.audit import Mismatch, Waste, Work, audit
from prewarm.core.manifest import Argument, Candidate, Kernel, Specialization
from prewarm.core.manifest_yaml import read_manifest

DTYPES = {"*bf16": "torch.bfloat16", "*fp32": "torch.float32", "*i32": "torch.int32"}


def asked(*via, gate="*fp32", aligned=True, rows="i32", size=64, candidates=(0, 1, 2), **more):
    """Return a specialization of an autotuned kernel whose key is `size` and the gate's dtype."""
    return Specialization(
        arguments={
            "g": Argument(type=gate, divisible_by_16=aligned),
            "rows": Argument(type=rows),
            "SIZE": Argument(type="constexpr", value=size),
            "B": Argument(type="constexpr", by_candidate=True),
            **{name: Argument(type="constexpr", value=value) for name, value in more.items()},
        },
        tuning_key={"SIZE": size, "dtype of g": DTYPES[gate]},
        candidates=candidates,
        via=via,
    )


def tuned(*specializations, name="m:tuned", candidates=3):
    return Kernel(
        name=name,
        source="s",
        tuned_by=("SIZE",),
        candidates=tuple(
            Candidate(constexprs={"B": 2**n}, num_warps=4, num_stages=2) for n in range(candidates)
        ),
        specializations=specializations,
    )


def plain(*vias, name="m:plain"):
    """Return a kernel without an autotuner, launched with another constant for each of `vias`."""
    return Kernel(
        name=name,
        source="s",
        specializations=tuple(
            Specialization(
                arguments={"N": Argument(type="constexpr", value=n)}, options={}, via=via
            )
            for n, via in enumerate(vias)
        ),
    )


@pytest.fixture
def audited(manifest):
    """Return a function from kernels to the audit of a manifest of them."""
    return lambda *kernels: audit(msgspec.structs.replace(manifest, kernels=kernels))


def test_nothing_leaks_where_start_up_asks_for_everything(audited):
    found = audited(tuned(asked("start-up", "prefill")), plain(("graph capture", "decode")))

    assert found.leaks == found.causes == found.in_vain == ()
    assert found.start_up == Work(compiles=4, benchmarks=3)
    assert found.inference == Work()


def test_a_gate_of_another_dtype_benchmarks_every_candidate_again(audited):
    found = audited(tuned(asked("start-up", gate="*bf16"), asked("mixed", "prefill")))

    (leak,) = found.leaks
    gate = Difference(field="g", known="*bf16", here="*fp32")
    assert leak.mismatches == (Mismatch(difference=gate, tunes=True),)
    assert leak.via == ("mixed", "prefill")
    assert found.inference == leak.work == Work(compiles=3, benchmarks=3)
    assert found.in_vain == (Waste(kernel="m:tuned", work=Work(compiles=3, benchmarks=3)),)


def test_candidates_are_counted_after_pruning(audited):
    found = audited(
        tuned(asked("start-up", candidates=(0, 1, 2)), asked("prefill", size=16, candidates=(1,)))
    )

    assert found.start_up == Work(compiles=3, benchmarks=3)
    assert found.inference == Work(compiles=1, benchmarks=1)


def test_a_key_that_start_up_settled_costs_the_compile_of_its_winner(audited):
    found = audited(tuned(asked("start-up"), asked("prefill", aligned=False)))

    (leak,) = found.leaks
    pointer = Difference(field="g", known="*fp32 divisible by 16", here="*fp32")
    assert leak.mismatches == (Mismatch(difference=pointer, tunes=False),)
    assert found.inference == Work(compiles=1, benchmarks=0)


def test_a_key_is_benchmarked_once_whatever_the_other_arguments(audited):
    found = audited(
        tuned(asked("start-up", gate="*bf16"), asked("prefill"), asked("mixed", rows="i64"))
    )

    assert [leak.work for leak in found.leaks] == [
        Work(compiles=3, benchmarks=3),
        Work(compiles=1, benchmarks=0),
    ]


def test_a_kernel_of_one_candidate_is_never_benchmarked(audited):
    found = audited(
        tuned(
            asked("start-up", candidates=(0,)),
            asked("prefill", size=16, candidates=(0,)),
            candidates=1,
        )
    )

    assert found.inference == Work(compiles=1, benchmarks=0)


def test_a_kernel_that_start_up_never_launches_has_nothing_alike(audited):
    found = audited(plain(("prefill",), ("decode",)))

    assert [leak.mismatches for leak in found.leaks] == [None, None]
    assert found.inference == Work(compiles=2)
    assert found.causes == ()


def test_of_several_launches_in_start_up_the_tuning_key_most_alike_is_compared(audited):
    """Benchmarks follow from the key: that other arguments are nearer elsewhere says nothing."""
    found = audited(
        tuned(
            asked("start-up", gate="*bf16", rows="i64", aligned=False),
            asked("start-up", gate="*bf16", size=16),
            asked("prefill", rows="i64", aligned=False),
        )
    )

    assert [each.difference.field for each in found.leaks[0].mismatches] == ["g"]


def test_equal_mismatches_are_told_together_the_dearest_first(audited):
    warm, hot = asked("start-up", gate="*bf16", STORE=False), asked("prefill", STORE=True)
    found = audited(
        plain(("start-up",), ("prefill",)),
        tuned(asked("start-up", gate="*bf16"), asked("prefill"), name="m:first"),
        tuned(warm, hot, name="m:second"),
    )

    gate, store, constant = found.causes
    assert [each.difference.field for each in gate.mismatches] == ["g"]
    assert gate.kernels == ("m:first", "m:second")
    assert gate.work == Work(compiles=6, benchmarks=6)
    assert in_words(gate.mismatches[0].difference, "in start-up", here="in inference") == (
        "`g` is a tensor of bfloat16 in start-up and a tensor of float32 in inference"
    )
    assert [each.difference.field for each in store.mismatches] == ["STORE"]
    assert store.work == Work(compiles=3, benchmarks=0)  # not in the key
    assert constant.work == Work(compiles=1)


def test_what_the_same_launches_ask_for_otherwise_is_one_cause(audited):
    found = audited(
        tuned(asked("start-up", gate="*bf16", STORE=False), asked("prefill", STORE=True))
    )

    (cause,) = found.causes
    assert [each.difference.field for each in cause.mismatches] == ["g", "STORE"]
    assert [each.tunes for each in cause.mismatches] == [True, False]
    assert cause.work == Work(compiles=3, benchmarks=3)


def test_what_is_captured_in_a_graph_is_no_waste_though_inference_does_not_launch_it(audited):
    found = audited(plain(("graph capture",), ("start-up",), ("decode", "start-up")))

    assert found.in_vain == (Waste(kernel="m:plain", work=Work(compiles=1)),)


def test_one_key_of_each_kernel_is_the_dearest_of_each(audited):
    found = audited(
        tuned(
            asked("start-up", gate="*bf16"),
            asked("prefill", size=16, candidates=(0, 1)),
            asked("prefill"),
        ),
        tuned(asked("prefill"), name="m:other"),
    )

    assert found.inference.benchmarks == 2 + 3 + 3
    assert found.one_of_each == 3 + 3


def test_a_benchmark_whose_candidates_are_compiled_already_compiles_nothing(audited):
    """A tuning key may hold the value of an argument whose class stays the same."""
    first = asked("start-up")
    again = msgspec.structs.replace(asked("prefill"), tuning_key={**first.tuning_key, "rows": 8192})

    found = audited(tuned(first, again))

    assert found.inference == Work(compiles=0, benchmarks=3)
    (leak,) = found.leaks
    assert [each.difference.field for each in leak.mismatches] == ["tuning key rows"]


def test_the_warm_up_of_vllm_0_18_1_misses_in_three_things(root):
    """A manifest traced with that release: Qwen3.5-397B on B200, eight ranks."""
    found = audit(read_manifest(root / "tests" / "core" / "vllm-0.18.1.yaml"))

    assert found.one_of_each == 88
    assert found.inference.benchmarks == 136
    ends, indices, state, gate = found.causes[:4]
    assert told(ends) == ["`cu_seqlens` is a tensor of int64 there and a tensor of int32 here"]
    assert len(ends.kernels) == 6
    assert ends.work.benchmarks == 136
    assert told(indices) == [
        "`chunk_indices` is a tensor of int64 there and a tensor of int32 here"
    ]
    assert told(state) == [
        "`ht` is None there and a tensor of float32 here",
        "`STORE_FINAL_STATE` is False there and True here",
    ]
    assert told(gate) == ["`s` is a tensor of bfloat16 there and a tensor of float32 here"]
    assert gate.kernels[0].endswith(":chunk_local_cumsum_scalar_kernel")
    assert sum((waste.work for waste in found.in_vain), start=Work()).benchmarks == 136


def told(cause):
    return [in_words(each.difference, "there") for each in cause.mismatches]
