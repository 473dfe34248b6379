"""Which launches of a fleet are one and the same, and which shard compiles them."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from prewarm.core.errors import InputError
from prewarm.core.fleet import (
    Part,
    Planned,
    bound_launches,
    extent,
    groups_of,
    parse_part,
    tuned_in,
)
from prewarm.core.manifest import Argument, Specialization
from prewarm.core.selection import Choice, Selection

ALL = Part(number=1, of=1)


def on(manifest, target):
    deployment = msgspec.structs.replace(manifest.deployment, target=target)
    return msgspec.structs.replace(manifest, deployment=deployment)


def with_tools(manifest, **changes):
    tools = msgspec.structs.replace(manifest.toolchain, **changes)
    return msgspec.structs.replace(manifest, toolchain=tools)


def with_more(manifest, count):
    """Add `count` launches that no other manifest has."""
    (kernel,) = manifest.kernels
    more = tuple(
        Specialization(
            arguments={"x": Argument(type="*fp32"), "B": Argument(type="constexpr", value=size)},
            options={"num_warps": 4},
            via=("decode",),
        )
        for size in range(count)
    )
    kernel = msgspec.structs.replace(kernel, specializations=(*kernel.specializations, *more))
    return msgspec.structs.replace(manifest, kernels=(kernel,))


def identities(groups):
    return [each.identity for group in groups for each in group.launches]


def test_deployments_that_ask_alike_share_launches(manifest, changed_manifest):
    fleet = (
        Planned(name="a", manifest=manifest),
        Planned(name="b", manifest=changed_manifest),
        Planned(name="c", manifest=on(manifest, "gb200")),
    )
    found = extent(fleet)

    assert (found.deployments, found.launches, found.distinct) == (3, 6, 2)
    (group,) = groups_of(fleet, ALL)
    assert group.target == "b200"
    assert [launch.digest for launch in group.manifest.launches()] == [
        launch.digest for launch in manifest.launches()
    ]


@pytest.mark.parametrize(
    "change",
    [
        lambda m: on(m, "h100"),
        lambda m: with_tools(m, triton_key="sha256:" + "0" * 64),
        lambda m: with_tools(m, key_environment={"DISABLE_LLVM_OPT": "true"}),
        lambda m: with_tools(m, ptxas=msgspec.structs.replace(m.toolchain.ptxas, text="other")),
    ],
)
def test_what_enters_triton_s_keys_tells_launches_apart(manifest, change):
    fleet = (Planned(name="a", manifest=manifest), Planned(name="b", manifest=change(manifest)))

    assert extent(fleet).distinct == 4
    assert len(groups_of(fleet, ALL)) == 2


def test_who_chose_the_ptxas_the_c_library_and_what_was_read_do_not(manifest):
    ptxas = msgspec.structs.replace(manifest.toolchain.ptxas, chosen_by="PATH")
    other = with_tools(manifest, ptxas=ptxas, libc="glibc 2.39", environment={"VLLM_X": "1"})
    fleet = (Planned(name="a", manifest=manifest), Planned(name="b", manifest=other))

    assert extent(fleet).distinct == 2


def test_launches_whose_modules_read_another_environment_compile_in_another_process(manifest):
    other = with_more(with_tools(manifest, environment={"VLLM_X": "1"}), 3)
    fleet = (Planned(name="a", manifest=manifest), Planned(name="b", manifest=other))
    first, second = groups_of(fleet, ALL)

    assert (len(first.launches), len(second.launches)) == (2, 3)
    assert second.toolchain.environment == {"VLLM_X": "1"}


def test_shards_share_all_launches_out_and_none_twice(manifest):
    fleet = (Planned(name="a", manifest=with_more(manifest, 60)),)
    parts = [Part(number=number, of=7) for number in range(1, 8)]
    found = [identities(groups_of(fleet, part)) for part in parts]

    assert sorted(itertools.chain(*found)) == sorted(identities(groups_of(fleet, ALL)))
    assert all(found)


def test_another_deployment_moves_no_launch_to_another_shard(manifest):
    part = Part(number=2, of=5)
    one = (Planned(name="m", manifest=with_more(manifest, 40)),)
    two = (*one, Planned(name="a", manifest=on(with_more(manifest, 80), "h100")))

    mine = set(identities(groups_of(one, part)))
    assert mine <= set(identities(groups_of(two, part)))
    assert mine == {i for i in identities(groups_of(one, ALL)) if part.holds(i)}


def test_what_is_unbound_is_left_to_the_first_start(manifest):
    (kernel,) = manifest.kernels
    unbound = Specialization(
        arguments={"B": Argument(type="constexpr", unbound=True)}, via=("decode",)
    )
    kernel = msgspec.structs.replace(kernel, specializations=(*kernel.specializations, unbound))
    planned = Planned(name="a", manifest=msgspec.structs.replace(manifest, kernels=(kernel,)))

    assert len(list(bound_launches(planned))) == 2


def test_tunings_choose_which_launches_there_are(manifest):
    (kernel,) = manifest.kernels
    choice = Choice(kernel=kernel.name, key={"n": 1}, winner=kernel.candidates[1])
    selection = Selection(gpu="NVIDIA B200", tunings="sha256:0", choices=(choice,))
    tuned = Planned(name="tuned", manifest=manifest, selection=selection)
    fleet = (tuned, Planned(name="whole", manifest=manifest))

    assert len(list(bound_launches(tuned))) == 1
    assert extent(fleet).distinct == 2
    parts = [Part(number=number, of=3) for number in (1, 2, 3)]
    assert sorted(e.name for part in parts for e in tuned_in(fleet, part)) == ["tuned"]


def test_a_part_is_a_number_of_a_number():
    assert parse_part("3/16") == Part(number=3, of=16)
    assert str(parse_part("16/16")) == "16/16"


@pytest.mark.parametrize("text", ["0/4", "5/4", "1/0", "1", "1/2/3", "-1/2", "01/2", "a/b", ""])
def test_any_other_text_is_no_part(text):
    with pytest.raises(InputError, match="the first is 1/16, the last 16/16"):
        parse_part(text)
