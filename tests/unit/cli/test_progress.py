"""The progress bars at the bottom of the terminal: their counts and texts, and an intact log."""

from __future__ import annotations

import io
import re

import pyte
import pytest

from aflow import FlowSpec, step
from aflow.cli.progress import ASCII, UNICODE, ProgressBars, Tally, last_line
from aflow.cli.run_log import Above, Console
from aflow.flow.graph import Graph
from aflow.flow.spec import define
from aflow.runs.events import (
    LogLine,
    RunEnded,
    RunEvent,
    RunStarting,
    RunStopping,
    TaskEnded,
    TaskReused,
    TaskStarting,
)
from aflow.scheduler.states import RunState


class WideFlow(FlowSpec):
    @step
    def start(self):
        self.xs = [1, 2, 3]
        self.next(self.work, foreach="xs")

    @step
    def work(self):
        self.next(self.more)

    @step
    def more(self):
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass


GRAPH: Graph = define(WideFlow).graph
BEGUN = RunStarting(0.0, "WideFlow", "1")
SLOT = "a slot (--max-workers 2)"


def begun(step: str, task: int, at: float = 0.0, attempt: int = 0) -> RunEvent:
    return TaskStarting(at, "1", step, task, attempt, 42)


def done(step: str, task: int, splits: int | None = None, at: float = 0.0) -> RunEvent:
    return TaskEnded(at, "1", step, task, 0, 42, "succeeded", splits=splits)


def failed(step: str, task: int, at: float = 0.0, retry_at: float | None = None) -> RunEvent:
    return TaskEnded(at, "1", step, task, 0, 42, "failed", "no", retry_at)


def lines(
    *events: RunEvent, now: float = 0.0, columns: int = 101, rows: int = 30, colors: bool = False
) -> list[str]:
    tally = Tally(GRAPH)
    tally.count([BEGUN, *events])
    bars = ProgressBars(tally, colors=colors, signs=ASCII, waits_for=SLOT)
    return bars.lines(now, columns, rows)


def counts(drawn: list[str]) -> list[tuple[str, str]]:
    """Return step and `done/total` of each bar."""
    found = [re.match(r". (\w+)\s+[#-]*\s*(\d+/\d+)", each) for each in drawn]
    return [(each[1], each[2]) for each in found if each]


def test_a_step_has_a_bar_from_its_first_task_on() -> None:
    assert [("start", "0/1")] == counts(lines(begun("start", 1)))


def test_the_tasks_of_a_foreach_are_expected_all() -> None:
    opened = begun("start", 1), done("start", 1, splits=3)
    assert [("start", "1/1"), ("work", "0/3"), ("more", "0/3")] == counts(lines(*opened))
    assert [("start", "1/1"), ("work", "1/3"), ("more", "0/3")] == counts(
        lines(*opened, begun("work", 2), done("work", 2), begun("more", 3))
    )


def test_a_join_is_expected_once_for_each_that_opened_it() -> None:
    assert [("join", "0/1"), ("end", "0/1")] == counts(lines(begun("join", 9), begun("end", 10)))


def test_a_second_attempt_is_no_second_task_and_is_awaited() -> None:
    again = lines(begun("start", 1), failed("start", 1, 1.0, retry_at=31.0), now=11.0)
    assert "0:11  start tried again in 0:20" == again[-1]
    (bar, *_) = lines(
        begun("start", 1), failed("start", 1, retry_at=9.0), begun("start", 1, attempt=1)
    )
    assert [("start", "0/1")] == counts([bar])
    assert "1 tried again" in bar
    assert "failed" not in bar


def test_a_bar_says_what_has_failed_how_fast_it_goes_and_how_long_it_takes() -> None:
    opened = [begun("start", 1), done("start", 1, splits=3)]
    ends = [begun("work", 2), done("work", 2, at=10.0), begun("work", 3, 10.0), begun("work", 4)]
    drawn = lines(*opened, *ends, now=20.0)
    assert re.search(r"1/3  0:40 left  3\.0/min  2 running$", drawn[1])
    drawn = lines(*opened, *ends, failed("work", 3, 20.0), now=20.0)
    assert drawn[1].startswith("! work ")
    assert re.search(r"1/3  1 failed  0:20 left  3\.0/min$", drawn[1])


