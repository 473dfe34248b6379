import importlib.util
import sys
from pathlib import Path

import msgspec
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

import triton.language as tl  # noqa: E402
from triton.runtime.driver import driver  # noqa: E402

from prewarm.core.errors import InputError, UnsupportedError  # noqa: E402
from prewarm.core.manifest import Argument, Candidate, Launch  # noqa: E402
from prewarm.core.target import target_named  # noqa: E402
from prewarm.core.tuning_keys import TuningKey  # noqa: E402
from prewarm.device import triton_seam  # noqa: E402

MODULE = "prewarm_test_kernels"


@pytest.fixture(scope="module")
def kernels():
    spec = importlib.util.spec_from_file_location(MODULE, Path(__file__).with_name("kernels.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE] = module
    spec.loader.exec_module(module)
    before = driver._active
    triton_seam.activate_virtual_driver(target_named("h100"))
    yield module
    driver.set_active(before)
    del sys.modules[MODULE]


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache é"))
    return tmp_path / "cache é"


def aligned(dtype=torch.float32):
    return torch.zeros(64, dtype=dtype)


def arguments(kernels, **changed):
    plain = {
        "out": aligned(torch.bfloat16),
        "maybe": None,
        "n": 7,
        "rows": 7,
        "gap": 7,
        "scale": 0.5,
        "flag": True,
        "wide": 7,
        "BLOCK": 16,
        "MODE": "ieee",
        "RATIO": 1.0,
        "NEGATE": False,
        "DTYPE": tl.bfloat16,
        "APPLY": kernels.double,
    }
    return {**plain, **changed}


CASES = {
    "plain": {},
    "unaligned pointer": {"out": torch.zeros(65, dtype=torch.bfloat16)[1:]},
    "two pointers": {"maybe": aligned()},
    "integer is one": {"n": 1},
    "integer divisible by 16": {"n": 48},
    "integer of 64 bits": {"n": 1 << 40},
    "odd integer of 64 bits": {"n": (1 << 40) + 1},
    "unsigned of 64 bits": {"n": 1 << 63},
    "not specialized, one": {"rows": 1},
    "not specialized, divisible": {"rows": 16},
    "not specialized, 64 bits": {"rows": 1 << 40},
    "not specialized on alignment, one": {"gap": 1},
    "not specialized on alignment, divisible": {"gap": 16},
    "annotated, one": {"wide": 1},
    "annotated, divisible": {"wide": 32},
    "constexpr one": {"BLOCK": 1},
    "constexpr that looks like an attribute": {"MODE": "D"},
    "constexpr int for a float": {"RATIO": 1},
    "constexpr true": {"NEGATE": True},
    "constexpr dtype": {"DTYPE": tl.float32},
    "constexpr function": {"APPLY": "halve"},
}


@pytest.mark.parametrize("changed", CASES.values(), ids=CASES)
@pytest.mark.parametrize("options", [{}, {"num_warps": 2, "num_stages": 1}], ids=["", "options"])
def test_a_launch_read_back_from_json_has_the_key_that_triton_itself_uses(
    kernels, changed, options
):
    if changed.get("APPLY") == "halve":
        changed = {"APPLY": kernels.halve}
    passed = {**arguments(kernels, **changed), **options}
    kernels.everything.device_caches.clear()  # where Triton takes 1, 1.0 and True for one value
    compiled = kernels.everything.run(**passed, grid=(1,), warmup=True)
    launch = triton_seam.launch_of(
        kernels.everything, (), {**passed, "grid": (1,), "warmup": False}
    )
    stored = msgspec.json.decode(msgspec.json.encode(launch), type=Launch)
    assert stored == launch
    assert triton_seam.cache_key_of(stored) == triton_seam._key_of(compiled)


def test_each_way_to_specialize_has_its_own_key(kernels):
    keys = {}
    for name, case in CASES.items():
        changed = {"APPLY": kernels.halve} if "APPLY" in case else case
        launch = triton_seam.launch_of(kernels.everything, (), arguments(kernels, **changed))
        keys.setdefault(triton_seam.cache_key_of(launch), []).append(name)
    same = [
        # Triton does not look at these values, so they are one launch with `plain`.
        [
            "plain",
            "not specialized, one",
            "not specialized, divisible",
            "not specialized on alignment, divisible",
        ],
    ]
    assert sorted(names for names in keys.values() if len(names) > 1) == same


def test_arguments_are_written_as_the_manifest_names_them(kernels):
    passed = arguments(kernels, n=1, maybe=aligned(), wide=32)
    read = triton_seam.launch_of(kernels.everything, (), passed).arguments
    assert read["out"] == Argument(type="*bf16", divisible_by_16=True, seen="(64,) by (1,)")
    assert read["n"] == Argument(type="constexpr", value=1, equal_to_1=True)
    assert read["rows"] == Argument(type="i32", seen="7")
    assert read["wide"] == Argument(type="i64", divisible_by_16=True, seen="32")
    assert read["flag"] == Argument(type="u1", seen="True")
    assert read["BLOCK"] == Argument(type="constexpr", value=16)
    assert read["DTYPE"] == Argument(type="constexpr", value={"dtype": "bf16"})
    assert read["APPLY"] == Argument(type="constexpr", value={"function": f"{MODULE}:double"})


def test_an_entry_is_compiled_once_and_then_found(kernels, cache_dir):
    launch = triton_seam.launch_of(kernels.everything, (), arguments(kernels))
    first, second = triton_seam.compile_launch(launch), triton_seam.compile_launch(launch)
    assert (first.cached, second.cached) == (False, True)
    assert first.key == second.key == triton_seam.cache_key_of(launch)
    assert (cache_dir / first.key / "everything.cubin").is_file()


def test_handles_of_a_compiled_kernel_are_there_without_a_gpu(kernels):
    launch = triton_seam.launch_of(kernels.everything, (), arguments(kernels))
    kernel = triton_seam.compile_launch(launch).kernel
    assert isinstance(kernel.run, triton_seam.VirtualLauncher)
    assert kernel.n_max_threads == 1024


def test_triton_is_told_the_properties_of_the_target(kernels):
    properties = driver.active.utils.get_device_properties(0)
    assert properties["max_shared_mem"] == target_named("h100").shared_memory_per_block
    assert properties["multiprocessor_count"] == 132


@pytest.mark.parametrize(
    ("value", "text"),
    [((1, 2), "(1, 2)"), (float("inf"), "inf"), (torch.float32, "torch.float32")],
    ids=["tuple", "infinity", "torch dtype"],
)
def test_a_constexpr_that_a_manifest_cannot_hold_is_refused_by_name(kernels, value, text):
    with pytest.raises(UnsupportedError) as caught:
        triton_seam.launch_of(kernels.everything, (), arguments(kernels, MODE=value))
    assert str(caught.value) == f"MODE: a manifest cannot hold the compile-time value {text}"


def changed_argument(launch: Launch, name: str, argument: Argument) -> Launch:
    return msgspec.structs.replace(launch, arguments={**launch.arguments, name: argument})


def test_a_launch_that_triton_would_read_otherwise_is_refused(kernels):
    launch = triton_seam.launch_of(kernels.everything, (), arguments(kernels))
    wrong = changed_argument(launch, "rows", Argument(type="i32", divisible_by_16=True))
    with pytest.raises(InputError, match="Triton reads the argument rows as"):
        triton_seam.bind(wrong)


def test_a_launch_of_other_parameters_is_refused(kernels):
    launch = triton_seam.launch_of(kernels.everything, (), arguments(kernels))
    wrong = changed_argument(launch, "more", Argument(type="i32"))
    with pytest.raises(InputError, match=r"the launch has out, .*, more"):
        triton_seam.bind(wrong)


def test_another_source_is_refused(kernels):
    launch = triton_seam.launch_of(kernels.everything, (), arguments(kernels))
    with pytest.raises(InputError, match="is not the one that was planned") as caught:
        triton_seam.bind(msgspec.structs.replace(launch, source="sha256:" + "0" * 64))
    assert caught.value.hint is not None


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("prewarm_no_such_module:kernel", InputError),
        (f"{MODULE}:no_such_kernel", InputError),
        (f"{MODULE}:not_a_kernel", UnsupportedError),
    ],
)
def test_a_kernel_that_is_not_there_is_refused(kernels, name, kind):
    with pytest.raises(kind):
        triton_seam.kernel_named(name)


