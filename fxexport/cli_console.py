"""What the command line says while it works, and when work fails: on stderr; stdout is for results."""

from __future__ import annotations

import contextlib
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import click
from rich.console import Console
from rich.markup import escape
from rich.status import Status

from fxexport.errors import ExportError, InputError

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
_OWN_ROOT = str(Path(__file__).parent)
_FRAMES = 4  # of the user's code, shown with an exception of theirs


class Progress:
    """Shows the stage and detail of the work: a spinner on a terminal, else a line for each stage.

    ``stage`` is the latest one, also where nothing is shown.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.stage = ""
        self._quiet = quiet
        self._since = 0.0
        self._console = Console(stderr=True, highlight=False)
        self._status = Status("", console=self._console) if self._console.is_terminal and not quiet else None

    def __enter__(self) -> Self:
        if self._status:
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status:
            self._status.stop()

    def __call__(self, stage: str, detail: str) -> None:
        """Called with every step of the work."""
        changed, before, since = stage != self.stage, self.stage, self._since
        if changed:
            self.stage, self._since = stage, time.perf_counter()
        if self._quiet:
            return
        if self._status is None:
            if changed:
                click.echo(f"{stage}: {detail}", err=True)
            return
        if changed and before:
            self._console.print(f"[dim]{before} {self._since - since:.1f} s[/]")
        self._status.update(f"{stage}: {escape(detail)}")


@contextlib.contextmanager
def undisturbed(*, quiet: bool = False) -> Iterator[None]:
    """Inside, stdout is stderr (models and factories may print), and a warning is one line, said once."""
    said: set[str] = set()

    def say(message: Warning | str, *_: object, **__: object) -> None:
        text = str(message).strip()
        if not quiet and text not in said:
            said.add(text)
            print(f"warning: {text}", file=sys.stderr)  # sys.stderr of this moment: the spinner's, if it turns

    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.showwarning = say
        yield


# ---------------------------------------------------------------- when it fails


def report_failure(error: Exception, *, with_traceback: bool) -> int:
    """Says what went wrong in words for the person who called the command; returns the exit status.

    Errors of ours are their message. Anything else comes from the model or factory, and is shown with the
    lines of the user's code that led to it.
    """
    if with_traceback:
        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    if isinstance(error, ExportError):
        _say_error(str(error))
        return BAD_INPUT if isinstance(error, InputError) else FAILED
    notes = getattr(error, "__notes__", [])
    message = "".join(traceback.format_exception_only(error)).strip().removesuffix("\n".join(notes)).strip()
    _say_error(message)
    for note in notes:
        click.echo(note, err=True)
    frames = _user_frames(error)
    if frames:
        click.echo("".join(traceback.format_list(frames[-_FRAMES:])), err=True, nl=False)
    if not with_traceback:
        click.echo("(--traceback shows everything)", err=True)
    return FAILED


def _say_error(message: str) -> None:
    click.echo(f"{click.style('error:', fg='red', bold=True)} {message}", err=True)


def _user_frames(error: Exception) -> list[traceback.FrameSummary]:
    """The frames outside fxexport, installed packages and Python itself, outermost first."""
    frames = traceback.extract_tb(error.__traceback__)
    return [frame for frame in frames if not _is_library(frame.filename)]


def _is_library(filename: str) -> bool:
    return (
        filename.startswith((_OWN_ROOT, "<", sys.base_prefix, sys.prefix + "/lib"))
        or "site-packages" in Path(filename).parts
    )
