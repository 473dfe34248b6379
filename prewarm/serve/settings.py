"""What the environment asks of the plugin."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeVar

from prewarm.core.cache import CACHE_MANIFEST, ENTRIES
from prewarm.core.record import Record

OnMiss = Literal["warn", "error", "off"]

SWITCH = "PREWARM"
CACHE = "PREWARM_CACHE"
OVERLAY = "PREWARM_OVERLAY"
ON_MISS = "PREWARM_ON_MISS"
RECORD = "PREWARM_RECORD"
TRITON_CACHE = "TRITON_CACHE_DIR"

_SWITCHED = {"0": False, "1": True}
_ON_MISS: Mapping[str, OnMiss] = {"warn": "warn", "error": "error", "off": "off"}
_LINK = "triton"
"""What `prewarm install --into DIR` makes in DIR for TRITON_CACHE_DIR to name."""

Value = TypeVar("Value")
Default = TypeVar("Default")


class Settings(Record, kw_only=True):
    """What the plugin does in this process and in those that it starts."""

    entries: Path | None = None
    """The entries of the installed cache; None to count only."""
    overlay: Path | None = None
    """Where what the cache lacks is kept; None leaves that to the overlay."""
    on_miss: OnMiss = "warn"
    record: Path | None = None
    """The file that takes down what this process asks Triton for."""
    problems: tuple[str, ...] = ()
    """What was wrong with the environment, a line each."""

    def exported(self) -> dict[str, str]:
        """Return the variables by which processes started from here find the same cache.

        vLLM may give them another TRITON_CACHE_DIR.
        """
        return {} if self.entries is None else {CACHE: str(self.entries)}


def read_settings(environment: Mapping[str, str]) -> Settings | None:
    """Return what `environment` asks for, None where it asks for nothing.

    A variable that makes no sense is a problem of the settings, and its default stands.
    """
    given = {name: value for name, value in environment.items() if value}
    problems: list[str] = []
    switch = _chosen(given, SWITCH, _SWITCHED, None, problems)
    if switch is False:
        return None
    entries = _entries(given, problems)
    if not (switch or entries or CACHE in given or RECORD in given):
        return None
    return Settings(
        entries=entries,
        overlay=_absolute(given[OVERLAY]) if OVERLAY in given else None,
        on_miss=_chosen(given, ON_MISS, _ON_MISS, "warn", problems),
        record=_absolute(given[RECORD]) if RECORD in given else None,
        problems=tuple(problems),
    )


def _chosen(
    given: Mapping[str, str],
    name: str,
    choices: Mapping[str, Value],
    default: Default,
    problems: list[str],
) -> Value | Default:
    value = given.get(name)
    if value is None or value in choices:
        return default if value is None else choices[value]
    problems.append(f"{name}={value} is none of {', '.join(choices)}: it is ignored")
    return default


def _entries(given: Mapping[str, str], problems: list[str]) -> Path | None:
    """Return the entries that PREWARM_CACHE leads to, else those of TRITON_CACHE_DIR."""
    if CACHE not in given:
        found = _absolute(given[TRITON_CACHE]) if TRITON_CACHE in given else None
        return found if found and _is_installed(found) else None
    directory = _absolute(given[CACHE])
    for found in (directory / _LINK, directory / ENTRIES, directory):
        if _is_installed(found):
            return found
    problems.append(
        f"{CACHE}={directory} holds no installed cache:"
        f" prewarm install SOURCE --into {directory}; launches are only counted"
    )
    return None


def _is_installed(entries: Path) -> bool:
    try:
        tree = os.path.dirname(os.path.realpath(entries, strict=True))
    except OSError:
        return False
    return os.path.isfile(f"{tree}/{CACHE_MANIFEST}")


def _absolute(path: str) -> Path:
    return Path(os.path.abspath(path))
