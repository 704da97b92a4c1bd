"""Set up a forked process that runs attempts: its session, signals and streams; and end it."""

from __future__ import annotations

# The functions of `signal` convert each number to an enum, which writes to many more pages.
import _signal  # type: ignore[import-not-found]
import io
import locale
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from aflow._core import ending, process
from aflow._core.system import end_with_parent, memory_file, out_of_the_way
from aflow.errors import TaskError
from aflow.flow.current import current
from aflow.task.runner import no_terminal

if TYPE_CHECKING:
    from aflow.flow.spec import FlowSpec

_TWISTS = 200  # blocks of 624 numbers that are generated to find out whether `random` was only used


def begin(parent: int, sigint: Any = _signal.default_int_handler, line: int | None = None) -> None:
    """Start a new session, restore default signal handling, and end with the parent process.

    SIGINT has the effect that it had when the program started: none under nohup, for example.

    Args:
        parent: The process id of the parent.
        sigint: The handler of SIGINT, or the number of its default action, from before.
        line: The descriptor of the parent's lifeline (`system.lifeline`); None if the kernel kills
            this process together with its parent.
    """
    os.setsid()
    end_with_parent(parent, line)
    _signal.set_wakeup_fd(-1)
    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
    _signal.signal(_signal.SIGINT, sigint if callable(sigint) else int(sigint))
    threading.main_thread()._set_native_id()  # type: ignore[attr-defined]  # the parent's is kept
    reseed()


def reseed() -> None:
    """Seed the random generators of a forked process.

    The `random` module reseeds itself after a fork. NumPy's global generator does not. If the
    flow's file has seeded it, it is left alone: each task should draw the same numbers.
    """
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is None:
        return
    generator = numpy_random.mtrand._rand._bit_generator
    if getattr(generator, "seed_seq", None) is not None:
        numpy_random.seed()


def was_seeded(before: tuple[Any, ...], after: tuple[Any, ...]) -> bool:
    """Return whether a Mersenne Twister was seeded, rather than only used, between two states.

    A generator with the first state draws numbers until it reaches the second one, up to a limit. A
    state is 624 words and a position.

    Args:
        before: The state of the generator before.
        after: The state of the generator after the program's imports.
    """
    if before == after:
        return False
    tried = random.Random()
    tried.setstate((3, before, None))
    target = after[:624]
    for _ in range(_TWISTS):
        state = tried.getstate()[1]
        if state[:624] == target:
            return False
        for _ in range(624 - state[624] + 1):
            tried.getrandbits(32)
    return True


def redirect(stdout: int, stderr: int) -> None:
    """Send this process's stdout and stderr to the coordinator.

    Args:
        stdout: The writing end of the pipe for stdout.
        stderr: The writing end of the pipe for stderr.
    """
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)


_STREAMS = ("stdin", "stdout", "stderr")


def set_up_streams() -> None:
    """Prepare the standard streams of this process and of those that it will fork.

    Descriptor 0 becomes /dev/null, and 1 and 2 are opened if they were closed when the program
    started. Output is line-buffered. Encodings are those that Python has chosen.
    """
    process.fill_descriptors()
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    with _piped():
        for number, name in enumerate(_STREAMS):
            stream = getattr(sys, name)
            if stream is None or type(stream) is io.TextIOWrapper:
                stream = _renewed(number, name, stream)
                setattr(sys, name, stream)
                setattr(sys, f"__{name}__", stream)
            elif hasattr(stream, "reconfigure"):  # installed by sitecustomize, for example
                stream.reconfigure(line_buffering=True)


@contextmanager
def _piped() -> Iterator[None]:
    """Make stdout and stderr pipes temporarily, as they are in the process of a task.

    A stream records at its creation whether its file is seekable.
    """
    kept = [os.dup(number) for number in (1, 2)]
    ends = os.pipe()
    redirect(ends[1], ends[1])
    try:
        yield
    finally:
        redirect(*kept)
        for each in (*kept, *ends):
            os.close(each)


