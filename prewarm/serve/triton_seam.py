"""Every private name of Triton that prewarm touches in the serving process, for Triton 3.6."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from triton.runtime.autotuner import Autotuner, Config
from triton.runtime.jit import JITFunction

from prewarm.core.errors import InputError, UnsupportedError
from prewarm.core.manifest import Candidate

Picked = tuple[Any, Mapping[str, Any]]
"""A config of Triton's, and the keywords that it adds to a launch."""
Pick = Callable[[tuple[Any, ...], dict[str, Any]], Picked | None]
"""From the arguments of a launch to its config; None leaves the launch to Triton."""


def autotuner_named(name: str) -> Any:
    """Return the autotuner around the kernel that `module:function` names, imported.

    Raises InputError when there is no such function, UnsupportedError when nothing tunes it, or
    when its launches do more than take the best config.
    """
    module, _, path = name.partition(":")
    try:
        found: Any = functools.reduce(getattr, path.split("."), importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise InputError(f"cannot import the kernel {name}: {error}") from error
    while not isinstance(found, Autotuner):
        found = getattr(found, "fn", None)
        if found is None:
            raise UnsupportedError(f"{name} has no autotuner")
    if reason := _unusual(found):
        raise UnsupportedError(f"{name}: {reason}")
    return found


def _unusual(tuner: Any) -> str | None:
    if Autotuner.run.__module__ != Autotuner.__module__ or "run" in vars(tuner):
        return "something else replaces its autotuner's run"
    if tuner.user_defined_pre_hook or tuner.user_defined_post_hook:
        return "its autotuner has a hook"
    if any(config.pre_hook for config in tuner.configs):
        return "a candidate has a hook"
    return None


def names_of_arguments(tuner: Any) -> tuple[str, ...]:
    """Return the names of the kernel's parameters, in its order."""
    return tuple(tuner.arg_names)


def names_of_key(tuner: Any) -> tuple[str, ...]:
    """Return the names whose values are the tuning key."""
    return tuple(tuner.keys)


def names_of_tensors(tuner: Any) -> tuple[str, ...]:
    """Return the names of the parameters that can be tensors: their dtypes enter the key."""
    function = tuner.fn
    while not isinstance(function, JITFunction):
        function = function.fn
    return tuple(each.name for each in function.params if not each.is_constexpr)


def tuning_key_of(tuner: Any, args: tuple[Any, ...], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tuning key that Triton makes of a launch, as a manifest names its parts."""
    given = {**dict(zip(tuner.arg_names, args, strict=False)), **keywords}
    given = {name: value for name, value in given.items() if name in tuner.arg_names}
    dtypes = {f"dtype of {n}": str(v.dtype) for n, v in given.items() if hasattr(v, "dtype")}
    return {**{name: given[name] for name in tuner.keys if name in given}, **dtypes}


def picked(tuner: Any, candidate: Candidate) -> Picked:
    """Return `candidate` as Triton's config, the tuner's own one where it lists it.

    Raises UnsupportedError for a compile-time value that is a dtype or a function.
    """
    if any(isinstance(value, dict) for value in candidate.constexprs.values()):
        raise UnsupportedError(f"{candidate.constexprs} holds more than plain values")
    config = Config(
        dict(candidate.constexprs),
        num_warps=candidate.num_warps,
        num_stages=candidate.num_stages,
        num_ctas=candidate.num_ctas,
        maxnreg=candidate.maxnreg,
    )
    own = next((each for each in tuner.configs if each == config), config)
    return own, own.all_kwargs()


def replace_run(tuner: Any, pick: Pick) -> None:
    """Let launches of `tuner` take the config that `pick` says, as they take a cached one."""
    names = tuner.arg_names

    def run(*args: Any, **keywords: Any) -> Any:
        found = pick(args, keywords)
        if found is None:
            return Autotuner.run(tuner, *args, **keywords)
        tuner.nargs = dict(zip(names, args, strict=False))
        tuner.best_config, chosen = found
        result = tuner.fn.run(*args, **keywords, **chosen)
        tuner.nargs = None
        return result

    tuner.run = run


def restore_run(tuner: Any) -> None:
    """Undo `replace_run`."""
    del tuner.run
