"""Counting, apart from Triton."""

from prewarm.serve.counts import BENCHMARKS, HITS, INFERENCE, START_UP, Count, Counter


def counter() -> Counter:
    found = Counter()
    found.add("m:known", {HITS: 1, BENCHMARKS: 3}.items(), planned=True)
    found.add("m:known", {HITS: 1}.items(), planned=True)
    found.add("m:other", {HITS: 1}.items(), planned=False)
    found.phase = INFERENCE
    found.add("m:known", {HITS: 1}.items(), planned=True)
    return found


def test_equal_things_add_up_and_others_stay_apart():
    found = counter().counts()

    assert found.counts == (
        Count(what=HITS, subject="m:known", phase=START_UP, planned=True, value=2),
        Count(what=BENCHMARKS, subject="m:known", phase=START_UP, planned=True, value=3),
        Count(what=HITS, subject="m:other", phase=START_UP, planned=False, value=1),
        Count(what=HITS, subject="m:known", phase=INFERENCE, planned=True, value=1),
    )


def test_totals_are_over_whatever_is_not_named():
    found = counter().counts()

    assert found.total(HITS) == 4
    assert found.total(HITS, phase=START_UP) == 3
    assert found.total(HITS, planned=True) == 3
    assert found.total(HITS, phase=INFERENCE, planned=False) == 0


def test_a_forked_process_begins_at_nothing_in_start_up():
    found = counter()
    found.rank, found.ready = 3, True

    found.begin_again()

    assert found.counts().counts == ()
    assert (found.phase, found.counts().ready, found.counts().rank) == (START_UP, False, 3)
