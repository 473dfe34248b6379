"""A model cut to its first layers, which are enough to reach every kernel of it."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prewarm.core.errors import InputError

_CONFIG = "config.json"


@contextlib.contextmanager
def cut(model: Path, layers: int | None) -> Iterator[Path]:
    """Make a copy of the directory `model` whose config has so many layers; None leaves it.

    Raises what `cut_config` raises.
    """
    if layers is None:
        yield model
        return
    with tempfile.TemporaryDirectory(prefix="prewarm-model-") as scratch:
        copy = Path(scratch, model.name)
        shutil.copytree(model, copy, ignore=_not_json)
        path = copy / _CONFIG
        path.write_text(json.dumps(cut_config(json.loads(path.read_bytes()), layers)))
        yield copy


def _not_json(_: str, names: list[str]) -> list[str]:
    return [name for name in names if not name.endswith(".json")]


def cut_config(config: dict[str, Any], layers: int) -> dict[str, Any]:
    """Return the model's `config` with its first `layers` layers.

    Raises InputError where that leaves no layer of GDN or none of full attention.
    """
    text = config.get("text_config", config)
    kinds = text.get("layer_types")
    if kinds is not None and {*kinds[:layers]} != {*kinds}:
        raise InputError(
            f"the first {layers} layers of this model are all of one kind",
            f"--layers {next(n for n in range(len(kinds)) if {*kinds[:n]} == {*kinds})} or more",
        )
    cut = {**text, "num_hidden_layers": min(layers, text["num_hidden_layers"])}
    if kinds is not None:
        cut["layer_types"] = kinds[:layers]
    return {**config, "text_config": cut} if "text_config" in config else cut