def test_a_kernel_under_autotuner_and_heuristics_has_the_name_of_its_function(kernels):
    import triton

    wrapped = triton.heuristics({})(
        triton.autotune([triton.Config({}), triton.Config({}, num_warps=2)], key=["n"])(
            kernels.everything
        )
    )
    assert triton_seam.kernel_name(wrapped) == f"{MODULE}:everything"
    assert triton_seam.source_digest(wrapped) == triton_seam.source_digest(kernels.everything)


def test_a_kernel_that_another_process_could_not_import_is_refused(kernels, monkeypatch):
    monkeypatch.setattr(kernels, "everything", kernels.double)
    hidden = triton_seam.kernel_named(f"{MODULE}:double")
    assert triton_seam.kernel_name(hidden) == f"{MODULE}:double"
    monkeypatch.delattr(kernels, "double")
    with pytest.raises(UnsupportedError, match="cannot be imported by name"):
        triton_seam.kernel_name(hidden)


def test_variables_that_enter_keys_are_named_with_their_values(monkeypatch):
    before = triton_seam.key_environment()
    monkeypatch.setenv("DISABLE_LLVM_OPT", "1")
    monkeypatch.setenv("PTXAS_OPTIONS", "--opt-level 1")
    after = triton_seam.key_environment()
    assert {k: v for k, v in after.items() if k not in before} == {
        "DISABLE_LLVM_OPT": "true",
        "PTXAS_OPTIONS": "--opt-level 1",
    }


# --- autotune records -----------------------------------------------------------------------


