"""MODEL of the serve arguments -> the directory that holds its config.json.

A local directory is taken as it is. Anything else is a hub id: its small JSON files, never its
weights, are fetched through huggingface_hub, which keeps and honours its own cache, so that a
plan works offline after the first time (`HF_HUB_OFFLINE=1`).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import tqdm

from prewarm.core.digest import digest_of
from prewarm.core.errors import InputError, PrewarmError, TryAgainError
from prewarm.core.files import host_error
from prewarm.core.record import Record

CONFIG = "config.json"

_TransportError = cast("type[Exception]", HfHubHTTPError.__mro__[1])
"""Base of the errors of the HTTP library that this release of huggingface_hub uses."""

_WANTED = (
    CONFIG,
    "chat_template.json",
    "generation_config.json",
    "hf_quant_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "quantize_config.json",
    "video_preprocessor_config.json",
)
"""What vLLM reads of a model before its weights and its tokenizer."""

_LOG_IN = "accept its terms on its page, then log in on this machine: hf auth login"
_CHECK_NAME = "check the spelling; for a private model log in: hf auth login"
_WITHOUT_NETWORK = (
    "try again; or work from what was fetched before with HF_HUB_OFFLINE=1;"
    " or give a local directory that holds config.json"
)


class ModelSource(Record, kw_only=True):
    """A model whose config.json is at hand."""

    name: str
    """Hub id, or the name of the local directory."""
    directory: str
    """Where config.json lies."""
    revision: str | None
    """Commit of the hub repository; None for a local directory."""
    config: str
    """Digest of config.json."""


def resolve_model(name: str, revision: str | None = None) -> ModelSource:
    """Return the model called `name`: a local directory, or a hub id at `revision`.

    `revision` is a branch, tag or commit of the hub and means nothing to a local directory,
    as with `vllm serve`. Raises InputError when the model, the revision or its config.json is
    not to be had or not readable, TryAgainError for a passing fault of the hub or the network,
    HostError when the hub's cache cannot be written.
    """
    local = Path(name).expanduser()
    if local.is_dir():
        directory, commit, shown = local.resolve(), None, local.resolve().name
    elif _is_path(name):
        raise InputError(
            f"there is no model directory {name}",
            "give a directory that holds config.json, or a hub id such as Qwen/Qwen3.5-9B",
        )
    else:
        directory = _fetch(name, revision)
        commit, shown = directory.name, name
    return ModelSource(
        name=shown,
        directory=str(directory),
        revision=commit,
        config=_config_digest(directory / CONFIG, shown),
    )


def _is_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1


class _NoBar(tqdm):
    """A few kilobytes need no progress bar."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]


def _fetch(name: str, revision: str | None) -> Path:
    with _hub_errors(name, revision):
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=list(_WANTED), tqdm_class=_NoBar
            )
        )


@contextlib.contextmanager
def _hub_errors(name: str, revision: str | None) -> Iterator[None]:
    """Turn what huggingface_hub raises inside the block into the errors of `resolve_model`."""
    try:
        yield
    except HFValidationError as error:
        raise InputError(
            f"{name!r} is neither a directory nor a hub id: {error}",
            "give a directory that holds config.json, or a hub id such as Qwen/Qwen3.5-9B",
        ) from error
    except HfHubHTTPError as error:
        raise _refusal(error, name, revision) from error
    except LocalEntryNotFoundError as error:
        raise _not_cached(error, name, revision) from error
    except _TransportError as error:
        raise _unreachable(error, name) from error
    except OSError as error:
        if error.errno is None:  # huggingface_hub raises plain OSErrors for odd answers
            raise _unreachable(error, name) from error
        raise host_error(error, f"write the hub's cache for {name}") from error


def _refusal(error: HfHubHTTPError, name: str, revision: str | None) -> PrewarmError:
    """Return what an answer of the hub means."""
    found: tuple[str, str | None]
    match error:
        case GatedRepoError():
            found = f"{name} is gated, and this machine may not read it", _LOG_IN
        case RevisionNotFoundError():
            found = (
                f"{name} has no revision {revision}",
                "give a branch, tag or commit of that repository",
            )
        case RepositoryNotFoundError():
            found = f"the hub has no model {name}, or it is private", _CHECK_NAME
        case DisabledRepoError():
            found = f"the hub has disabled {name}", None
        case _:
            return _refusal_by_status(error.response.status_code, name)
    return InputError(*found)


def _refusal_by_status(status: int, name: str) -> PrewarmError:
    if status in (401, 403):
        return InputError(f"the hub does not let this machine read {name} ({status})", _LOG_IN)
    if status in (408, 429) or status >= 500:
        return TryAgainError(f"the hub answered {status} for {name}", _WITHOUT_NETWORK)
    return InputError(f"the hub refused {name} ({status})")


def _not_cached(error: LocalEntryNotFoundError, name: str, revision: str | None) -> PrewarmError:
    """Return why nothing was fetched, now that nothing was found in the cache either."""
    cause = error.__cause__
    if isinstance(cause, HfHubHTTPError):
        return _refusal(cause, name, revision)
    if cause is None or isinstance(cause, OfflineModeIsEnabled):
        at = f" at revision {revision}" if revision else ""
        return InputError(
            f"{name}{at} is not in the hub's cache, and HF_HUB_OFFLINE is set",
            "unset HF_HUB_OFFLINE, or give a local directory that holds config.json",
        )
    return _unreachable(cause, name)


def _unreachable(error: BaseException, name: str) -> TryAgainError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return TryAgainError(f"cannot reach the hub for {name}: {reason}", _WITHOUT_NETWORK)


def _config_digest(path: Path, name: str) -> str:
    """Return the digest of the config.json at `path`; raises InputError unless it is an object."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(
            f"{name} holds no {CONFIG}",
            "give the model as vllm serve takes it; a GGUF file or an adapter alone has none",
        ) from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    try:
        config = json.loads(data)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise InputError(f"{path} is not valid JSON: {error.msg} at {where}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not valid JSON: it is not UTF-8 text") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} is not a model config: it holds no JSON object")
    return digest_of(data)
