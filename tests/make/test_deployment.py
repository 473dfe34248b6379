"""What one deployment finds of a cache that was built for what may be another."""

import shutil
from pathlib import Path

import msgspec
import pytest

from prewarm.core.cache import (
    COMPILED_NAME,
    COMPILED_SCHEMA,
    CacheManifest,
    Compiled,
)
from prewarm.core.digest import digest_of
from prewarm.core.document import parse_json
from prewarm.core.manifest import Argument, Kernel, Manifest, Unbound
from prewarm.core.selection import Selection
from prewarm.make.compile import compile_manifest
from prewarm.make.deployment import fit
from prewarm.make.entries import sweep
from prewarm.make.lookup import look_up
from tests.make.tuned import CUMSUM, OUTPUT, kernel_of, only, selection_of

ARGS = ("a/model", "--dtype", "float16")
BUILD = "prewarm build --target b200 -- a/model --dtype float16"
L2NORM = "l2norm_fwd_kernel2"
BF16 = Argument(type="*bf16", divisible_by_16=True)


def index_of(plan: Manifest, directory: Path) -> CacheManifest:
    """Return the index of a cache as `pack` describes it."""
    data = (directory / COMPILED_NAME).read_bytes()
    index = parse_json(data, Compiled, COMPILED_SCHEMA, COMPILED_NAME)
    return CacheManifest(
        manifest=plan.digest,
        deployment=plan.deployment,
        target_arch=index.arch,
        toolchain=index.toolchain,
        launches=index.launches,
        host_modules=index.host_modules,
        selection=index.selection,
        autotune_records=index.autotune_records,
        unbound=index.unbound,
        sources={kernel.name: kernel.source for kernel in plan.kernels},
        files=(),
    )


def with_kernels(manifest: Manifest, *changed: Kernel) -> Manifest:
    named = {each.name: each for each in changed}
    kernels = tuple(named.get(each.name, each) for each in manifest.kernels)
    return msgspec.structs.replace(manifest, kernels=kernels)


def with_arguments(kernel: Kernel, **arguments: Argument) -> Kernel:
    return msgspec.structs.replace(
        kernel,
        specializations=tuple(
            msgspec.structs.replace(each, arguments={**each.arguments, **arguments})
            for each in kernel.specializations
        ),
    )


def told(found):
    return [(each.code, each.note, each.subject) for each in found.findings]


@pytest.fixture(scope="module")
def plan(sample):
    return sample("b200")


@pytest.fixture(scope="module")
def directory(compiled):
    return compiled("b200")


@pytest.fixture(scope="module")
def cached(plan, directory):
    return index_of(plan, directory)


@pytest.fixture(scope="module")
def own(plan, directory):
    """What the deployment that the cache was built for finds in it."""
    return look_up(plan, directory, None, plan)


@pytest.fixture(scope="module")
def other(plan) -> Manifest:
    """A deployment that differs in one argument of each kernel."""
    return with_kernels(
        plan,
        with_arguments(kernel_of(plan, OUTPUT), g=BF16),
        with_arguments(kernel_of(plan, L2NORM), MBLOCK=Argument(type="constexpr", value=7)),
        with_arguments(kernel_of(plan, CUMSUM), s=BF16),
    )


@pytest.fixture(scope="module")
def others(plan, directory, other):
    return look_up(plan, directory, None, other)


def test_the_deployment_that_the_cache_was_built_for_hits_everything(cached, plan, own):
    found = fit(cached, plan, plan, own, serve_args=ARGS)
    assert found.findings == ()
    assert (found.count("hit"), found.unasked, found.writes) == (5, 0, False)
    keys = {each.launch: each.key for each in cached.launches}
    assert {each.launch: each.key for each in found.launches} == keys


def test_p304_launches_with_one_reason_are_one_finding(cached, plan, other, others):
    found = fit(cached, plan, other, others, serve_args=ARGS)
    findings = {each.subject: each for each in found.findings}
    assert told(found)[-1] == ("P307", True, "entries")
    assert len(found.findings) == 4
    gate = findings[f"{OUTPUT} (2)"]
    assert (gate.code, gate.note, gate.fix) == ("P304", False, BUILD)
    assert gate.expected == "an entry for 2 launches"
    assert gate.found == (
        "`g` is a tensor of float32 divisible by 16 in the cache and a tensor of bfloat16"
        " divisible by 16 here"
    )
    assert findings[L2NORM].found.startswith("`MBLOCK` is ")
    assert findings["entries"].found == "5 of 5 that it never does"
    states = [each for each in found.launches if each.kernel.endswith(f":{OUTPUT}")]
    assert {each.state for each in states} == {"miss"}
    assert not any(each.held for each in states)
    assert {each.nearest for each in states} == {
        each.key for each in cached.launches if each.kernel.endswith(f":{OUTPUT}")
    }
    assert {each.key for each in states}.isdisjoint(each.key for each in cached.launches)
    assert (found.count("miss"), found.unasked, found.writes) == (5, 5, True)


