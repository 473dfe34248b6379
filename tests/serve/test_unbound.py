"""Unbound launches: their values here, and who compiles them."""

import time
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from prewarm.core.errors import CompileError
from prewarm.core.manifest import Argument, Launch, Unbound
from prewarm.serve.unbound import Done, Settled, compile_settled, settle, value_at

FOLLOWING = Unbound(
    argument="lines",
    kernels=("m:conv",),
    follows="number of GPU blocks",
    seen={"100": 101, "200": 201},
    pin="--num-gpu-blocks-override",
)
FREE = Argument(type="constexpr", unbound=True)


def launch(**arguments: Argument) -> Launch:
    return Launch(
        kernel="m:conv",
        source="s",
        arguments={"x": Argument(type="*fp32"), **arguments},
        options={},
    )


@pytest.mark.parametrize(
    ("seen", "blocks", "value"),
    [
        ({"150": 150, "160": 160}, 1204, 1204),
        ({"100": 101, "200": 201}, 1000, 1001),
        ({"100": 1000, "90": 900}, 7, 70),
        ({"100": 50, "102": 51}, 200, 100),
        ({"100": 50, "102": 51}, 201, None),
        ({"100": 5, "102": 5}, 7, 5),
        ({"100": 100}, 7, None),
        ({"100": "a", "102": "b"}, 7, None),
        ({"100": True, "102": False}, 7, None),
    ],
)
def test_the_value_is_on_the_line_through_the_two_that_were_seen(seen, blocks, value):
    assert value_at(seen, blocks) == value


def test_unbound_launches_are_settled_and_bound_ones_left_out():
    found = settle([launch(lines=FREE), launch(lines=Argument(type="i32"))], [FOLLOWING], 1000)

    assert found == Settled(
        launches=(launch(lines=Argument(type="constexpr", value=1001)),), values={"lines": 1001}
    )


def test_a_launch_with_an_argument_that_follows_nothing_known_is_left_to_vllm():
    bent = msgspec.structs.replace(FOLLOWING, argument="more", seen={"100": 1, "102": 2})

    found = settle([launch(lines=FREE, more=FREE), launch(lines=FREE)], [FOLLOWING, bent], 1001)

    assert [each.unbound for each in found.launches] == [()]
    assert "more" not in found.launches[0].arguments
    assert found.left == ("`more` does not follow the number of GPU blocks in a line",)


def settled(number: int) -> Settled:
    values = range(number)
    return Settled(
        launches=tuple(launch(lines=Argument(type="constexpr", value=each)) for each in values),
        values={"lines": 1},
    )


def test_what_was_there_is_told_from_what_was_compiled():
    done = compile_settled(
        settled(3), lambda each: each.arguments["lines"].value == 1, rank=0, state=None
    )

    assert (done.compiled, done.found, done.values) == (2, 1, {"lines": 1})


def test_a_launch_that_fails_is_left_to_vllm_and_the_others_are_made():
    def make(each: Launch) -> bool:
        if each.arguments["lines"].value == 0:
            raise CompileError("no")
        return False

    assert compile_settled(settled(3), make, rank=0, state=None).compiled == 2


def test_nothing_to_settle_takes_nothing():
    assert compile_settled(settled(0), lambda _: False, rank=3, state=None).compiled == 0


def test_ranks_that_start_together_compile_each_launch_once(tmp_path):
    """Each makes its launches as Triton does: what is not there is made, which takes a while."""
    made, state = tmp_path / "made", tmp_path / "state"
    made.mkdir()
    state.mkdir()

    def make(each: Launch) -> bool:
        path = made / each.digest
        if path.exists():
            return True
        time.sleep(0.02)
        with path.open("x"):
            return False

    def rank(number: int) -> Done:
        return compile_settled(settled(6), make, rank=number, state=state)

    with ThreadPoolExecutor(4) as ranks:
        done = list(ranks.map(rank, range(4)))

    assert sum(each.compiled for each in done) == len(list(made.iterdir())) == 6
    assert sum(each.found for each in done) == 18


def test_a_state_directory_that_is_gone_keeps_no_launch_from_being_made(tmp_path):
    done = compile_settled(settled(2), lambda _: False, rank=0, state=tmp_path / "gone")

    assert done.compiled == 2
