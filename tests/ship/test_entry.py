"""One entry as it is shipped."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prewarm.ship.entry import (
    Group,
    is_group,
    key_of_hash,
    parse_group,
    placeholder,
    render_group,
    render_metadata,
    reroot,
)

KEY = base64.b32encode(b"k" * 32).decode().rstrip("=")
GROUP = Group(root="/somewhere", names=("add.cubin", "add.json"))


def test_a_group_is_what_triton_reads():
    paths = json.loads(render_group(KEY, GROUP))["child_paths"]
    assert paths == {
        "add.cubin": f"/somewhere/{KEY}/add.cubin",
        "add.json": f"/somewhere/{KEY}/add.json",
    }


@given(st.text(min_size=1))
def test_a_group_survives_any_directory_in_any_locale(root):
    data = render_group(KEY, Group(root=root, names=GROUP.names))
    assert data.isascii()
    assert parse_group(data, KEY) == Group(root=root, names=GROUP.names)


@given(st.text(), st.text())
def test_a_group_is_digested_alike_wherever_it_points(a, b):
    first, second = (render_group(KEY, Group(root=root, names=GROUP.names)) for root in (a, b))
    assert placeholder(first, KEY) == placeholder(second, KEY)
    assert reroot(first, KEY, b) == second


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b'{"child_paths": {}}',
        b'{"child_paths": [1]}',
        b'{"child_paths": {"add.cubin": 1}}',
        b"[" * 100_000,
        b"\xff",
        render_group(KEY, GROUP).replace(b"/add.cubin", b"/../../evil.cubin"),
        render_group(KEY, GROUP).replace(b"/somewhere", b"/elsewhere", 1),
        render_group("A" * 52, GROUP),
        render_group(KEY, GROUP) + b" ",
    ],
    ids=lambda data: repr(data[:40]),
)
def test_anything_else_is_no_group(data):
    assert parse_group(data, KEY) is None
    assert placeholder(data, KEY) is None


def test_only_groups_of_entries_are_relocated():
    assert is_group(f"io.triton.cache/{KEY}/__grp__add.json")
    assert not is_group(f"io.triton.cache/{KEY}/add.json")
    assert not is_group("prewarm/__grp__add.json")
    assert not is_group(f"prewarm/{KEY}/__grp__add.json")


def test_metadata_names_no_directory_of_the_machine_it_was_made_on():
    here = {"extern_libs": [["libdevice", "/here/lib/libdevice.10.bc"]], "name": "add"}
    there = {"name": "add", "extern_libs": [["libdevice", "/over/there/libdevice.10.bc"]]}
    assert render_metadata(here) == render_metadata(there)
    assert json.loads(render_metadata(here)) == {
        "extern_libs": [["libdevice", "libdevice.10.bc"]],
        "name": "add",
    }


def test_a_key_is_the_hash_in_triton_s_spelling():
    assert key_of_hash((b"k" * 32).hex()) == KEY
    assert key_of_hash("none") is None
