"""Turn exceptions of commands into a message on stderr and an exit code.

0    success
1    the run, or the requested operation, failed; or the reader of stdout has closed it
2    invalid arguments or input
130  interrupted (SIGINT); 143 ended by SIGTERM
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import NoReturn

from aflow._core.ending import Leave
from aflow._core.process import flush
from aflow._core.records import NamedTuple
from aflow._core.settings import Settings
from aflow._core.wording import plural
from aflow.errors import AflowError, InvalidInput, InvalidSetting

FAILED = 1
USAGE = 2
INTERRUPTED = 130  # as in shells: 128 and the number of SIGINT
_MOST_FRAMES = 8  # maximum number of frames of a traceback that are shown


def guarded(body: Callable[[], object]) -> int:
    """Return the exit code of `body()`: its result if that is an integer, otherwise 0.

    An exception becomes a message on stderr; with AFLOW_DEBUG=1 the traceback is printed first.

    Args:
        body: Runs the command.
    """
    try:
        code = body()
        flush(sys.stdout)
        return code if isinstance(code, int) else 0
    except KeyboardInterrupt:
        return _interrupted()
    except BrokenPipeError:
        forget_stdout()
        return FAILED
    except AflowError as error:
        _traceback_if_asked_for()
        show(error.headline, str(error))
        return USAGE if isinstance(error, InvalidInput) else FAILED
    except Exception as error:  # noqa: BLE001 -- users get a message instead of a traceback
        import click  # needed only for errors

        if isinstance(error, click.ClickException):
            vars(error)["message"] = printable(error.message)  # final only for type checkers
            error.show()
            return error.exit_code
        if isinstance(error, click.Abort):
            return _interrupted()
        lacks = _lacking(error)
        if lacks is None:
            _unexpected(error)
        else:
            _traceback_if_asked_for()
            show("The machine has no room left", lacks)
        return FAILED


def _interrupted() -> int:
    import click

    click.secho("Interrupted.", fg="red", err=True)
    return INTERRUPTED


_NO_PROCESS = (
    "No process or thread can be started: this machine or container allows no more. End other "
    "programs, or allow more (ulimit -u, pids.max)."
)
_NO_MEMORY = "There is no memory left. End other programs, or use a machine that has more."
_NO_FILES = "Too many files are open. Raise the limit (ulimit -n), or close some programs."
_NO_SPACE = "The disk is full, or the quota used up. Free some space."
_SHORTAGES = {
    errno.EAGAIN: _NO_PROCESS, errno.ENOMEM: _NO_MEMORY, errno.EMFILE: _NO_FILES,
    errno.ENFILE: _NO_FILES, errno.ENOSPC: _NO_SPACE, errno.EDQUOT: _NO_SPACE,
}  # fmt: skip


def _lacking(error: BaseException) -> str | None:
    """Return the shortage of the machine that has caused the error; None if there is another
    cause."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if isinstance(error, MemoryError):
        return _NO_MEMORY
    if isinstance(error, RuntimeError) and "start new thread" in str(error):  # by threading
        return _NO_PROCESS
    found = _SHORTAGES.get(error.errno or 0) if isinstance(error, OSError) else None
    return f"{found} ({error.filename})" if found and error.filename else found  # type: ignore[attr-defined]


def leave(code: int) -> NoReturn:
    """Exit the program with this code, by raising SystemExit, so that cleanup code runs.

    Args:
        code: The exit code of the program.
    """
    raise Leave(code)


# Control characters, which terminals interpret (escapes set titles and clipboards, and overwrite
# lines), and marks that change the direction of text.
_CONTROLS = "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]"


def printable(text: str, *, lines: bool = True) -> str:
    """Return a text of tags, messages or servers with control characters escaped (`\\x1b`), except
    tabs and, with `lines`, newlines.

    Args:
        text: An untrusted text.
        lines: Whether to keep newlines; otherwise they are escaped too.
    """
    if text.isprintable():  # most texts are, and need no regular expression to be compiled
        return text
    text = re.sub(_CONTROLS, lambda found: found[0].encode("unicode_escape").decode(), text)
    return text if lines else text.replace("\n", "\\n")


def show(headline: str, message: str) -> None:
    """Write an error to stderr in the layout of Metaflow.

    Args:
        headline: The kind of the error, such as `Invalid flow`.
        message: The message; each of its lines is indented.
    """
    import click

    lines = "\n".join(f"    {line}".rstrip() for line in printable(message).splitlines())
    color = _color()
    click.secho(f"    {headline}:", fg="red", bold=True, err=True, color=color)
    click.secho(lines, fg="red", err=True, color=color)


class TracebackFrame(NamedTuple):
    """A frame of a traceback: file, line, function and the line of code."""

    file: str
    line: int
    function: str
    code: str

    @property
    def is_users(self) -> bool:
        """Whether the frame is in the user's code, not in a library."""
        return not re.search(_OF_LIBRARIES, self.file.replace("\\", "/"))