def test_results_that_are_reused_are_counted_apart() -> None:
    (bar, *_) = lines(TaskReused(0.0, "1", "start", 1, "0/start/1"))
    assert [("start", "1/1")] == counts([bar])
    assert bar.endswith("1 reused")


def test_the_last_line_says_how_long_it_takes_and_what_is_waited_for() -> None:
    opened = [begun("start", 1), done("start", 1, splits=3)]
    assert "1:05  3 waiting for a slot (--max-workers 2)" == lines(*opened, now=65.0)[-1]
    assert "1:01:05" == lines(begun("start", 1), now=3665.0)[-1]
    assert "0:09  waiting for a slot (--max-workers 2)" == lines(now=9.0)[-1]
    stopping = RunStopping(1.0, "1", "enough", 1)
    assert "0:02  stopping, 1 still running" == lines(begun("start", 1), stopping, now=2.0)[-1]


@pytest.mark.parametrize("columns", [17, 20, 39, 41, 60, 80, 101, 300])
def test_no_line_is_wider_than_the_terminal(columns: int) -> None:
    events = [begun("start", 1), done("start", 1, splits=3), begun("work", 2), failed("work", 2)]
    for line in lines(*events, now=100_000.0, columns=columns):
        assert len(line) < min(columns, 101)
        assert line == line.rstrip()


def test_a_terminal_that_is_too_small_has_no_bars() -> None:
    assert [] == lines(begun("start", 1), columns=16)
    assert [] == lines(begun("start", 1), rows=4)


def test_a_flow_with_more_steps_than_lines_shows_those_that_run() -> None:
    drawn = lines(
        begun("start", 1), done("start", 1), begun("work", 2), done("work", 2),
        begun("more", 3), begun("join", 4), rows=6,
    )  # fmt: skip
    assert [("more", "0/1"), ("join", "0/1")] == counts(drawn)
    assert drawn[-1].endswith("2 more steps")


def test_colours_are_left_out_where_they_are_not_wanted() -> None:
    events = [begun("start", 1), done("start", 1, splits=3), begun("work", 2), failed("work", 2)]
    plain, coloured = lines(*events), lines(*events, colors=True)
    assert not any("\x1b" in line for line in plain)
    assert plain == [re.sub(r"\x1b\[\d+m", "", line).rstrip() for line in coloured]
    assert "\x1b[31m1 failed" in coloured[1]


def test_a_run_that_has_ended_has_no_bars_and_one_line() -> None:
    events = [begun("start", 1), done("start", 1, splits=3), begun("work", 2), failed("work", 2)]
    ended = RunEnded(65.0, "1", RunState.FAILED, "no", "work", 2)
    assert [] == lines(*events, ended)
    tally = Tally(GRAPH)
    tally.count([BEGUN, *events, ended])
    assert "! failed after 1:05, 1 task done, 1 failed (work): aflow logs F/1" == last_line(
        tally, ended, "aflow logs F/1", ASCII
    )


# ------------------------------------------------------------------ on a terminal


