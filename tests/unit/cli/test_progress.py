"""The bars at the foot of the terminal: what they count, and that the log is not touched."""

from __future__ import annotations

import io
import re

import pytest

from aflow import FlowSpec, step
from aflow.cli.console import Console
from aflow.cli.progress import ProgressBars
from aflow.flow.graph import Graph
from aflow.flow.spec import define
from aflow.runs.notices import LogLine, Notice, RunEnded, TaskEnded, TaskStarting
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


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")


def begun(step: str, task: int, at: float = 0.0) -> TaskStarting:
    return TaskStarting(at, "1", step, task, 0, 42)


def done(step: str, task: int, splits: int | None = None, at: float = 0.0) -> TaskEnded:
    return TaskEnded(at, "1", step, task, 0, 42, "succeeded", splits=splits)


def counts(drawn: bytes) -> list[tuple[str, str]]:
    """Step and `done/total` of each bar."""
    found = re.findall(r"^(\w+)\s.*?(\d+/\d+)", drawn.decode(), re.MULTILINE)
    return [(step, count) for step, count in found]


def drawn(*notices: Notice) -> list[tuple[str, str]]:
    return counts(ProgressBars(GRAPH, colors=False).draw(notices))


def test_a_step_has_a_bar_from_its_first_task_on() -> None:
    assert [("start", "0/1")] == drawn(begun("start", 1))


def test_the_tasks_of_a_foreach_are_expected_all() -> None:
    assert [("start", "1/1"), ("work", "1/3"), ("more", "0/3")] == drawn(
        begun("start", 1),
        done("start", 1, splits=3),
        begun("work", 2),
        done("work", 2),
        begun("more", 3),
    )


def test_a_join_is_expected_once_for_each_that_opened_it() -> None:
    assert [("join", "0/1"), ("end", "0/1")] == drawn(begun("join", 9), begun("end", 10))


def test_a_second_attempt_is_no_second_task() -> None:
    retried = TaskStarting(0.0, "1", "start", 1, 1, 43)

    assert [("start", "0/1")] == drawn(begun("start", 1), retried)


def test_bars_that_were_drawn_are_erased_line_by_line() -> None:
    bars = ProgressBars(GRAPH, colors=False)
    assert b"" == bars.erase()
    assert 2 == bars.draw([begun("start", 1), begun("work", 2)]).count(b"\n")

    assert b"\x1b[2F\x1b[J" == bars.erase()
    assert b"" == bars.erase()


def test_a_storm_of_tasks_draws_twenty_times_a_second_and_at_the_end() -> None:
    bars = ProgressBars(GRAPH, colors=False)
    pictures = [bars.draw([begun("work", number)]) for number in range(50)]
    last = bars.draw([RunEnded(0.5, "1", RunState.SUCCEEDED)])

    assert [("work", "0/20")] == counts(pictures[-1])
    assert [("work", "0/50")] == counts(last)


def test_a_flow_with_more_steps_than_lines_shows_those_that_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LINES", "4")

    assert [("more", "0/1"), ("join", "0/1")] == drawn(
        begun("start", 1),
        done("start", 1),
        begun("work", 2),
        done("work", 2),
        begun("more", 3),
        begun("join", 4),
    )


def test_the_log_above_the_bars_is_whole() -> None:
    out = io.BytesIO()
    console = Console(out, bars=ProgressBars(GRAPH, colors=False))
    for number in range(3):
        text = b"\xff line %d" % number
        console.watch([begun("start", 1), LogLine(0.0, "1", "start", 1, 42, "stdout", text)])

    # Without control sequences and bars, what is left is what a run without bars prints.
    shown = re.sub(rb"\x1b\[\d*[FJ]", b"", out.getvalue())
    assert 3 == shown.count(b"] \xff line ")
    assert 2 == out.getvalue().count(b"\x1b[1F\x1b[J")
