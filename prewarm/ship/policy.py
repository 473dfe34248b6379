"""What an install that fails means for the process that would have served from it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from prewarm.core.errors import (
    HostError,
    IntegrityError,
    MismatchError,
    PrewarmError,
    RegistryError,
    TryAgainError,
)
from prewarm.core.record import Record

Answer = Literal["fail", "warn"]
Cause = Literal["does not fit", "unsound", "unavailable"]

TERMINATION_LOG = Path("/dev/termination-log")
"""Where Kubernetes looks for a container's last words, unless told otherwise."""
_MOST_WORDS = 4096
"""Bytes of them that Kubernetes keeps."""


class Policy(Record, kw_only=True):
    """For each cause: `fail`, or `warn` and let serving start cold."""

    on_mismatch: Answer = "fail"
    on_unsound: Answer = "fail"
    on_unavailable: Answer = "fail"

    def starts_cold(self, cause: Cause | None) -> bool:
        """Return whether an install that fails for `cause` is a warning and no error."""
        match cause:
            case "does not fit":
                return self.on_mismatch == "warn"
            case "unsound":
                return self.on_unsound == "warn"
            case "unavailable":
                return self.on_unavailable == "warn"
            case None:
                return False


COMMAND_LINE = Policy()
INIT_CONTAINER = Policy(on_mismatch="warn", on_unsound="warn", on_unavailable="warn")
"""A cache is an optimisation: no pod waits for one."""


def policy_of(
    *,
    init_container: bool,
    on_mismatch: Answer | None,
    on_unsound: Answer | None,
    on_unavailable: Answer | None,
) -> Policy:
    """Return what was asked for, and the plain answer of that place to what was not."""
    plain = INIT_CONTAINER if init_container else COMMAND_LINE
    return Policy(
        on_mismatch=on_mismatch or plain.on_mismatch,
        on_unsound=on_unsound or plain.on_unsound,
        on_unavailable=on_unavailable or plain.on_unavailable,
    )


def cause_of(error: PrewarmError) -> Cause | None:
    """Return why an install ended with `error`; None where what was asked for is wrong."""
    match error:
        case MismatchError():
            return "does not fit"
        case IntegrityError():
            return "unsound"
        case HostError() | RegistryError() | TryAgainError():
            return "unavailable"
        case _:
            return None


def leave_words(log: Path, words: str) -> None:
    """Write `words`, or what Kubernetes keeps of them, into `log`.

    Where that cannot be written nothing happens: the words are on stderr, too.
    """
    kept = words.encode("utf-8", "replace")[:_MOST_WORDS].decode("utf-8", "ignore")
    try:
        with log.open("w", encoding="utf-8", newline="") as file:
            file.write(kept)
    except OSError:
        return
