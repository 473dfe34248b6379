"""Findings, and the page that explains each."""

import pickle
import re

import pytest

from prewarm.core.finding import ALTERED, CODES, MISSING, Finding, UnsoundError, in_order


def finding(code=ALTERED, subject="a"):
    return Finding(code=code, subject=subject, expected="x", found="y", fix="do z")


def test_each_is_told_in_one_line():
    assert str(finding()) == "P103 altered file: a: expected x, found y"


def test_an_error_carries_its_finding_to_another_process():
    error = pickle.loads(pickle.dumps(UnsoundError(finding())))
    assert (error.finding, error.exit_code) == (finding(), 7)
    assert (error.message, error.hint) == (str(finding()), "do z")


def test_they_come_in_one_order_and_once():
    a, b, c = finding(MISSING, "b"), finding(subject="a"), finding(subject="b")
    assert in_order([c, b, a, b]) == in_order([a, b, c]) == (a, b, c)


@pytest.mark.parametrize("code", CODES)
def test_each_code_has_a_section_with_cause_and_fix(code, root):
    text = (root / "docs" / "findings.md").read_text()
    section = re.search(rf"^## {code}: (.+?)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section is not None
    assert section[1] == CODES[code]
    assert "**Cause.**" in section[2]
    assert "**Fix.**" in section[2]