# Compiled when first used, since only errors need them.
_FRAME = r'^ *File "(.+)", line (\d+), in (.+)$'
_OF_LIBRARIES = (
    r"/(site|dist)-packages/|/lib(64)?/python3[.\d]*/|^<(frozen |string>)|"
    r"/aflow/(attempt|executors|flow|task)/"
)


def frames_of(traceback: str) -> list[TracebackFrame]:
    """Return the frames of a formatted traceback, the outermost first; of chained exceptions, those
    of the last one.

    Args:
        traceback: The text, as formatted by `traceback.format_exception`.
    """
    found: list[TracebackFrame] = []
    lines = traceback.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("Traceback (most recent call last)"):
            found = []
        frame = re.match(_FRAME, line)
        if frame is not None:
            after = lines[number + 1] if number + 1 < len(lines) else ""
            code = "" if re.match(_FRAME, after) or not after.startswith("    ") else after.strip()
            found.append(TracebackFrame(frame[1], int(frame[2]), frame[3], code))
    return found


def show_frames(traceback: str) -> None:
    """Write to stderr where a task failed: the frames of the user's code, the innermost first,
    and the number of omitted frames of libraries.

    Args:
        traceback: The formatted traceback of a task, which may have run on another machine.
    """
    import click

    frames = frames_of(traceback)
    users = [each for each in frames if each.is_users]
    color = _color()
    here = os.getcwd() + os.sep
    for number, frame in enumerate(reversed(users[-_MOST_FRAMES:])):
        file = frame.file.removeprefix(here)
        place = printable(f"      {file}:{frame.line}, in {frame.function}", lines=False)
        click.secho(place, fg="red" if number == 0 else None, err=True, color=color)
        if frame.code:
            code = printable(f"          {frame.code}", lines=False)
            click.secho(code, bold=number == 0, err=True, color=color)
    left_out = len(frames) - len(users)
    if users and left_out:
        last = frames[-1]
        where = (
            "" if last.is_users else f", the last one {last.file}:{last.line}, in {last.function}"
        )
        text = f"      ({plural(left_out, 'frame')} of libraries left out{where})"
        click.secho(printable(text, lines=False), dim=True, err=True, color=color)


def forget_stdout() -> None:
    """Discard the output that is still buffered for stdout, so that flushing it at exit cannot
    fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def _unexpected(error: Exception) -> None:
    shown = _traceback_if_asked_for()
    text = f"{type(error).__name__}: {error}".rstrip(": ")
    message = f"{text}\nThis is a fault of aflow itself; please report it with the traceback"
    show("aflow failed unexpectedly", message + ("." if shown else " (set AFLOW_DEBUG=1)."))


def _traceback_if_asked_for() -> bool:
    settings = _settings()
    is_asked_for = settings is not None and settings.debug
    if is_asked_for:
        import traceback  # needed only for errors

        traceback.print_exc()
    return is_asked_for


def _color() -> bool | None:
    """Return whether errors are coloured; None to let the terminal decide."""
    settings = _settings()
    return False if settings is not None and settings.no_color else None


def _settings() -> Settings | None:
    try:
        return Settings.load()
    except InvalidSetting:  # this is the error being reported, or is reported separately
        return None


# Errors of the definition of a flow in `python flow.py`.
#
# Most errors of a flow are found when its command line starts. An invalid decorator or parameter
# raises earlier, in the body of the class, so that Python would print a traceback through aflow.
# In a script that defines a flow, such an error is shown in the same way as by `aflow run`.


_OF_FUNCTIONS = 0x1  # CO_OPTIMIZED, which class bodies do not have
_LANGUAGE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "flow", "")


def report_definition_error(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """Act as sys.excepthook of a script that defines a flow: show an error of the definition as
    `aflow run` does, and any other error as Python does.

    Args:
        kind: The class of the exception.
        error: The uncaught exception.
        traceback: Its traceback; None if it has none.
    """
    place = _place(traceback) if isinstance(error, AflowError) else None
    if place is None or not isinstance(error, AflowError):
        sys.__excepthook__(kind, error, traceback)
        return

    show(error.headline, f"{place}: {error}")
    leave(USAGE)


def _place(traceback: TracebackType | None) -> str | None:
    """Return file and line of the script where the definition of a flow raised; None if other code
    raised."""
    if traceback is None or traceback.tb_frame.f_globals.get("__name__") != "__main__":
        return None
    inner = traceback.tb_next
    if traceback.tb_frame.f_code.co_name != "<module>" or inner is None:
        return None
    frame, line = traceback.tb_frame, traceback.tb_lineno
    if _is_class_body(inner.tb_frame):
        line = inner.tb_lineno
    elif not os.path.abspath(inner.tb_frame.f_code.co_filename).startswith(_LANGUAGE):
        return None
    return f"{frame.f_code.co_filename}, line {line}"


def _is_class_body(frame: FrameType) -> bool:
    return "__module__" in frame.f_locals and not frame.f_code.co_flags & _OF_FUNCTIONS
