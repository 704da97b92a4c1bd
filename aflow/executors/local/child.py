"""What a process that runs attempts does to itself: its session, its streams, its end."""

from __future__ import annotations

# signal's own functions turn each number into an enum, which writes to many more pages.
import _signal  # type: ignore[import-not-found]
import os
import random
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from aflow._core import ending
from aflow._core.system import end_with_parent, memory_file, out_of_the_way
from aflow.errors import TaskError
from aflow.flow.current import current
from aflow.task.runner import no_terminal

_TWISTS = 200  # blocks of 624 numbers for which it is tried whether `random` was only used


def begin(parent: int, sigint: Any = _signal.default_int_handler, line: int | None = None) -> None:
    """Become a process of our own: own session, killed when the parent dies, default signals. What
    SIGINT does is what it did when the program began: nothing, under nohup and the like. `line` is
    that of the parent, where there is one (`system.lifeline`).

    Args:
        parent: The process id of the parent.
        sigint: The handler of SIGINT, or the number of the default action, from before.
        line: The descriptor of the lifeline; None where the kernel ends it.
    """
    os.setsid()
    end_with_parent(parent, line)
    _signal.set_wakeup_fd(-1)
    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
    _signal.signal(_signal.SIGINT, sigint if callable(sigint) else int(sigint))
    reseed()


def reseed() -> None:
    """Give a forked process random numbers of its own.

    The `random` module does so by itself. NumPy's global generator does not; it is left alone
    where the flow's file has seeded it, since then the file wants the same numbers in each task.
    """
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is None:
        return
    generator = numpy_random.mtrand._rand._bit_generator
    if getattr(generator, "seed_seq", None) is not None:
        numpy_random.seed()


def was_seeded(before: tuple[Any, ...], after: tuple[Any, ...]) -> bool:
    """Return whether somebody has seeded a Mersenne Twister, rather than only used it, between
    these states (624 words and a position): it is tried whether drawing numbers leads from the one
    to the other.

    Args:
        before: The state of the generators before.
        after: The state of the generators after the program's imports.
    """
    if before == after:
        return False
    tried = random.Random()
    tried.setstate((3, before, None))
    wanted = after[:624]
    for _ in range(_TWISTS):
        state = tried.getstate()[1]
        if state[:624] == wanted:
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


def set_up_streams() -> None:
    """Let descriptor 0 lead to nothing and 1 and 2 somewhere, here and in all processes that will
    be forked: those that were closed when the program began, too. Lines go out as they are written,
    whatever bytes they are made of."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(nothing, number)
    os.dup2(nothing, 0)
    if nothing > 2:
        os.close(nothing)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", closefd=False))
            setattr(sys, f"__{name}__", getattr(sys, name))
        getattr(sys, name).reconfigure(line_buffering=True, errors="surrogateescape")


class CapturedOutput:
    """What is printed while this context lasts, by any code: kept in `bytes` (stdout and
    stderr) rather than shown."""

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
    """Let breakpoint() say that there is no terminal, rather than end the step by an error of bdb.
    A debugger that the user has chosen (PYTHONBREAKPOINT) may have a way of its own."""
    if not os.environ.get("PYTHONBREAKPOINT"):  # noqa: TID251 -- Python's own
        sys.breakpointhook = _refuse


def _refuse(*args: object, **options: object) -> NoReturn:
    step = current.get("step_name", "STEP")
    raise TaskError(f"breakpoint() cannot stop: {no_terminal(step)}.")


def ended_by(error: BaseException) -> int:
    """Print the exception that ended a program, as Python does.

    Args:
        error: What the program has raised: SystemExit, too.

    Returns:
        The exit code that Python would have ended with.
    """
    if isinstance(error, SystemExit):
        return ending.exit_code(error)
    try:
        sys.excepthook(type(error), error, _of_the_program(error))
    except Exception:  # noqa: BLE001 -- a hook of the user's
        sys.__excepthook__(type(error), error, error.__traceback__)
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def _of_the_program(error: BaseException) -> Any:
    """The traceback from the program's first line on."""
    here = os.path.dirname(os.path.abspath(__file__))
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith((here, "<frozen")):
        trace = trace.tb_next
    return trace or error.__traceback__


def end(code: int = 0, release: Callable[[], None] | None = None) -> NoReturn:
    """Leave the process as Python would, but in less time; see aflow/_core/ending.py.

    Args:
        code: The exit status.
        release: Drops the references to the user's objects; None where there are none.
    """
    ending.leave(code, release)


def flush() -> None:
    """Write out what the step has printed; streams that the step closed are fine."""
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except (OSError, ValueError, AttributeError):
            continue  # closed, or replaced by something that is not a stream: nothing is held back


def write_all(fd: int, data: bytes) -> None:
    """Write all of the bytes.

    Args:
        fd: A descriptor in blocking mode.
        data: The bytes; short writes are continued.
    """
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
