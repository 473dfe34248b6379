"""Tunings on disk: the times of a config a line, and nothing of them lost."""

from __future__ import annotations

import msgspec
import pytest
import yaml

from prewarm.core.errors import InputError
from prewarm.core.manifest_yaml import render_manifest
from prewarm.core.tunings import Size
from prewarm.core.tunings_yaml import (
    holds_tunings,
    parse_tunings,
    read_tunings,
    render_tunings,
    write_tunings,
)


def with_key(tunings, **changes):
    (kernel,) = tunings.kernels
    key = msgspec.structs.replace(kernel.keys[0], **changes)
    kernel = msgspec.structs.replace(kernel, keys=(key,))
    return msgspec.structs.replace(tunings, kernels=(kernel,))


def test_what_is_written_is_read_back(tunings, tmp_path):
    path = tmp_path / "t.yaml"
    write_tunings(path, tunings)

    assert read_tunings(path) == tunings
    assert render_tunings(read_tunings(path)) == path.read_text("utf-8")


def test_each_measured_config_is_one_line_that_begins_with_its_times(tunings):
    lines = [line.strip() for line in render_tunings(tunings).splitlines()]
    times = [line for line in lines if line.startswith("- {times: [")]

    assert times[0] == (
        "- {times: [3.2, 120.0, 121.0], rounds: 18,"
        " config: {constexprs: {B: 64}, num_warps: 4, num_stages: 3}}"
    )
    assert len(times) == 3
    assert "winner: {constexprs: {B: 256}, num_warps: 8, num_stages: 3}" in lines
    assert max(map(len, lines)) < 200


def test_the_layout_is_plain_yaml(tunings):
    plain = yaml.safe_load(render_tunings(tunings))

    assert plain["digest"] == tunings.digest
    assert plain["runs"][0]["sizes"][0] == {"tokens": 64, "sequences": 1, "weight": 0.0}
    assert plain["kernels"][0]["keys"][0]["measured"][3]["failed"] == "out of shared memory"


def test_a_whole_number_given_for_a_weight_makes_no_other_document(tunings):
    (run,) = tunings.runs
    whole = (Size(tokens=64, sequences=1, weight=0), Size(tokens=8192, sequences=1, weight=2))
    run = msgspec.structs.replace(run, sizes=(*whole, run.sizes[2]))
    same = msgspec.structs.replace(tunings, runs=(run,))

    assert same.digest == tunings.digest
    assert render_tunings(same) == render_tunings(tunings)


def test_another_time_is_another_document(tunings):
    assert with_key(tunings, score=1.0034).digest != tunings.digest


def test_tunings_are_told_from_a_manifest_by_their_schema_line(tunings, manifest):
    assert holds_tunings(render_tunings(tunings))
    assert not holds_tunings(render_manifest(manifest))
    assert not holds_tunings(f"# about schema: {tunings.schema}\n")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("schema: prewarm/tunings/v1", "schema: prewarm/tunings/v9", "v9"),
        ("confirmed: ", "confirmd: ", r"confirm.* at `\$\.kernels\[0\]\.keys\[0\]`"),
        ("rounds: 18", "rounds: many", r"keys\[0\]\.measured\[0\]\.rounds`"),
        ("runs:", "runs: [", "not valid YAML.*line"),
        ("arch: 100", "arch: 100\narch: 90", "'arch' stands twice.*line 7"),
        ("times: [3.2,", "times: [1.2,", "was edited or cut short"),
        ("  - key:", "  - key: {}\n    ky:", r"`ky` - at `\$\.kernels\[0\]\.keys\[0\]`"),
    ],
)
def test_damaged_tunings_are_bad_input_named_with_file_and_place(tunings, old, new, message):
    text = render_tunings(tunings)
    assert old in text

    with pytest.raises(InputError, match=message) as refused:
        parse_tunings(text.replace(old, new, 1), "t.yaml")

    assert "t.yaml" in str(refused.value)


def test_a_file_that_was_cut_short_is_refused_wherever_the_cut_is(tunings):
    lines = render_tunings(tunings).splitlines(keepends=True)

    for count in range(1, len(lines)):
        with pytest.raises(InputError):
            parse_tunings("".join(lines[:count]), "t.yaml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": 1}, "there is no run 1 - at `$.kernels[0].keys[0]`"),
        ({"measured": ()}, "names a config that was not measured - at `$.kernels[0].keys[0]`"),
    ],
)
def test_tunings_that_refer_to_what_is_not_there_are_refused(tunings, changes, message):
    text = render_tunings(with_key(tunings, **changes))

    with pytest.raises(InputError) as refused:
        parse_tunings(text, "t.yaml")

    assert message in str(refused.value)


def test_times_that_are_not_one_a_size_are_refused(tunings):
    (run,) = tunings.runs
    fewer = msgspec.structs.replace(run, sizes=run.sizes[:2])
    text = render_tunings(msgspec.structs.replace(tunings, runs=(fewer,)))

    with pytest.raises(InputError, match="not as many times as its run has sizes"):
        parse_tunings(text, "t.yaml")
