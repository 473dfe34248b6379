"""The environment in which a serving process finds an installed cache."""

from __future__ import annotations

import json
import shlex
from typing import Literal

from prewarm.core.errors import InputError
from prewarm.core.record import Record
from prewarm.core.toolchain import Toolchain

Format = Literal["dockerfile", "shell", "kubernetes"]


class Variable(Record, kw_only=True):
    """A variable that the serving process needs, and why."""

    name: str
    value: str
    why: str


def environment(directory: str, toolchain: Toolchain) -> tuple[Variable, ...]:
    """Return the variables with which a process finds the cache that lies in `directory`."""
    found = [
        Variable(name="TRITON_CACHE_DIR", value=directory, why="where the entries are"),
        Variable(
            name="TRITON_CACHE_AUTOTUNING",
            value="1",
            why="Triton reads autotune records only when asked to",
        ),
    ]
    entered = dict(toolchain.key_environment)
    chosen_by = toolchain.ptxas.chosen_by
    if chosen_by in toolchain.environment:
        entered.setdefault(chosen_by, toolchain.environment[chosen_by])
    for name in sorted(entered.keys() - {each.name for each in found}):
        why = "names the ptxas in the keys" if name == chosen_by else "is part of the keys"
        found.append(Variable(name=name, value=entered[name], why=why))
    return tuple(found)


def render_environment(variables: tuple[Variable, ...], form: Format) -> str:
    """Return `variables` as lines of a Dockerfile, a shell script or a Kubernetes container.

    Raises InputError for a value of several lines, which a Dockerfile cannot hold.
    """
    return "".join(_line(variable, form) for variable in variables)


def _line(variable: Variable, form: Format) -> str:
    name, value = variable.name, variable.value
    if "\n" in value:
        raise InputError(f"the value of {name} has several lines")
    match form:
        case "dockerfile":
            for special in '\\"$':
                value = value.replace(special, f"\\{special}")
            return f'ENV {name}="{value}"\n'
        case "shell":
            return f"export {name}={shlex.quote(value)}\n"
        case "kubernetes":
            # Kubernetes expands $(NAME) in values, and takes $$ for a dollar sign.
            quoted = json.dumps(value.replace("$(", "$$("), ensure_ascii=False)
            return f"- name: {name}\n  value: {quoted}\n"
