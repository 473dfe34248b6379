"""The tunings as YAML: measured, reviewed, the times of one config a line."""

from __future__ import annotations

from pathlib import Path

from prewarm.core.document import convert, load_yaml, read_text, write_text
from prewarm.core.errors import InputError
from prewarm.core.tunings import SCHEMA, KeyTuning, Run, Tunings, plain
from prewarm.core.yaml_lines import Layout, yaml_text

_HEADER = (
    "# Measured by `prewarm tune`: tune again instead of editing, for edits are refused.\n"
    "# Times are median microseconds at the sizes of the run, in its order.\n"
)
_LAYOUT = Layout(
    whole=frozenset({"key", "shared", "winner", "reference"}),
    whole_items=frozenset({"candidates", "clocks", "measured", "sizes"}),
)


def render_tunings(tunings: Tunings) -> str:
    """Return the YAML of `tunings`, the same bytes for equal tunings."""
    head = {"schema": tunings.schema, "digest": tunings.digest}
    return yaml_text(_HEADER, {**head, **plain(tunings)}, _LAYOUT)


def holds_tunings(text: str) -> bool:
    """Return whether `text` says of itself that it is tunings."""
    return f"schema: {SCHEMA}" in text.splitlines()


def parse_tunings(text: str, where: str) -> Tunings:
    """Return the tunings in the YAML `text`.

    Raises InputError naming line or field, and when the content is not what `digest` says: a
    winner that nobody measured would be shipped.
    """
    found = load_yaml(text, where)
    digest = found.pop("digest", None) if isinstance(found, dict) else None
    tunings = convert(found, Tunings, SCHEMA, where)
    if digest != tunings.digest:
        raise InputError(
            f"{where} was edited or cut short after it was measured: its digest says {digest},"
            f" its content is {tunings.digest}",
            f"prewarm tune MANIFEST -o {where}",
        )
    _check_references(tunings, where)
    for run in tunings.runs:
        if any(len(each.times) != len(run.sizes) for each in run.prefills):
            raise InputError(f"{where}: a prefill has not as many times as its run has sizes")
    return tunings


def _check_references(tunings: Tunings, where: str) -> None:
    for k, kernel in enumerate(tunings.kernels):
        for i, key in enumerate(kernel.keys):
            at = f"`$.kernels[{k}].keys[{i}]`"
            if not 0 <= key.run < len(tunings.runs):
                raise InputError(f"{where}: there is no run {key.run} - at {at}")
            _check_key(key, tunings.runs[key.run], f"{where}: {{}} - at {at}")


def _check_key(key: KeyTuning, run: Run, message: str) -> None:
    measured = [each.config for each in key.measured]
    chosen = (key.winner, key.reference, *(size.config for size in key.sizes))
    if any(len(each.times) not in (0, len(run.sizes)) for each in key.measured):
        raise InputError(message.format("not as many times as its run has sizes"))
    if not all(config in measured for config in chosen):
        raise InputError(message.format("it names a config that was not measured"))


def read_tunings(path: Path) -> Tunings:
    """Return the tunings in the file at `path`; raises InputError."""
    return parse_tunings(read_text(path, "the tunings"), str(path))


def write_tunings(path: Path, tunings: Tunings) -> None:
    """Write `tunings` at `path`, whole or not at all."""
    write_text(path, render_tunings(tunings))
