"""What vLLM says where it refuses something, in one line and nothing around it."""

from __future__ import annotations

import re

_FRAME = re.compile(
    r"\d+ validation errors? for (?:\w+ (?=Value error, |Assertion failed, ))?"
    r"|(?:Value error|Assertion failed), "
    r"| \[type=.*?, input_type=\w+\]"
    r"| For further information visit \S+"
    r"| at 0x[0-9a-f]+"
)
"""What pydantic puts around the words of a check."""


def words_of(error: BaseException) -> str:
    """Return the reason of vLLM's `error`."""
    words = _in_one_line(str(error))
    if isinstance(error, KeyError | ZeroDivisionError):
        return f"{type(error).__name__}: {words}"
    return words


def words_of_parser(heard: str) -> str:
    """Return the reason in what vLLM's argument parser printed before it gave up."""
    before, found, reason = heard.rpartition(": error: ")
    if not found:
        return _in_one_line(heard) or "the arguments were refused"
    return f"{before.rpartition(chr(10))[2]}{found}{_in_one_line(reason)}"


def _in_one_line(text: str) -> str:
    return _FRAME.sub("", " ".join(text.split()))
