"""The steps of `install` where a serving process waits for it: cold starts and last words."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prewarm.core.errors import PrewarmError
from prewarm.output import Output
from prewarm.ship.install import serve_nothing
from prewarm.ship.policy import TERMINATION_LOG, cause_of, leave_words, policy_of
from prewarm.ship.receipt import LINK

POLICY = ("init_container", "on_mismatch", "on_unsound", "on_unavailable")
"""The options that make a policy."""


def under_policy(
    out: Output, install: Callable[..., int], into: Path, asked: Mapping[str, Any]
) -> int:
    """Run `install` with what is `asked`; return its exit code, or 0 for a cold start.

    Raises the PrewarmError that ended it where the policy says so; its last words are left all
    the same.
    """
    rest = {name: value for name, value in asked.items() if name not in POLICY}
    log: Path | None = rest.pop("termination_log")
    if asked["init_container"] and log is None and TERMINATION_LOG.exists():
        log = TERMINATION_LOG
    policy = policy_of(**{name: asked[name] for name in POLICY})
    try:
        return install(out, into=into, on_mismatch="fail", **rest)
    except PrewarmError as error:
        cold = policy.starts_cold(cause_of(error))
        words = f"starting cold, nothing installed: {error}" if cold else f"not installed: {error}"
        if log is not None:
            leave_words(log, f"prewarm: {words}\n")
        if not cold:
            raise
        return _cold_start(out, into, error, words, is_prepared=asked["init_container"])


def _cold_start(
    out: Output, into: Path, error: PrewarmError, words: str, *, is_prepared: bool
) -> int:
    """Say why serving starts cold, and from which directory; return 0."""
    out.warn(words, error.hint)
    if is_prepared:
        try:
            serve_nothing(into)
        except PrewarmError as problem:
            out.warn(str(problem), problem.hint)
    directory = f"{os.path.abspath(into)}/{LINK}"
    state = {"state": cause_of(error), "directory": directory, "problem": str(error)}
    out.product(directory, {"installed": state, "environment": ()})
    return 0
