"""The terminal output of a run: its log on stdout; banner, checks and final errors on stderr.

On a terminal, progress bars of the steps are drawn below the log. They are erased before anything
else is written, and drawn again a moment later: many lines are written in few calls, and cause few
redraws.

A line of the log is `<time> <head><text>`: local time with milliseconds, then
`[run/step/task (pid n)] `, then the output of the task, unchanged: it is not decoded, stripped or
interpreted. All events of an iteration of the event loop are written in one call.
"""

from __future__ import annotations

import asyncio
import re
import select
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, BinaryIO

from aflow._core.clock import SystemClock
from aflow._core.wording import plural
from aflow.cli.errors import forget_stdout, printable, show
from aflow.runs.events import (
    LogLine,
    Progress,
    RunEnded,
    RunEvent,
    RunStarting,
    RunStopping,
    TaskEnded,
    TaskReused,
    TaskStarting,
)
from aflow.scheduler.states import AttemptState, RunState

if TYPE_CHECKING:
    from aflow.cli.progress import ProgressBars, Signs, Tally

_MAGENTA = b"\x1b[35m"
_GREEN = b"\x1b[32m"
_BOLD = b"\x1b[1m"
_BAD = b"\x1b[31m\x1b[1m"
_RESET = b"\x1b[0m"

_PAUSE = 0.04  # seconds from an event until it is shown, if there are bars
_TICK = 1.0  # seconds between redraws of bars while there are no events

_SIGNAL = r"stopped by (SIG[A-Z]+)"