def without(plan: Manifest, function: str) -> Manifest:
    kernels = tuple(each for each in plan.kernels if not each.name.endswith(f":{function}"))
    return msgspec.structs.replace(plan, kernels=kernels)


def sources_of(plan: Manifest) -> dict[str, str]:
    return {kernel.name: kernel.source for kernel in plan.kernels}


def test_p304_a_kernel_that_the_cache_has_nothing_of(cached, plan, other, others, own):
    fewer = without(plan, L2NORM)
    built = msgspec.structs.replace(cached, sources=sources_of(fewer))
    found = fit(built, fewer, other, others, serve_args=ARGS)
    (finding,) = [each for each in found.findings if each.subject == L2NORM]
    assert finding.code == "P304"
    assert finding.found == "the cache has nothing of this kernel"
    # Triton has the last word: what hits is no miss, though the plan does not name it.
    assert fit(built, fewer, plan, own, serve_args=ARGS).findings == ()


def test_p202_every_launch_is_a_miss_and_what_differs_besides_is_told_too(
    cached, plan, directory, other
):
    tools = msgspec.structs.replace(cached.toolchain, triton_key=digest_of(b"another wheel"))
    built = msgspec.structs.replace(cached, toolchain=tools)
    mixed = with_kernels(plan, kernel_of(other, OUTPUT))
    nothing = look_up(plan, directory / "nowhere", None, mixed)
    found = fit(built, plan, mixed, nothing, serve_args=ARGS)
    assert [code for code, _, _ in told(found)] == ["P202", "P304", "P307"]
    assert found.count("miss") == 5
    reasons = {each.held: each.reason for each in found.launches}
    assert reasons[True] == "what enters every key is another one here"
    assert reasons[False].startswith("`g` is a tensor of float32")
    # The same where the files of the cache point to another directory.
    found = fit(cached, plan, mixed, nothing, serve_args=ARGS, looked_up=False)
    assert [code for code, _, _ in told(found)] == ["P304", "P307"]
    reasons = {each.held: each.reason for each in found.launches}
    assert reasons[True] == "Triton finds no file of this directory"


def test_p204_says_all_about_a_kernel_of_another_source(cached, plan, other, others):
    """The cache was planned with an older source; the deployment was traced with the one here."""
    older = msgspec.structs.replace(kernel_of(plan, OUTPUT), source="sha256:" + "0" * 64)
    built_from = with_kernels(plan, older)
    built = msgspec.structs.replace(cached, sources=sources_of(built_from))
    found = fit(built, built_from, other, others, serve_args=ARGS)
    assert [(code, subject) for code, _, subject in told(found)] == [
        ("P204", older.name),
        ("P304", f"{CUMSUM} (2)"),
        ("P304", L2NORM),
        ("P307", "entries"),
    ]
    reasons = {each.reason for each in found.launches if each.kernel == older.name}
    assert reasons == {"the kernel's source is another one here"}


def test_another_vllm_is_a_note_once_its_launches_were_traced(cached, plan, own):
    tools = msgspec.structs.replace(cached.toolchain, vllm="0.24.0")
    built = msgspec.structs.replace(cached, toolchain=tools)
    assert told(fit(built, plan, plan, own, serve_args=ARGS)) == [("P208", True, "vLLM")]


@pytest.fixture(scope="module")
def lacking(plan, directory, tmp_path_factory):
    """What is found of a cache that lost one entry and `cuda_utils`."""
    copy = shutil.copytree(directory, tmp_path_factory.mktemp("lacking") / "cache")
    sweep(copy)
    shutil.rmtree(next(copy.glob(f"*/{L2NORM}.cubin")).parent)
    for module in copy.glob("*/cuda_utils.*"):
        shutil.rmtree(module.parent)
    return look_up(plan, copy, None, plan)


def test_p301_and_p302_are_told_of_what_the_cache_was_built_with(cached, plan, lacking):
    found = fit(cached, plan, plan, lacking, serve_args=ARGS)
    assert [code for code, _, _ in told(found)] == ["P301", "P302"]
    assert found.count("miss") == 5
    assert "cuda_utils would be built with a C compiler" in {e.reason for e in found.launches}


# --- what is known only when serving starts -------------------------------------------------


@pytest.fixture(scope="module")
def bare(plan) -> Manifest:
    """The deployment as if an argument of one kernel followed free memory."""
    kernel = kernel_of(plan, L2NORM)
    marked = with_arguments(kernel, MBLOCK=Argument(type="constexpr", unbound=True))
    unbound = Unbound(
        argument="MBLOCK",
        kernels=(kernel.name,),
        follows="number of GPU blocks",
        seen={"150": 150},
        pin="--num-gpu-blocks-override",
    )
    return msgspec.structs.replace(with_kernels(plan, marked), unbound=(unbound,))


