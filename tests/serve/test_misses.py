"""Causes of misses, from documents alone; `test_plugin.py` meets them under real Triton."""

import msgspec
import pytest

from prewarm.core.cache import CACHE_MANIFEST, ENTRIES, PLAN, CacheManifest, CompiledLaunch
from prewarm.core.cache import cache_document as document
from prewarm.core.errors import InputError
from prewarm.core.manifest import Argument
from prewarm.core.manifest_yaml import write_manifest
from prewarm.core.toolchain import Ptxas
from prewarm.serve.counts import INFERENCE, START_UP
from prewarm.serve.installed import InstalledCache
from prewarm.serve.misses import (
    MOST_ALIKE,
    Cause,
    Told,
    cause_of_all,
    cause_of_another_gpu,
    cause_of_launch,
    cause_of_tuning,
)

KEY = "A" * 52


@pytest.fixture
def installed(tmp_path, manifest):
    """Return the cache of the first candidate of the manifest's one kernel."""
    tree = tmp_path / "cache"
    (tree / ENTRIES).mkdir(parents=True)
    first, *_ = manifest.launches()
    index = CacheManifest(
        manifest=manifest.digest,
        deployment=manifest.deployment,
        target_arch=100,
        toolchain=manifest.toolchain,
        launches=(CompiledLaunch(launch=first.digest, kernel=first.kernel, key=KEY),),
        host_modules=(),
        sources={kernel.name: kernel.source for kernel in manifest.kernels},
        files=(),
    )
    write_manifest(tree / PLAN, manifest)
    (tree / CACHE_MANIFEST).write_bytes(document(index))
    return InstalledCache(tree / ENTRIES)


@pytest.fixture
def launch(manifest):
    return next(manifest.launches())


def with_argument(launch, name, argument):
    return msgspec.structs.replace(launch, arguments={**launch.arguments, name: argument})


def test_a_launch_that_differs_is_held_against_the_nearest_that_is_in_the_cache(installed, launch):
    asked = with_argument(launch, "x", Argument(type="*bf16", divisible_by_16=True))

    assert cause_of_launch(installed, asked, KEY) == Cause(
        fields=("x",),
        words="`x` is a tensor of float32 divisible by 16 in the cache"
        " and a tensor of bfloat16 divisible by 16 here",
    )


def test_a_candidate_that_was_planned_and_left_out_is_held_against_what_is_there(
    installed, manifest
):
    _, second = manifest.launches()

    cause = cause_of_launch(installed, second, KEY)

    assert cause.fields == ("B", "option num_warps", "option num_stages")
    assert cause.words.startswith("`B` is 64 in the cache and 128 here;")


def test_an_entry_that_should_be_there_is_looked_for_under_its_key(installed, launch):
    gone = cause_of_launch(installed, launch, KEY)
    other = cause_of_launch(installed, launch, "B" * 52)

    assert gone.fields == other.fields == ("entry",)
    assert gone.words.startswith(f"its entry {KEY} is not in {installed.entries}")
    assert other.words.startswith(f"its key is {KEY} in the cache and {'B' * 52} here")


def test_what_was_compiled_at_start_up_is_known_too(installed, launch):
    known = with_argument(launch, "n", Argument(type="i64"))
    installed.add(known)

    assert cause_of_launch(installed, known, KEY).words == (
        "it was compiled at start-up and is not in the overlay any more"
    )


def test_a_kernel_of_another_source_is_called_that_whatever_it_asks_for(installed, launch):
    asked = msgspec.structs.replace(launch, source="sha256:1")

    assert cause_of_launch(installed, asked, KEY).fields == ("source",)
    assert cause_of_tuning(installed, launch.kernel, "sha256:1", {"n": 1}).fields == ("source",)


def test_a_kernel_of_which_nothing_is_cached_is_told(installed, launch):
    asked = msgspec.structs.replace(launch, kernel="kernels:other")

    assert cause_of_launch(installed, asked, KEY).words == (
        "the cache holds no launch of this kernel"
    )