class Terminal:
    """A console with bars on a terminal of 80 columns and 12 rows."""

    def __init__(self) -> None:
        self.out = io.BytesIO()
        self.err = io.StringIO()
        self.screen = pyte.HistoryScreen(80, 12, history=10_000, ratio=0.5)
        self.screen.set_mode(pyte.modes.LNM)  # as a terminal makes \r\n of \n
        self._stream = pyte.ByteStream(self.screen)
        tally = Tally(GRAPH)
        bars = ProgressBars(tally, colors=True, signs=UNICODE, waits_for=SLOT)
        self.console = Console(
            self.out, flow="F", colors=True, tally=tally, bars=bars, signs=UNICODE
        )

    def rows(self) -> list[str]:
        """Return all non-empty rows, including the scrollback."""
        self._stream.feed(self.out.getvalue())
        self.out.seek(0)
        self.out.truncate()
        above = ["".join(row[n].data for n in range(80)) for row in self.screen.history.top]
        found = [each.rstrip() for each in (*above, *self.screen.display)]
        return [each for each in found if each]

    def write(self, text: str) -> int:
        """Write to the stderr of the same terminal."""
        return self.out.write(text.encode())

    def flush(self) -> None:
        """Do nothing: there is no buffer."""


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "12")


def texts(rows: list[str]) -> list[str]:
    return [row.partition("] ")[2] for row in rows if "] " in row]


def line(text: bytes, whole: bool = True) -> LogLine:
    return LogLine(0.0, "1", "start", 1, 42, "stdout", text, whole)


def test_the_log_above_the_bars_is_whole() -> None:
    terminal = Terminal()
    terminal.console.watch([BEGUN, begun("start", 1)])
    for number in range(50):
        terminal.console.watch([line(b"line %d" % number)])
        rows = terminal.rows()
        assert ["\u25cf start", f"line {number}"] == [rows[-6][:7], texts(rows)[-1]]
    terminal.console.watch([done("start", 1), RunEnded(9.0, "1", RunState.SUCCEEDED)])
    terminal.console.conclude(RunEnded(9.0, "1", RunState.SUCCEEDED), "aflow ui F/1")

    rows = terminal.rows()
    assert [f"line {number}" for number in range(50)] == texts(rows)[1:51]
    assert not any(each in row for row in rows for each in "\u2501\u25cf\u25cb")
    assert rows[-2].endswith("Done!")
    assert "\u2714 succeeded in 0:09, 1 task done: aflow ui F/1" == rows[-1]


def test_what_others_write_to_the_terminal_stands_above_the_bars() -> None:
    terminal = Terminal()
    stderr = Above(terminal.console, terminal)
    terminal.console.watch([BEGUN, begun("start", 1), line(b"first")])
    stderr.write("Waiting for workers\n")
    stderr.write("half of a ")
    assert "half of a" == terminal.rows()[-1]  # nothing is drawn into it
    stderr.writelines(["line\n"])
    terminal.console.watch([line(b"second")])

    rows = terminal.rows()
    at = rows.index("Waiting for workers")
    assert "half of a line" == rows[at + 1]
    assert ["first", "second"] == texts(rows)[-2:]
    assert rows[-6].startswith("\u25cf start")


def test_a_line_that_is_not_whole_yet_has_no_bars_in_it() -> None:
    terminal = Terminal()
    terminal.console.watch([BEGUN, begun("start", 1), line(b"a" * 10, whole=False)])
    assert terminal.rows()[-1].endswith("a" * 10)
    terminal.console.watch([line(b"b" * 10)])
    rows = terminal.rows()
    assert rows[-7].endswith("a" * 10 + "b" * 10)
    assert rows[-6].startswith("\u25cf start")


def test_somebody_else_has_the_terminal_for_a_while() -> None:
    terminal = Terminal()
    terminal.console.watch([BEGUN, begun("start", 1)])
    terminal.console.pause()
    terminal.write("(Pdb) ")
    assert "(Pdb)" == terminal.rows()[-1]
    assert not any("\u25cf" in row for row in terminal.rows())
    terminal.write("c\n")
    terminal.console.go_on()
    rows = terminal.rows()
    assert rows[-7].startswith("(Pdb) c")
    assert rows[-6].startswith("\u25cf start")

    terminal.write("[1]+ Stopped\n")
    terminal.console.forget()  # the shell has written below the bars
    assert "[1]+ Stopped" in terminal.rows()
    terminal.console.pause()
    terminal.console.pause()
    assert "[1]+ Stopped" == terminal.rows()[-1]