def asked_by(tuner, monkeypatch, *args, **keywords):
    """Return what a call of `tuner` asks the disk, and the same as a manifest has it."""
    questions = []

    def check_disk_cache(self, key, configs, benchmark):
        questions.append((key, configs))
        self.cache[key] = configs[0]
        return True

    monkeypatch.setattr(type(tuner), "check_disk_cache", check_disk_cache)
    monkeypatch.setattr(tuner, "cache_results", True)
    monkeypatch.setattr(tuner, "cache", {})
    tuner.run(*args, grid=(1,), warmup=True, **keywords)
    monkeypatch.undo()
    ((key, configs),) = questions
    kept = triton_seam.pruned_configs(tuner, args, keywords)
    recorded = TuningKey(
        kernel=triton_seam.kernel_name(tuner),
        key=dict(triton_seam.tuning_key_of(tuner, args, keywords)),
        candidates=tuple(tuner.configs.index(config) for config in kept),
    )
    stored = msgspec.json.decode(msgspec.json.encode(recorded), type=TuningKey)
    return key, [str(config) for config in configs], stored


def spelled(key):
    return [(type(each), each) for each in key]


HALF, SINGLE = aligned(torch.float16), aligned()
CALLS = {
    "all kinds of values": ((HALF,), {"maybe": None, "SCALE": 0.5, "MODE": "D", "FLAG": True}),
    "one is not true": ((HALF,), {"maybe": None, "SCALE": 1.0, "MODE": None, "FLAG": 1}),
    "tensors in the order of the call": (
        (),
        {"maybe": SINGLE, "out": HALF, "SCALE": 1, "MODE": "", "FLAG": False},
    ),
}


@pytest.mark.parametrize(("args", "keywords"), CALLS.values(), ids=CALLS)
def test_a_tuning_key_read_back_from_json_is_the_one_that_triton_makes(
    kernels, monkeypatch, args, keywords
):
    key, configs, stored = asked_by(kernels.tuned, monkeypatch, *args, n=7, **keywords)
    tuner, rebuilt, kept = triton_seam._question(stored)
    assert tuner is kernels.tuned
    assert spelled(rebuilt) == spelled(key)
    assert [str(config) for config in kept] == configs


def test_the_candidates_that_pruning_leaves_are_part_of_the_question(kernels, monkeypatch):
    _, configs, stored = asked_by(kernels.pruned, monkeypatch, aligned(), 7)
    assert stored.candidates == (1, 2)
    assert [str(config) for config in triton_seam._question(stored)[2]] == configs


def asked(kernels, function="pruned", **changed):
    key = TuningKey(
        kernel=f"{MODULE}:{function}",
        key={"n": 7, "dtype of out": "torch.float32"},
        candidates=(1,),
    )
    return msgspec.structs.replace(key, **changed)


WINNER = Candidate(constexprs={"BLOCK": 128}, num_warps=2, num_stages=1)


def test_a_record_is_written_found_kept_replaced_and_removed(kernels, cache_dir):
    question, other = asked(kernels), msgspec.structs.replace(WINNER, num_warps=1)
    assert not triton_seam.find_autotune_record(question).there
    assert not cache_dir.exists()
    record, change = triton_seam.write_autotune_record(question, WINNER, 12.5)
    assert change == "written"
    found = triton_seam.find_autotune_record(question)
    assert (found.there, found.winner, found.record) == (True, WINNER, record)
    assert found.path == cache_dir / record.key / record.file
    for winner, time, expected in (
        (WINNER, 12.5, "kept"),
        (WINNER, 13.0, "replaced"),
        (other, 13.0, "replaced"),
    ):
        assert triton_seam.write_autotune_record(question, winner, time) == (record, expected)
    assert triton_seam.find_autotune_record(question).winner == other
    assert triton_seam.remove_autotune_record(question) == record
    assert triton_seam.remove_autotune_record(question) is None
    assert list(cache_dir.iterdir()) == []


@pytest.mark.parametrize(
    "text", ["", "[]", '{"configs_timings": []}', '{"configs_timings": [[5]]}']
)
def test_a_record_without_sense_names_no_winner_and_is_replaced(kernels, text):
    question = asked(kernels)
    triton_seam.write_autotune_record(question, WINNER, 12.5)
    found = triton_seam.find_autotune_record(question)
    found.path.write_text(text)
    again = triton_seam.find_autotune_record(question)
    assert (again.there, again.winner) == (True, None)
    assert triton_seam.write_autotune_record(question, WINNER, 12.5)[1] == "replaced"
    assert triton_seam.find_autotune_record(question).winner == WINNER


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("modelled", "in an order that only real arguments decide"),
        ("hooked", "Triton keeps no autotune record"),
        ("double", "has no autotuner"),
    ],
)
def test_what_can_have_no_record_is_refused_by_name(kernels, function, message):
    with pytest.raises(UnsupportedError, match=f"{MODULE}:{function}.* {message}"):
        triton_seam.write_autotune_record(asked(kernels, function), WINNER, 12.5)
    assert triton_seam.remove_autotune_record(asked(kernels, function)) is None