def test_a_tuning_key_is_held_against_the_nearest_planned_one(installed, launch):
    asked = {"n": 2, "dtype of g": "torch.float32"}

    cause = cause_of_tuning(installed, launch.kernel, launch.source, asked)

    assert cause.words == (
        "`tuning key n` is 1 in the cache and 2 here;"
        " `tuning key dtype of g` is (absent) in the cache and torch.float32 here"
    )


def test_a_planned_tuning_key_without_a_winner_needs_tunings(installed, launch):
    cause = cause_of_tuning(installed, launch.kernel, launch.source, {"n": 1})

    assert cause.words == (
        "the cache holds no winner for this tuning key: prewarm build --tunings FILE"
    )


def test_a_cache_that_cannot_be_read_is_an_error_of_its_own(installed, launch):
    (installed.entries.parent / PLAN).write_text("schema: nothing")

    with pytest.raises(InputError):
        cause_of_launch(installed, launch, KEY)


def test_another_ptxas_is_named_with_the_variable_that_chooses_it(manifest):
    built = manifest.toolchain
    ptxas = Ptxas(version="13.0.88", text="sha256:1", chosen_by="TRITON_PTXAS_BLACKWELL_PATH")
    here = msgspec.structs.replace(built, ptxas=ptxas)

    mendable = cause_of_all(built, here, 100, "/opt/ptxas")
    not_here = cause_of_all(built, here, 90, None)

    assert mendable is not None
    assert mendable.everywhere
    assert mendable.words == (
        "no entry of the cache fits here: ptxas is 12.9.86 in the cache and 13.0.88 here:"
        " set TRITON_PTXAS_BLACKWELL_PATH=/opt/ptxas"
    )
    assert not_here is not None
    assert not_here.words.endswith("13.0.88 here: build the cache again in this image")


def test_only_what_is_in_keys_keeps_every_launch_from_its_entry(manifest):
    built = manifest.toolchain
    other_vllm = msgspec.structs.replace(built, vllm="0.26", libc="musl", torch="2.12")
    other_variable = msgspec.structs.replace(built, key_environment={"TRITON_DEBUG": "1"})

    assert cause_of_all(built, other_vllm, 100, None) is None
    cause = cause_of_all(built, other_variable, 100, None)
    assert cause is not None
    assert cause.words == (
        "no entry of the cache fits here:"
        " environment TRITON_DEBUG is (unset) in the cache and 1 here"
    )


def test_a_cache_for_another_gpu_is_called_that():
    assert cause_of_another_gpu(90, "h100", 90) is None
    cause = cause_of_another_gpu(100, "b200", 90)
    assert cause is not None
    assert cause.words == (
        "no entry of the cache fits here: it was built for sm_100 (b200), and this GPU is sm_90"
    )


def test_misses_alike_are_told_a_few_times_in_each_phase():
    told, cause = Told(), Cause(fields=("x",), words="so")
    lines = [told.line("k", START_UP, cause, "was compiled") for _ in range(MOST_ALIKE + 2)]

    assert lines == [
        *["miss at start-up: k was compiled: so"] * (MOST_ALIKE - 1),
        "miss at start-up: k was compiled: so (the next ones like this are only counted)",
        None,
        None,
    ]
    assert told.line("k", INFERENCE, cause, "e") == "miss in inference: k e: so"
    assert told.line("other", START_UP, cause, "e") is not None
    assert told.line("k", START_UP, Cause(fields=("y",), words="so"), "e") is not None


def test_what_keeps_every_launch_away_is_told_once_for_all_kernels():
    told, cause = Told(), Cause(fields=("toolchain",), words="so", everywhere=True)

    assert told.line("k", START_UP, cause, "e") == (
        "miss at start-up: k e: so (the next ones like this are only counted)"
    )
    assert told.line("other", INFERENCE, cause, "e") is None
