"""The environment in which a serving process finds an installed cache."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
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
    prepended: bool = False
    """Whether what the variable holds already stays, behind the value."""

    def within(self, environment: Mapping[str, str]) -> str:
        """Return what the variable must hold in `environment`."""
        there = environment.get(self.name) if self.prepended else None
        if not there or self.value in there.split(":"):
            return there or self.value
        return f"{self.value}:{there}"


def environment(
    directory: str, toolchain: Toolchain, python: str | None = None
) -> tuple[Variable, ...]:
    """Return the variables with which a process finds the cache that lies in `directory`.

    `python` is the directory by which FlashInfer finds libraries, None where there are none.
    """
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
    if python is not None:
        found.append(
            Variable(
                name="PYTHONPATH",
                value=python,
                why="by what is in it FlashInfer finds its libraries",
                prepended=True,
            )
        )
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
            return f'ENV {name}="{value}{_rest(variable)}"\n'
        case "shell":
            rest = f'"{_rest(variable)}"' if variable.prepended else ""
            return f"export {name}={shlex.quote(value)}{rest}\n"
        case "kubernetes":
            # Kubernetes expands $(NAME) in values, and takes $$ for a dollar sign.
            quoted = json.dumps(value.replace("$(", "$$("), ensure_ascii=False)
            # It does not expand what the image sets.
            note = f"# and what {name} is in the image, behind a colon\n"
            return f"{note if variable.prepended else ''}- name: {name}\n  value: {quoted}\n"


def _rest(variable: Variable) -> str:
    """Return what a shell and a Dockerfile expand to the value that was there before."""
    name = variable.name
    return f"${{{name}:+:${name}}}" if variable.prepended else ""
