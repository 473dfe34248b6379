"""What autotuners ask, and what a first start with a cache still does."""

import msgspec
import pytest

from prewarm.core.digest import digest_of
from prewarm.core.first_start import first_start
from prewarm.core.manifest import Candidate
from prewarm.core.selection import Choice, Selection, selected_launches
from prewarm.core.tuning_keys import tuning_keys

BEYOND = Candidate(constexprs={"B": 256}, num_warps=8, num_stages=1)


def with_kernel(manifest, **changed):
    kernel = msgspec.structs.replace(manifest.kernels[0], **changed)
    return msgspec.structs.replace(manifest, kernels=(kernel,))


@pytest.fixture
def asked_twice(manifest):
    """The same, with a second tuning key, and with the first under another pruning."""
    (one,) = manifest.kernels[0].specializations
    other = msgspec.structs.replace(one, tuning_key={"n": 2})
    less = msgspec.structs.replace(one, candidates=(1,))
    return with_kernel(manifest, specializations=(one, other, less, one))


def selection(key, winner=BEYOND, **changed):
    choice = Choice(kernel="kernels:add", key=key, winner=winner, time=1.0)
    made = Selection(gpu="NVIDIA B200", tunings=digest_of(b"tunings"), choices=(choice,))
    return msgspec.structs.replace(made, **changed)


def test_each_key_is_asked_once_for_each_list_that_pruning_leaves(asked_twice):
    asked = [(key.key, key.candidates) for key in tuning_keys(asked_twice, None)]
    assert asked == [({"n": 1}, (0, 1)), ({"n": 2}, (0, 1)), ({"n": 1}, (1,))]


def test_a_winner_answers_its_key_however_it_was_pruned(asked_twice):
    winners = [key.winner for key in tuning_keys(asked_twice, selection({"n": 1}))]
    assert winners == [BEYOND, None, BEYOND]
    # In a tuning key 1 and True are not the same.
    assert tuning_keys(asked_twice, selection({"n": True}))[0].winner is None


def test_an_autotuner_of_one_candidate_asks_nothing_and_takes_that_one(manifest):
    (one,) = manifest.kernels[0].specializations
    alone = with_kernel(
        manifest,
        candidates=manifest.kernels[0].candidates[:1],
        specializations=(msgspec.structs.replace(one, candidates=(0,)),),
    )
    assert tuning_keys(alone, None) == ()
    assert list(selected_launches(alone, selection({"n": 1}))) == list(alone.launches())


def test_what_a_first_start_benchmarks_is_counted(asked_twice):
    every = first_start(asked_twice, None, 0)
    assert every.startswith("benchmarks the candidates of 3 of 3 tuning keys, 5 in all (about 1 s ")
    some = first_start(asked_twice, selection({"n": 1}), 0)
    assert some.startswith("benchmarks the candidates of 1 of 3 tuning keys, 2 in all (about 1 s ")
    assert some.endswith("where the GPU is; winners were measured on NVIDIA B200")
    assert first_start(asked_twice, selection({"n": 1}, winner=None), 0) == every


def test_eighty_eight_candidates_take_about_ten_seconds(manifest):
    (one,) = manifest.kernels[0].specializations
    many = tuple(Candidate(constexprs={"B": n}, num_warps=4, num_stages=3) for n in range(88))
    asked = msgspec.structs.replace(one, candidates=tuple(range(88)))
    said = first_start(with_kernel(manifest, candidates=many, specializations=(asked,)), None, 0)
    assert "88 in all (about 10 s on an H100)" in said


def test_with_all_winners_nothing_is_left_but_what_is_unbound(manifest):
    done = selection({"n": 1})
    assert first_start(manifest, done, 0) == (
        "compiles nothing and benchmarks nothing; winners were measured on NVIDIA B200"
    )
    assert first_start(manifest, done, 3).startswith("compiles 3 unbound launches; ")
    foreign = selection({"n": 1}, gpu="NVIDIA H200", foreign=True)
    assert first_start(manifest, foreign, 0).endswith("NVIDIA H200, another GPU than the target")
