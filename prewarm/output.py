"""Two streams: stdout carries the product, stderr the story."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import TextIO

import click
import msgspec
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from prewarm.core.errors import PrewarmError

_NO_TERMINAL_WIDTH = 10_000
"""Where nobody's window is to be filled, tables are as wide as what they hold."""
_QUIET, _VERBOSE = -1, 1
_BUG = 70


class ReaderGoneError(Exception):
    """Whoever read stdout has left."""


class Output:
    """Where a verb's product and story go, and in which form."""

    def __init__(self, *, as_json: bool = False, debug: bool = False) -> None:
        """Write text for people, or JSON for programs; `debug` adds tracebacks to errors."""
        self.as_json = as_json
        self.debug = debug
        self.verbosity = 0

    def product(self, text: RenderableType, data: object) -> None:
        """Write what the verb made to stdout: `text`, or `data` with --json.

        Raises ReaderGoneError when nobody reads it.
        """
        if self.as_json:
            rendered = json.dumps(msgspec.to_builtins(data), ensure_ascii=False) + "\n"
        elif isinstance(text, str):
            rendered = text.removesuffix("\n") + "\n"
        else:
            console = _console(sys.stdout)
            with console.capture() as capture:
                console.print(text)
            rendered = capture.get()
            if not console.is_terminal:
                rendered = "\n".join(line.rstrip() for line in rendered.split("\n"))
        try:
            sys.stdout.write(rendered)
            sys.stdout.flush()
        except BrokenPipeError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise ReaderGoneError from error

    def say(self, text: str) -> None:
        """Tell a step of the story, unless -q."""
        if self.verbosity > _QUIET and (not self.as_json or self.verbosity >= _VERBOSE):
            self._tell(text)

    def detail(self, text: str) -> None:
        """Tell what only -v wants to know."""
        if self.verbosity >= _VERBOSE:
            self._tell(text)

    @contextlib.contextmanager
    def progress(self, label: str, total: int | None = None) -> Iterator[Callable[[str], None]]:
        """Yield what to call with the name of each finished part of `total`.

        A bar on a terminal; elsewhere a line for each tenth of a known total, for every 25th part
        of an unknown one, or for each part with -v.
        """
        console = _console(sys.stderr)
        if console.is_terminal and self.verbosity > _QUIET and not self.as_json:
            with _bar(console) as bar:
                task = bar.add_task(label, total=total)
                yield lambda part: bar.update(task, advance=1, description=f"{label}: {part}")
            return
        done = 0

        def advance(part: str) -> None:
            nonlocal done
            done += 1
            of = f"{done}/{total}" if total else str(done)
            self.detail(f"{label} {of}: {part}")
            due = done * 10 // total != (done - 1) * 10 // total if total else done % 25 == 0
            if self.verbosity == 0 and due:
                self.say(f"{label} {of}" if total else f"{label} {of}: {part}")

        yield advance

    def warn(self, message: str, hint: str | None) -> None:
        """Tell what went wrong and is no error; with -q and --json as well."""
        if self.as_json:
            plain = {"warning": message, "hint": hint}
            sys.stderr.write(json.dumps(plain, ensure_ascii=False) + "\n")
            return
        self._tell_of("[bold yellow]prewarm: warning:[/]", message, hint)

    def error(self, message: str, hint: str | None, exit_code: int) -> int:
        """Tell what went wrong and return `exit_code`."""
        if self.as_json:
            plain = {"error": message, "hint": hint, "exit_code": exit_code}
            sys.stderr.write(json.dumps(plain, ensure_ascii=False) + "\n")
            return exit_code
        self._tell_of("[bold red]prewarm: error:[/]", message, hint)
        return exit_code

    def failure(self, error: Exception) -> int:
        """Tell why a verb ended without its product, and return the exit code."""
        if self.debug and not isinstance(error, click.ClickException):
            traceback.print_exc(file=sys.stderr)
        match error:
            case PrewarmError():
                return self.error(error.message, error.hint, error.exit_code)
            case click.exceptions.NoArgsIsHelpError():
                sys.stderr.write(error.format_message() + "\n")
                return error.exit_code
            case click.UsageError():
                hint = None if error.ctx is None else f"{error.ctx.command_path} --help"
                return self.error(error.format_message(), hint, error.exit_code)
            case _:
                return self._bug(error)

    def _bug(self, error: Exception) -> int:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{os.path.basename(last.filename)}:{last.lineno}"
        hint = None if self.debug else "run the same command with --debug, and report what it says"
        said = " ".join(f"{type(error).__name__}: {error}".split())
        return self.error(f"a bug in prewarm: {said} ({where})", hint, _BUG)

    def _tell_of(self, kind: str, message: str, hint: str | None) -> None:
        console = _console(sys.stderr)
        console.print(f"{kind} ", end="")
        self._tell(message)
        if hint:
            console.print("  [bold]hint:[/] ", end="")
            self._tell(hint)

    def _tell(self, text: str) -> None:
        _console(sys.stderr).print(text, markup=False, highlight=False, soft_wrap=True)


def _console(stream: TextIO) -> Console:
    """Return a console on `stream`; it honours NO_COLOR and the width of a terminal."""
    width = None if stream.isatty() else _NO_TERMINAL_WIDTH
    return Console(file=stream, width=width, highlight=False)


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
