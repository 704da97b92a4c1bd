"""The log of a run: fixed events, and the exact bytes that are printed for them."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aflow.cli.run_log import Console, progress_lines
from aflow.runs.events import (
    LogLine,
    Progress,
    RunEnded,
    RunEvent,
    RunStarting,
    RunStopping,
    TaskEnded,
    TaskStarting,
)
from aflow.scheduler.states import RunState

AT = 1_700_000_000.25
RUN = "1700000000000000"
STAMP = "2023-11-14 22:13:20.250"


@pytest.fixture(autouse=True)
def _in_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def printed(*events: RunEvent, ui_url: str | None = None, colors: bool = False) -> str:
    """Return the output on stdout for the events."""
    out = io.BytesIO()
    Console(out, flow="MyFlow", colors=colors, ui_url=ui_url).watch(events)
    return out.getvalue().decode()


def line(
    text: bytes,
    task: int = 1,
    stream: Literal["stdout", "stderr"] = "stdout",
    at: float = AT,
    whole: bool = True,
) -> LogLine:
    return LogLine(at, RUN, "start", task, 42, stream, text, whole)


def starting(attempt: int = 0, fallback: bool = False) -> TaskStarting:
    return TaskStarting(AT, RUN, "start", 1, attempt, 42, fallback)


def ended(
    state: str,
    reason: str = "",
    *,
    retry_at: float | None = None,
    splits: int | None = None,
    pid: int | None = 42,
) -> TaskEnded:
    return TaskEnded(AT, RUN, "start", 1, 0, pid, state, reason, retry_at, splits)


HEAD = f"{STAMP} [{RUN}/start/1 (pid 42)] "


def test_a_run_that_succeeds_is_reported_line_by_line() -> None:
    assert (
        f"{STAMP} Workflow starting (run-id {RUN}):\n"
        f"{HEAD}Task is starting.\n"
        f"{HEAD}alpha is 0.010000\n"
        f"{HEAD}Foreach yields 3 child steps.\n"
        f"{HEAD}Task finished successfully.\n"
        f"{STAMP} Done!\n"
    ) == printed(
        RunStarting(AT, "MyFlow", RUN),
        starting(),
        line(b"alpha is 0.010000"),
        ended("succeeded", splits=3),
        RunEnded(AT, RUN, RunState.SUCCEEDED),
    )


def test_with_a_ui_the_run_says_where_it_can_be_seen() -> None:
    text = printed(
        RunStarting(AT, "MyFlow", RUN),
        RunEnded(AT, RUN, RunState.SUCCEEDED),
        ui_url="https://ui.example/",
    )

    assert (
        f"{STAMP} Workflow starting (run-id {RUN}), see it in the UI at "
        f"https://ui.example/MyFlow/{RUN}\n"
        f"{STAMP} Done! See the run in the UI at https://ui.example/MyFlow/{RUN}\n"
    ) == text


@pytest.mark.parametrize(
    ("event", "texts"),
    [
        (starting(attempt=1), ["Task is starting (retry)."]),
        (
            starting(attempt=3, fallback=True),
            ["Task fallback is starting to handle the failure."],
        ),
        (ended("failed"), ["Task failed."]),
        (ended("failed", "ValueError: no."), ["Task failed. ValueError: no."]),
        (ended("timed_out", "It took too long."), ["Task failed. It took too long."]),
        (ended("cancelled"), ["[KILLED BY ORCHESTRATOR]"]),
        (ended("failed", retry_at=AT), ["Task failed."]),
        (
            ended("failed", retry_at=AT + 120),
            ["Task failed.", "The task is tried again in 120 seconds."],
        ),
    ],
)
def test_what_happens_to_a_task_has_its_sentence(event: RunEvent, texts: list[str]) -> None:
    assert "".join(f"{HEAD}{text}\n" for text in texts) == printed(event)


def test_a_task_that_never_had_a_process_has_no_pid_in_its_head() -> None:
    assert f"{STAMP} [{RUN}/start/1] [KILLED BY ORCHESTRATOR]\n" == printed(
        ended("cancelled", pid=None)
    )


def test_a_failure_ends_on_stderr_with_step_and_reason(
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = printed(RunEnded(AT, RUN, RunState.FAILED, "ValueError: no.", "start", 1))

    assert f"{STAMP} Workflow failed.\n" == out
    assert (
        "    Step failure:\n    Step start (task-id 1) failed: ValueError: no.\n"
        == capsys.readouterr().err
    )


def test_a_failure_without_a_step_gives_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    printed(RunEnded(AT, RUN, RunState.FAILED, "The disk is full."))

    assert "    Run failed:\n    The disk is full.\n" == capsys.readouterr().err


def test_a_run_that_fails_fast_says_so_once() -> None:
    assert (
        f"{STAMP} Workflow failed.\n"
        f"{STAMP} Terminating 2 active tasks...\n"
        f"{HEAD}[KILLED BY ORCHESTRATOR]\n"
    ) == printed(
        RunStopping(AT, RUN, "Step start (task-id 1) failed.", 2, fails=True),
        ended("cancelled"),
        RunEnded(AT, RUN, RunState.FAILED, "", "start", 1),
    )


def test_a_run_that_is_cancelled_has_not_failed() -> None:
    reason = "The run was cancelled by ada (aflow cancel)."
    assert (
        f"{STAMP} Terminating 1 active task...\n{STAMP} Workflow was stopped. {reason}\n"
    ) == printed(RunStopping(AT, RUN, reason, 1), RunEnded(AT, RUN, RunState.CANCELLED, reason))


def test_an_interrupted_run_asks_for_patience() -> None:
    assert (
        f"{STAMP} Workflow interrupted. Please avoid pressing Ctrl+C again to let the workflow "
        "clean up process finish.\n"
        f"{STAMP} Terminating 1 active task...\n"
        f"{STAMP} Workflow was stopped. The run was stopped by SIGINT.\n"
    ) == printed(
        RunStopping(AT, RUN, "The run was stopped by SIGINT.", 1),
        RunEnded(AT, RUN, RunState.CANCELLED, "The run was stopped by SIGINT."),
    )


# ------------------------------------------------------------ what tasks print


@given(st.binary(max_size=200).filter(lambda text: b"\n" not in text))
def test_a_line_is_written_byte_for_byte(text: bytes) -> None:
    out = io.BytesIO()
    Console(out).watch([line(text)])

    assert HEAD.encode() + text + b"\n" == out.getvalue()


def test_indentation_and_stars_are_kept() -> None:
    assert f"{HEAD}    self.main(*args, **kwargs)\t\n" == printed(
        line(b"    self.main(*args, **kwargs)\t")
    )


def test_each_line_carries_its_own_time() -> None:
    text = printed(line(b"a", at=AT), line(b"b", at=AT + 0.125), line(b"c", at=AT + 61))

    assert [
        "2023-11-14 22:13:20.250",
        "2023-11-14 22:13:20.375",
        "2023-11-14 22:14:21.250",
    ] == [each[:23] for each in text.splitlines()]


def test_milliseconds_are_cut_and_not_rounded() -> None:
    assert "22:13:20.999 " in printed(line(b"x", at=1_700_000_000.99996))


def test_lines_of_two_tasks_carry_their_own_heads() -> None:
    text = printed(line(b"a", 1), line(b"b", 2), line(b"c", 1))

    assert ["start/1", "start/2", "start/1"] == [
        each.split("]")[0].split("/", 1)[1].split(" ")[0] for each in text.splitlines()
    ]


def test_the_pieces_of_a_long_line_come_out_as_one_line() -> None:
    assert f"{HEAD}one two three\n{HEAD}next\n" == printed(
        line(b"one ", whole=False), line(b"two ", whole=False), line(b"three"), line(b"next")
    )


def test_a_long_line_is_broken_where_another_task_speaks() -> None:
    other = HEAD.replace("start/1", "start/2")

    assert f"{HEAD}one \n{other}x\n{HEAD}two\n" == printed(
        line(b"one ", whole=False), line(b"x", 2), line(b"two")
    )


def test_a_long_line_is_broken_where_the_system_speaks() -> None:
    assert f"{HEAD}one \n{HEAD}Task failed.\n" == printed(
        line(b"one ", whole=False), ended("failed")
    )


# ------------------------------------------------------------ colours


def test_with_colours_only_what_is_ours_is_coloured() -> None:
    text = printed(starting(), line(b"plain"), ended("failed"), colors=True)
    magenta, green, bold, bad, off = (
        "\x1b[35m",
        "\x1b[32m",
        "\x1b[1m",
        "\x1b[31m\x1b[1m",
        "\x1b[0m",
    )
    head = f"{magenta}{STAMP} {off}{green}[{RUN}/start/1 (pid 42)] {off}"

    assert (
        f"{head}{bold}Task is starting.{off}\n{head}plain\n{head}{bad}Task failed.{off}\n"
    ) == text


def test_a_line_of_the_system_ends_the_colour_of_its_time() -> None:
    text = printed(RunEnded(AT, RUN, RunState.SUCCEEDED), colors=True)

    assert f"\x1b[35m{STAMP} \x1b[0m\x1b[1mDone!\x1b[0m\n" == text


# ------------------------------------------------------------ progress in words


def progress(**counts: dict[str, int]) -> Progress:
    none: dict[str, int] = {}
    return Progress(
        AT,
        RUN,
        counts.get("running", none),
        counts.get("done", none),
        counts.get("failed", none),
        counts.get("queued", none),
        tuple(counts.get("unstarted", none)),
    )


@pytest.mark.parametrize(
    ("event", "lines"),
    [
        (progress(), ["No tasks are running.", "No tasks are waiting in the queue."]),
        (
            progress(running={"a": 2}, done={"a": 5}, unstarted={"b": 0, "end": 0}),
            [
                "2 tasks are running: a (2 running; 5 done).",
                "No tasks are waiting in the queue.",
                "2 steps have not started: b, end.",
            ],
        ),
        (
            progress(running={"a": 1}, failed={"a": 3}, queued={"a": 1}, unstarted={"end": 0}),
            [
                "1 task is running: a (1 running; 0 done; 3 failed).",
                "1 task is waiting in the queue: a (1).",
                "end step has not started",
            ],
        ),
    ],
)
def test_progress_is_reported_in_up_to_three_sentences(event: Progress, lines: list[str]) -> None:
    assert lines == progress_lines(event)
    assert [f"{STAMP} {each}" for each in lines] == printed(event).splitlines()


# ------------------------------------------------------------ where it is written


class Refusing(io.RawIOBase):
    """A stream that accepts `room` bytes, three at a time, and then fails."""

    def __init__(self, room: int, error: int) -> None:
        self.taken = b""
        self._room = room
        self._error = error

    def writable(self) -> bool:
        return True

    def write(self, data: Sequence[int]) -> int:  # type: ignore[override]
        if len(self.taken) >= self._room:
            raise OSError(self._error, os.strerror(self._error))
        piece = bytes(data)[: min(3, self._room - len(self.taken))]
        self.taken += piece
        return len(piece)


def test_a_stream_that_takes_little_at_a_time_gets_all() -> None:
    out = Refusing(10_000, errno.ENOSPC)
    Console(out).watch([line(b"hello")])  # type: ignore[arg-type]

    assert f"{HEAD}hello\n".encode() == out.taken


def test_a_reader_that_has_gone_away_is_no_news(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(Refusing(4, errno.EPIPE))  # type: ignore[arg-type]
    console.watch([line(b"hello")])
    console.watch([line(b"hello again")])

    assert "" == capsys.readouterr().err


def test_a_full_disk_under_stdout_is_reported_once(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(Refusing(4, errno.ENOSPC))  # type: ignore[arg-type]
    console.watch([line(b"hello")])
    console.watch([line(b"hello again")])

    assert 1 == capsys.readouterr().err.count("No space left on device")


def test_a_pipe_that_does_not_block_gets_all() -> None:
    script = (
        "import os, sys\n"
        "from aflow.cli.run_log import Console\n"
        "from aflow.runs.events import LogLine\n"
        "os.set_blocking(1, False)\n"
        "lines = [LogLine(0.0, '1', 's', 1, None, 'stdout', b'x' * 100) for _ in range(5000)]\n"
        "Console(sys.stdout.buffer).watch(lines)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, env=os.environ
    )

    assert 5000 == result.stdout.count(b"x" * 100 + b"\n")