@pytest.fixture(scope="module")
def bares(plan, directory, bare):
    return look_up(plan, directory, None, bare)


@pytest.fixture(scope="module")
def value(plan):
    (found,) = {each.arguments["MBLOCK"].value for each in kernel_of(plan, L2NORM).specializations}
    return found


def test_p306_what_is_unbound_on_both_sides_is_a_note(cached, bare, bares):
    found = fit(cached, bare, bare, bares, serve_args=ARGS)
    (note,) = found.findings
    assert (note.code, note.note, note.subject) == ("P306", True, L2NORM)
    assert "`MBLOCK` follows the number of GPU blocks" in note.found
    assert note.fix.startswith("--num-gpu-blocks-override ")
    assert (found.count("unbound"), found.count("hit"), found.writes) == (1, 4, True)


def test_p304_what_the_cache_pins_and_the_deployment_does_not(cached, plan, bare, bares, value):
    found = fit(cached, plan, bare, bares, serve_args=ARGS)
    finding, note = found.findings
    assert (finding.code, finding.subject, note.code) == ("P304", L2NORM, "P307")
    assert finding.found == (
        f"`MBLOCK` is {value} in the cache and unbound here: pin --num-gpu-blocks-override"
    )
    pin = f"--num-gpu-blocks-override {value}"
    assert finding.fix == f"{pin} among the serve arguments, or {BUILD} {pin}"
    assert found.count("unbound") == 0


def test_p304_what_the_deployment_pins_and_the_cache_does_not(cached, plan, bare, lacking, value):
    found = fit(cached, bare, plan, lacking, serve_args=ARGS)
    (finding,) = [each for each in found.findings if each.code == "P304"]
    assert finding.found == (
        f"`MBLOCK` is unbound in the cache and {value} here: build with --num-gpu-blocks-override"
    )
    assert finding.fix == BUILD


# --- tunings --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sums(prefill_plan) -> Manifest:
    """One autotuned kernel of four candidates."""
    return only(prefill_plan("b200"), CUMSUM)


@pytest.fixture(scope="module")
def winners(sums) -> Selection:
    return selection_of(sums, {CUMSUM: kernel_of(sums, CUMSUM).candidates[-1]})


@pytest.fixture(scope="module")
def tuned(sums, winners, tmp_path_factory):
    directory = tmp_path_factory.mktemp("tuned") / "cache"
    list(compile_manifest(sums, directory, 2, winners))
    return directory


def test_a_tuned_cache_is_asked_for_its_winners(sums, tuned):
    index = index_of(sums, tuned)
    looked = look_up(sums, tuned, index.selection, sums)
    found = fit(index, sums, sums, looked, serve_args=ARGS)
    assert found.findings == ()
    (state,) = found.tuning_keys
    assert (state.settled, state.chosen, state.candidates, state.reason) == (True, True, 4, None)
    assert found.count("hit") == len(found.launches) == 1


def test_p305_a_key_without_a_winner_is_compiled_and_benchmarked(sums, tuned):
    kernel = kernel_of(sums, CUMSUM)
    changed = with_arguments(kernel, H=Argument(type="constexpr", value=3))
    (one,) = changed.specializations
    one = msgspec.structs.replace(one, tuning_key={**one.tuning_key, "H": 3})
    here = with_kernels(sums, msgspec.structs.replace(changed, specializations=(one,)))
    index = index_of(sums, tuned)
    looked = look_up(sums, tuned, index.selection, here)
    found = fit(index, sums, here, looked, serve_args=ARGS)
    missing, untuned, unasked = found.findings
    assert (missing.code, missing.subject) == ("P304", f"{CUMSUM} (4)")
    assert missing.found == "`H` is 64 in the cache and 3 here"
    assert (untuned.code, untuned.note, untuned.subject) == ("P305", False, CUMSUM)
    assert untuned.found == (
        "`tuning key H` is 64 in the cache and 3 here: 4 candidates are benchmarked at first use"
    )
    assert "--tunings FILE -- a/model" in untuned.fix
    assert unasked.found == "1 of 1 that it never does"
    (state,) = found.tuning_keys
    assert (state.settled, state.chosen) == (False, False)


def test_p303_a_record_that_is_gone(sums, tuned, tmp_path):
    lacking = shutil.copytree(tuned, tmp_path / "lacking")
    sweep(lacking)
    for record in lacking.glob("*/*.autotune.json"):
        record.unlink()
    index = index_of(sums, tuned)
    looked = look_up(sums, lacking, index.selection, sums)
    found = fit(index, sums, sums, looked, serve_args=ARGS)
    assert [code for code, _, _ in told(found)] == ["P303"]
    assert found.tuning_keys[0].reason == "there is no record of this key"
    assert found.writes