class Console:
    """Prints the events of one run; the coordinator calls `watch` with them.

    `colors` is whether the log may be coloured; `tally` counts the tasks for the last line; `bars`,
    if any, are drawn below the log, which must be on a terminal then: other writers to that
    terminal must use `above`. If stdout is no longer writable (its reader has exited, or
    the disk is full), the run continues: its log is stored anyway.
    """

    def __init__(
        self,
        out: BinaryIO,
        *,
        flow: str = "",
        colors: bool = False,
        ui_url: str | None = None,
        tally: Tally | None = None,
        bars: ProgressBars | None = None,
        signs: Signs | None = None,
    ) -> None:
        self.tally = tally
        self._signs = signs
        self._output = Output(out)
        self._bars = bars
        self._lock = threading.RLock()  # any thread may write to stderr
        self._drawn: list[str] = []  # the bars on the terminal
        self._timer: asyncio.TimerHandle | None = None
        self._soon = False  # whether the timer is for new events, not for the next tick
        self._is_paused = False
        self._is_open = False  # whether another writer has written an incomplete line
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ui = f"{ui_url.rstrip('/')}/{flow}/" if ui_url else ""
        self._time_color, self._head_color, self._bold, self._bad, self._reset = (
            (_MAGENTA, _GREEN, _BOLD, _BAD, _RESET) if colors else (b"",) * 5
        )
        self._second = -1
        self._stamp = b""
        self._owner: tuple[int, int | None] | None = None  # the task and pid in _head
        self._head = b""
        self._unfinished: tuple[int, str] | None = None  # task and stream of an incomplete line
        self._failed_is_written = False
        self._flow = flow
        self._cloning: str | None = None  # the run whose results are being reused
        self._writers: dict[type, Callable[..., None]] = {
            Progress: self._progress,
            RunEnded: self._run_ended,
            RunStarting: self._run_starting,
            RunStopping: self._run_stopping,
            TaskEnded: self._task_ended,
            TaskStarting: self._task_starting,
            TaskReused: self._task_taken_over,
        }

    def watch(self, events: Sequence[RunEvent]) -> None:
        """Print the events in this order, and flush.

        Args:
            events: The events since the last call.
        """
        if self.tally is not None:
            self.tally.count(events)
        if self._bars is None:
            self._write(events)
            self._output.flush()
            return
        with self._lock:
            self._take_down()
            self._write(events)
            if self._bars.tally.ended_at is None:
                self._draw_soon()
            else:
                self._draw()

    def _write(self, events: Sequence[RunEvent]) -> None:
        for event in events:
            if type(event) is LogLine:
                self._log_line(event)
            else:
                self._writers[type(event)](event)

    # ------------------------------------------------------------ the bars

    def _take_down(self) -> None:
        if self._drawn:
            self._output.add(b"\x1b[%dF\x1b[J" % len(self._drawn))
            self._drawn = []

    def _draw_soon(self) -> None:
        """Write the buffered log, and draw the bars below it, in _PAUSE seconds."""
        if self._soon:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # there is no event loop to call back
            self._draw()
            return
        if self._loop is not loop:
            self._loop = loop
            self._follow_the_terminal(loop)
        if self._timer is not None:
            self._timer.cancel()
        self._soon = True
        self._timer = loop.call_later(_PAUSE, self._draw)

    def _follow_the_terminal(self, loop: asyncio.AbstractEventLoop) -> None:
        """Draw again when the size of the terminal changes, and when this program is continued
        after a stop (Ctrl-Z): then the shell has written to the terminal."""
        if threading.current_thread() is threading.main_thread():
            loop.add_signal_handler(signal.SIGWINCH, self._draw_soon)
            loop.add_signal_handler(signal.SIGCONT, self.forget)

    def _draw(self) -> None:
        """Write the buffered log, and draw the bars in their current state."""
        with self._lock:
            assert self._bars is not None, "there is nothing to draw else"
            self._soon, self._timer = False, None
            lines: list[str] = []
            if not (self._is_paused or self._is_open or self._unfinished):
                size = shutil.get_terminal_size()
                lines = self._bars.lines(SystemClock.now(), size.columns, size.lines)
            if lines != self._drawn:
                self._take_down()
                self._output.add("".join(f"{each}\n" for each in lines).encode("utf-8", "replace"))
                self._drawn = lines
            self._output.flush()
            if self._loop is not None and not self._is_paused and self._bars.tally.ended_at is None:
                self._timer = self._loop.call_later(_TICK, self._draw)

    def pause(self) -> None:
        """Erase the bars, flush, and leave the terminal to another writer until `go_on`. May be
        called twice."""
        with self._lock:
            self._is_paused = True
            if self._timer is not None:
                self._timer.cancel()
            self._soon, self._timer = False, None
            self._take_down()
            self._output.flush()

    def go_on(self) -> None:
        """Resume drawing bars."""
        with self._lock:
            self._is_paused = False
            if self._bars is not None:
                self._draw_soon()

    def forget(self) -> None:
        """Do not erase the drawn bars: another writer has written below them."""
        with self._lock:
            self._drawn = []
            if self._bars is not None and not self._is_paused:
                self._draw_soon()

    def conclude(self, ended: RunEnded, further: str) -> None:
        """Print the last line: the outcome of the run, and the command that shows more.

        Args:
            ended: The last event of the run.
            further: The command that shows more; "" for none.
        """
        if self.tally is None or self._signs is None:
            return
        from aflow.cli.progress import last_line  # needed only on a terminal

        text = printable(last_line(self.tally, ended, further, self._signs))
        succeeded = ended.state is RunState.SUCCEEDED
        color = (_GREEN if succeeded else _BAD) if self._reset else b""
        sign, rest = text[:1].encode("utf-8"), text[1:].encode("utf-8", "replace")
        self._output.add(color + sign + self._reset + rest + b"\n")
        self._output.flush()

    def above(self, stream: Any, text: str) -> int:
        """Write a text to a stream on the same terminal, above the bars. Thread-safe.

        Args:
            stream: The original stream, stdout or stderr.
            text: The text; if it does not end with a newline, no bars are drawn until the line
                ends.

        Returns:
            The number of characters that were written.
        """
        with self._lock:
            self._take_down()
            self._output.flush()
            written = stream.write(text)
            stream.flush()
            self._is_open = bool(text) and not text.endswith("\n")
            if self._loop is not None and not self._is_paused and not self._soon:
                with suppress(RuntimeError):  # the loop is closed: nothing is drawn from now on
                    self._loop.call_soon_threadsafe(self._draw_soon)
        return len(text) if written is None else int(written)

    # ------------------------------------------------------------ the log of the tasks

    def _log_line(self, line: LogLine) -> None:
        """Write a line of a task. This method must be fast: it is called for every line of every
        task."""
        second = int(line.at)
        if second != self._second:
            self._begin_second(second)
        if self._owner != (line.task, line.pid):
            self._begin_head(line.run, line.step, line.task, line.pid)
        if line.whole and self._unfinished is None:
            self._output.add(
                b"%b%b%b%b\n"
                % (self._stamp, b".%03d " % int(line.at % 1 * 1000), self._head, line.text)
            )
        else:
            self._piece(line)

    def _piece(self, line: LogLine) -> None:
        """Write a piece of a line that is too long to be buffered, or a line that follows one."""
        owner = (line.task, line.stream)
        if self._unfinished != owner:
            self._end_piece()
            self._output.add(self._stamp + b".%03d " % int(line.at % 1 * 1000) + self._head)
        self._output.add(line.text + b"\n" if line.whole else line.text)
        self._unfinished = None if line.whole else owner

    def _end_piece(self) -> None:
        if self._unfinished is not None:
            self._output.add(b"\n")
            self._unfinished = None

    def _begin_second(self, second: int) -> None:
        text = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
        self._stamp = self._time_color + text.encode()
        self._second = second

    def _begin_head(self, run: str, step: str, task: int, pid: int | None) -> None:
        process = "" if pid is None else f" (pid {pid})"
        head = f"[{run}/{step}/{task}{process}] "
        # The reset also ends the colour of the time, which is directly before it.
        self._head = self._reset + self._head_color + head.encode() + self._reset
        self._owner = (task, pid)

    # ------------------------------------------------------------ events of the runtime

    def _system(self, at: float, text: str, *, bad: bool = False) -> None:
        """Write a line that belongs to no task."""
        self._head = self._reset
        self._owner = None
        self._line(at, text, bad)

    def _of_task(self, event: TaskStarting | TaskEnded, text: str, *, bad: bool = False) -> None:
        if self._owner != (event.task, event.pid):
            self._begin_head(event.run, event.step, event.task, event.pid)
        self._line(event.at, text, bad)

    def _line(self, at: float, text: str, bad: bool) -> None:
        self._end_piece()
        if int(at) != self._second:
            self._begin_second(int(at))
        body = (
            (self._bad if bad else self._bold)
            + printable(text).encode("utf-8", "replace")
            + self._reset
        )
        milliseconds = b".%03d " % int(at % 1 * 1000)
        self._output.add(self._stamp + milliseconds + self._head + body + b"\n")

    def _task_taken_over(self, event: TaskReused) -> None:
        if self._owner != (event.task, None):
            self._begin_head(event.run, event.step, event.task, None)
        if event.cached:
            text = f"Nothing has changed since task {event.origin}: its result is reused."
        else:
            text = f"Cloning previously run task {event.origin}"
        self._line(event.at, text, bad=False)

    def _task_starting(self, event: TaskStarting) -> None:
        self._end_cloning(event.at)
        text = "Task is starting."
        if event.fallback:
            text = "Task fallback is starting to handle the failure."
        elif event.attempt:
            text = "Task is starting (retry)."
        self._of_task(event, text)

    def _task_ended(self, event: TaskEnded) -> None:
        if event.state == AttemptState.SUCCEEDED:
            if event.splits is not None:
                self._of_task(event, f"Foreach yields {event.splits} child steps.")
            self._of_task(event, "Task finished successfully.")
        elif event.state in (AttemptState.CANCELLED, AttemptState.INTERRUPTED):
            self._of_task(event, "[KILLED BY ORCHESTRATOR]", bad=True)
        else:
            self._of_task(event, f"Task failed. {event.reason}".rstrip(), bad=True)
            wait = 0 if event.retry_at is None else round(event.retry_at - event.at)
            if wait > 0:
                self._of_task(event, f"The task is tried again in {plural(wait, 'second')}.")

    def _run_starting(self, event: RunStarting) -> None:
        text = f"Workflow starting (run-id {event.run})"
        seen = f", see it in the UI at {self._ui}{event.run}" if self._ui else ":"
        self._system(event.at, text + seen)
        if event.recovered:
            self._system(event.at, "Recovering the run from another coordinator")
        elif event.spins:
            self._system(event.at, f"Spinning a task of {self._flow}/{event.origin}")
        elif event.origin is not None:
            self._system(event.at, f"Cloning {self._flow}/{event.origin}")
            self._cloning = event.origin

    def _end_cloning(self, at: float) -> None:
        if self._cloning is not None:
            self._system(at, f"{self._flow}/{self._cloning} cloned!")
            self._cloning = None

    def _run_stopping(self, event: RunStopping) -> None:
        # The event has only a text, and no field that distinguishes signals from other requests.
        signal = re.search(_SIGNAL, event.reason)
        if event.fails:
            self._write_failed(event.at)
        elif signal is not None:
            again = " pressing Ctrl+C again" if signal[1] == "SIGINT" else " a second signal"
            self._system(
                event.at,
                f"Workflow interrupted. Please avoid{again} "
                "to let the workflow clean up process finish.",
                bad=True,
            )
        if event.active:
            text = f"Terminating {plural(event.active, 'active task')}..."
            self._system(event.at, text, bad=True)

    def _run_ended(self, event: RunEnded) -> None:
        self._end_cloning(event.at)
        if event.state is RunState.SUCCEEDED:
            seen = f" See the run in the UI at {self._ui}{event.run}" if self._ui else ""
            self._system(event.at, f"Done!{seen}")
            return
        if event.state is RunState.CANCELLED:
            self._system(event.at, f"Workflow was stopped. {event.reason}".rstrip(), bad=True)
            return
        self._write_failed(event.at)
        self._output.flush()
        show(*_failure(event))

    def _write_failed(self, at: float) -> None:
        if not self._failed_is_written:
            self._system(at, "Workflow failed.", bad=True)
            self._failed_is_written = True

    # ------------------------------------------------------------ periodic progress

    def _progress(self, event: Progress) -> None:
        for text in progress_lines(event):
            self._system(event.at, text)


