"""Tunings as a picture: every config against the sizes, and which of them were chosen.

Only this module imports matplotlib, and only `verbs` imports this module.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prewarm.core.files import write_atomic
from prewarm.core.tunings import KernelTunings, KeyTuning, Run, Tunings
from prewarm.render import config_text, short, size_text

_COLUMNS = 2
_WIDTH, _HEIGHT = 7.0, 4.6
"""Of one key's axes, in inches."""
_LOWEST, _HIGHEST = 0.98, 2.0
"""What takes twice as long as the best is out of the picture."""
_LISTED, _BEYOND = "0.55", "0.85"
_THIN: dict[str, Any] = {"linewidth": 0.6, "markersize": 2.0}
_WINNER, _REFERENCE, _BEST = "#0072b2", "#d55e00", "#009e73"
"""Told apart by people who see few colours."""

Line = tuple[list[float], list[float]]


def write_plot(path: Path, tunings: Tunings) -> None:
    """Write a picture of `tunings` at `path`, in the format that its name ends with.

    The same tunings, with the same matplotlib, give the same bytes.
    """
    kind = path.suffix.lower().removeprefix(".")
    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    picture = io.BytesIO()
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams["svg.hashsalt"] = "prewarm"
        _figure(tunings).savefig(picture, format=kind, dpi=120, metadata=metadata)
    write_atomic(path, picture.getvalue())


def _figure(tunings: Tunings) -> Figure:
    keys = [(kernel, key) for kernel in tunings.kernels for key in kernel.keys]
    rows = max(1, math.ceil(len(keys) / _COLUMNS))
    figure = Figure(figsize=(_WIDTH * _COLUMNS, _HEIGHT * rows), layout="constrained")
    figure.suptitle(f"{tunings.gpu}, Triton {tunings.triton}")
    for place, (kernel, key) in enumerate(keys, 1):
        axes = figure.add_subplot(rows, _COLUMNS, place)
        _draw_key(axes, key, tunings.runs[key.run])
        _write_words(axes, kernel, key, tunings.runs[key.run])
    return figure


def _draw_key(axes: Axes, key: KeyTuning, run: Run) -> None:
    """Draw what each config takes at each size, over the best there."""
    best = [_least(key, at) for at in range(len(run.sizes))]
    for each in sorted(key.measured, key=lambda measured: measured.listed):
        if each.times and each.failed is None:
            colour = _LISTED if each.listed else _BEYOND
            axes.plot(*_line(each.times, best, run), ".-", color=colour, **_THIN)
    axes.plot(*_size_winners(key, run, best), "*", color=_BEST, label="best there", markersize=13)
    for config, colour, style, what in (
        (key.reference, _REFERENCE, "s--", "vLLM's own choice"),
        (key.winner, _WINNER, "o-", "winner"),
    ):
        line = _line(key.times(config), best, run)
        label = f"{what}: {config_text(config)}"
        axes.plot(*line, style, color=colour, label=label, markersize=5)


def _write_words(axes: Axes, kernel: KernelTunings, key: KeyTuning, run: Run) -> None:
    names = ", ".join(f"{name}={value}" for name, value in key.key.items() if " " not in name)
    axes.set_title(f"{short(kernel.name)}\n{names}", fontsize=9)
    axes.set_xticks(range(len(run.sizes)), [size_text(size) for size in run.sizes], fontsize=8)
    axes.set_xlabel("tokens × sequences", fontsize=8)
    axes.set_ylabel("time over the best", fontsize=8)
    axes.set_ylim(_LOWEST, _HIGHEST)
    axes.grid(axis="y", linewidth=0.3)
    axes.plot([], [], ".-", color=_LISTED, label="other listed candidates", **_THIN)
    axes.plot([], [], ".-", color=_BEYOND, label="configs beyond the list", **_THIN)
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)


def _least(key: KeyTuning, at: int) -> float:
    usable = [each.times[at] for each in key.measured if each.times and each.failed is None]
    return min((time for time in usable if time is not None), default=math.nan)


def _line(times: Sequence[float | None], best: Sequence[float], run: Run) -> Line:
    """Return places and ratios, with a gap where the number of sequences changes."""
    places: list[float] = []
    ratios: list[float] = []
    for at, (time, least) in enumerate(zip(times, best, strict=True)):
        if at and run.sizes[at].sequences != run.sizes[at - 1].sequences:
            places.append(at - 0.5)
            ratios.append(math.nan)
        places.append(at)
        ratios.append((time or math.nan) / least)
    return places, ratios


def _size_winners(key: KeyTuning, run: Run, best: Sequence[float]) -> Line:
    places = {(size.tokens, size.sequences): at for at, size in enumerate(run.sizes)}
    found = {places[each.tokens, each.sequences]: each.config for each in key.sizes}
    ratios = [(key.times(config)[at] or math.nan) / best[at] for at, config in found.items()]
    return list(found), ratios
