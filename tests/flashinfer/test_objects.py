"""Objects are kept under the digest of what they are made of, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from prewarm.core.errors import CompileError
from prewarm.flashinfer.objects import make_object, object_file


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "part.cpp"
    file.write_text("int part() { return 1; }\n", "utf-8")
    return file


def test_an_object_is_another_one_when_source_command_or_version_changes(source: Path) -> None:
    def place(*command: str, version: str = "1") -> Path:
        return object_file(source.parent, source, command, (version,))

    before = place("c++", "-O1")
    others = {place("c++", "-O2"), place("c++", "-O1", version="2")}
    source.write_text("int part() { return 2; }\n", "utf-8")

    assert before not in others | {place("c++", "-O1")}
    assert len(others) == 2


def test_what_does_not_compile_says_why_and_leaves_nothing(source: Path) -> None:
    source.write_text("int part() { return nothing; }\n", "utf-8")

    with pytest.raises(CompileError, match=r"part: (.|\n)*nothing"):
        make_object(source.parent / "kept" / "part.o", source, ("c++",))

    assert not [*(source.parent / "kept").iterdir()]


def test_what_compiles_is_there_and_no_draft_beside_it(source: Path) -> None:
    made = source.parent / "kept" / "part.o"

    make_object(made, source, ("c++",))

    assert [*made.parent.iterdir()] == [made]