class Above:
    """A text stream that writes above the bars of a console on the same terminal."""

    def __init__(self, console: Console, stream: Any) -> None:
        self._console = console
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text above the bars.

        Args:
            text: The text.

        Returns:
            The number of characters that were written.
        """
        return self._console.above(self._stream, text)

    def writelines(self, lines: Sequence[str]) -> None:
        """Write several texts above the bars in one call.

        Args:
            lines: The texts, each with its own newline.
        """
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def progress_lines(event: Progress) -> list[str]:
    """Return the lines that report progress periodically if there are no bars.

    Args:
        event: The numbers of tasks by step.

    Returns:
        Lines on running, queued and unstarted tasks.
    """
    running, queued, unstarted = event.running, event.queued, event.unstarted
    steps = [_step_counts(step, event) for step in running]
    lines = [_tasks(sum(running.values()), "running", ", ".join(steps))]
    waiting = ", ".join(f"{step} ({count})" for step, count in queued.items())
    lines.append(_tasks(sum(queued.values()), "waiting in the queue", waiting))
    if len(unstarted) == 1:
        lines.append(f"{unstarted[0]} step has not started")
    elif unstarted:
        lines.append(f"{len(unstarted)} steps have not started: {', '.join(unstarted)}.")
    return lines


def _step_counts(step: str, event: Progress) -> str:
    counts = f"{event.running[step]} running; {event.done.get(step, 0)} done"
    failed = event.failed.get(step, 0)
    return f"{step} ({counts}; {failed} failed)" if failed else f"{step} ({counts})"


def _tasks(count: int, doing: str, which: str) -> str:
    if not count:
        return f"No tasks are {doing}."
    verb = "task is" if count == 1 else "tasks are"
    return f"{count} {verb} {doing}: {which}."


def _failure(event: RunEnded) -> tuple[str, str]:
    """Return headline and message of the final error."""
    if event.step is None:
        return "Run failed", event.reason or "The run ended without success."
    failed = f"Step {event.step} (task-id {event.task}) failed"
    return "Step failure", f"{failed}: {event.reason}" if event.reason else f"{failed}."


# Buffered output to stdout, whose failure does not stop the run.


_LARGE = 1 << 16


class Output:
    """The destination of the run log.

    `add` buffers, `flush` writes. After a failed write nothing more is written: silently if the
    reader has closed the pipe, otherwise with one message on stderr.
    """

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._pieces: list[bytes] = []
        self._size = 0
        self._closed = False

    def add(self, piece: bytes) -> None:
        """Append a piece to the buffer, which is written if it is large.

        Args:
            piece: Encoded text, not necessarily whole lines.
        """
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size >= _LARGE:
            self._write()

    def flush(self) -> None:
        """Write and flush the buffer."""
        self._write()
        if not self._closed:
            try:
                self._out.flush()
            except (OSError, ValueError) as error:
                self._give_up(error)

    def _write(self) -> None:
        rest = memoryview(b"".join(self._pieces))
        self._pieces.clear()
        self._size = 0
        while rest and not self._closed:
            try:
                written: int | None = self._out.write(rest)
            except BlockingIOError as error:
                rest = rest[error.characters_written :]
                written = None
            except (OSError, ValueError) as error:
                self._give_up(error)
                return
            # A raw stream (python -u) may write only a part, and returns None if it would block:
            # another process that shares the terminal has made it nonblocking.
            rest = rest[written or 0 :]
            if written is None:
                select.select([], [self._out], [])

    def _give_up(self, error: OSError | ValueError) -> None:
        self._closed = True
        if isinstance(error, ValueError):  # the program has closed stdout deliberately
            return
        if self._out is getattr(sys.stdout, "buffer", None):
            forget_stdout()  # otherwise flushing it at exit would fail again
        if not isinstance(error, BrokenPipeError):
            show(
                "Output error",
                f"The run log can no longer be written to stdout ({error.strerror}).\n"
                "The run goes on, and its log is stored: see the command `logs`.",
            )