def _renewed(number: int, name: str, before: io.TextIOWrapper | None) -> io.TextIOWrapper:
    """Return a standard stream as Python creates it, for the current file of its descriptor."""
    encoding, errors = encoding_at_start(name)
    write_through = False
    if before is not None:
        encoding, errors = before.encoding, before.errors or errors
        write_through = before.write_through
        before.flush()
    file = io.FileIO(number, "w" if number else "r", closefd=False)
    file.name = f"<{name}>"
    buffer: Any = file  # `python -u`
    if not number:
        buffer = io.BufferedReader(file)
    elif not write_through:
        buffer = io.BufferedWriter(file)
    stream = io.TextIOWrapper(
        buffer,
        encoding,
        errors,
        "\n" if number else None,
        line_buffering=bool(number),
        write_through=write_through,
    )
    stream.mode = "w" if number else "r"  # type: ignore[misc]
    return stream


def encoding_at_start(name: str) -> tuple[str, str]:
    """Return the encoding and error handler that a new interpreter would use for a standard stream.

    Args:
        name: `stdin`, `stdout` or `stderr`.
    """
    asked = "" if sys.flags.ignore_environment else os.environ.get("PYTHONIOENCODING", "")  # noqa: TID251 -- Python's own
    encoding, _, errors = asked.partition(":")
    if name == "stderr":
        errors = "backslashreplace"
    elif not errors and encoding:
        errors = "strict"
    elif not errors:
        errors = "surrogateescape" if _takes_any_bytes() else "strict"
    if not encoding:
        encoding = "utf-8" if sys.flags.utf8_mode else locale.getencoding()
    return encoding, errors


def _takes_any_bytes() -> bool:
    """Return whether streams pass undecodable bytes: without a locale, or with a coerced one."""
    return bool(sys.flags.utf8_mode) or locale.setlocale(locale.LC_CTYPE) in _NO_LOCALES


_NO_LOCALES = ("C", "POSIX", "C.UTF-8", "C.utf8", "UTF-8")


class CapturedOutput:
    """Captures the output of all code in this context; `bytes` holds stdout and stderr."""

    def __enter__(self) -> CapturedOutput:
        flush()
        self.bytes = (b"", b"")
        self._kept = [out_of_the_way(os.dup(number)) for number in (1, 2)]
        self._files = [out_of_the_way(memory_file(name)) for name in ("aflow-1", "aflow-2")]
        redirect(*self._files)
        return self

    def __exit__(self, *exc: object) -> None:
        flush()
        redirect(*self._kept)
        out, err = (os.pread(file, os.fstat(file).st_size, 0) for file in self._files)
        self.bytes = (out, err)
        for each in (*self._kept, *self._files):
            os.close(each)


def refuse_breakpoints() -> None:
    """Let breakpoint() report that there is no terminal, rather than fail with an error of bdb.

    A debugger that the user has set (PYTHONBREAKPOINT) may use another way to communicate.
    """
    if not os.environ.get("PYTHONBREAKPOINT"):  # noqa: TID251 -- Python's own
        sys.breakpointhook = _refuse


def _refuse(*args: object, **options: object) -> NoReturn:
    step = current.get("step_name", "STEP")
    raise TaskError(f"breakpoint() cannot stop: {no_terminal(step)}.")


def copies_of(flow: FlowSpec) -> Callable[[], FlowSpec]:
    """Return a function that creates flows with the attributes that __init__ has set on this one.

    Args:
        flow: The instance that the user's program has created; its attributes are shared, not
            copied.
    """
    cls, state = type(flow), dict(flow.__dict__)

    def copy() -> FlowSpec:
        made = object.__new__(cls)
        made.__dict__.update(state)
        return made

    return copy


def ended_by(error: BaseException) -> int:
    """Print the exception that ended a program, as Python does.

    Args:
        error: The exception that the program has raised; may be SystemExit.

    Returns:
        The exit code that Python would have used.
    """
    if isinstance(error, SystemExit):
        return ending.exit_code(error)
    try:
        sys.excepthook(type(error), error, _of_the_program(error))
    except Exception:  # noqa: BLE001 -- a hook of the user
        sys.__excepthook__(type(error), error, error.__traceback__)
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def _of_the_program(error: BaseException) -> Any:
    """Return the traceback from the first frame of the program."""
    here = os.path.dirname(os.path.abspath(__file__))
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith((here, "<frozen")):
        trace = trace.tb_next
    return trace or error.__traceback__


def flush() -> None:
    """Flush stdout and stderr; streams that the step has closed are ignored."""
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except (OSError, ValueError, AttributeError):
            continue  # closed, or replaced by an object that is not a stream: nothing is buffered


def write_all(fd: int, data: bytes) -> None:
    """Write all of the bytes.

    Args:
        fd: A descriptor in blocking mode.
        data: The bytes; short writes are continued.
    """
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
