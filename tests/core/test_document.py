"""Documents that are made to break whoever reads them: one error, whatever they hold."""

from __future__ import annotations

import pytest

from prewarm.core.document import load_yaml, parse_json
from prewarm.core.errors import InputError
from prewarm.core.yaml_bounds import MOST_DEEP


def lines_of_laughs(levels: int) -> str:
    first = "a0: &a0 [" + "x, " * 10 + "]\n"
    return first + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, levels)
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        pytest.param("[" * 100_000, "more than 100 levels", id="deep"),
        pytest.param("{a: " * 5000, "more than 100 levels", id="deep mappings"),
        pytest.param(
            "".join(" " * n + "a:\n" for n in range(3000)),
            "100 levels, at line 100",
            id="deep block",
        ),
        pytest.param(lines_of_laughs(9), "more than 1000000 values, at line 6", id="laughs"),
        pytest.param("a: &a [*a]", r"\*a stands within what it names", id="within itself"),
        pytest.param("? {a: b}\n: c", "a list or a mapping is no key", id="mapping as a key"),
        pytest.param("? [a]\n: c", "a list or a mapping is no key", id="list as a key"),
        pytest.param("a: 2026-99-99", "month must be in 1..12", id="no such day"),
        pytest.param("a: 2001-12-14t21:59:43.10-99:00", "offset", id="no such zone"),
        pytest.param("a: " + "9" * 5000, "4300 digits", id="long number"),
        pytest.param("a: !!int ''", "not valid YAML", id="empty number"),
        pytest.param("a: !!bool maybe", "not valid YAML", id="no truth value"),
        pytest.param("a: !!timestamp now", "not valid YAML", id="no time"),
        pytest.param("!!map [a]", "not valid YAML", id="list tagged a mapping"),
        pytest.param("a: 1\na: 2", "'a' stands twice", id="key twice"),
    ],
)
def test_yaml_that_cannot_be_built_is_bad_input(text: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        load_yaml(text, "plan.yaml")


def test_anchors_and_depth_within_reason_are_read() -> None:
    assert load_yaml("a: &x [1, 2]\nb: *x\nc: &y z\nd: *y", "w")["b"] == [1, 2]  # type: ignore[index]
    deep = MOST_DEEP - 1
    assert load_yaml("[" * deep + "]" * deep, "w")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b'"\xff"', id="not UTF-8"),
        pytest.param(b'"\\ud800"', id="half a character"),
        pytest.param(b"9" * 5000, id="long number"),
        pytest.param(b"1e9999", id="large number"),
        pytest.param(b"", id="empty"),
    ],
)
def test_json_that_cannot_be_built_is_bad_input(data: bytes) -> None:
    with pytest.raises(InputError, match=r"receipt\.json is not valid JSON"):
        parse_json(data, dict, "s", "receipt.json")
