"""Every way prewarm can refuse, each with its own exit code.

::

    PrewarmError                  70  (never raised itself)
    ├── InputError                 2  what was asked or given is wrong
    ├── UnsupportedError           3  this model, vLLM or Triton is not one prewarm can trace
    ├── HostError                  4  this machine lacks something: GPU, compiler, space, permission
    ├── CompileError               5  some launches did not compile
    ├── TuneError                  6  some kernels could not be tuned
    ├── IntegrityError             7  bytes are not what their digest says, or leave their root
    ├── MismatchError              8  a sound cache, built for another host
    ├── RegistryError              9  a registry refused for good
    └── TryAgainError             75  a passing fault: the same command may succeed later

0 is done, 1 is findings (a result, not an error), 70 a bug in prewarm, 130 an interrupt.
"""

from __future__ import annotations

from typing import ClassVar


class PrewarmError(Exception):
    """What went wrong (`message`), and the command or edit that mends it (`hint`).

    Arguments are positional so that an error survives a process boundary.
    """

    exit_code: ClassVar[int] = 70

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class InputError(PrewarmError):
    """What was asked or given is wrong."""

    exit_code = 2


class UnsupportedError(PrewarmError):
    """This model, vLLM or Triton is not one that prewarm can trace."""

    exit_code = 3


class HostError(PrewarmError):
    """This machine lacks something: a GPU, a compiler, space, permission."""

    exit_code = 4


class CompileError(PrewarmError):
    """Some launches did not compile."""

    exit_code = 5


class TuneError(PrewarmError):
    """Some kernels could not be tuned."""

    exit_code = 6


class IntegrityError(PrewarmError):
    """Bytes are not what their digest says, or a path leaves its root."""

    exit_code = 7


class MismatchError(PrewarmError):
    """A sound cache, built for another host."""

    exit_code = 8


class RegistryError(PrewarmError):
    """A registry refused for good."""

    exit_code = 9


class TryAgainError(PrewarmError):
    """A passing fault: the same command may succeed later."""

    exit_code = 75
