"""Progress bars of the steps of a run, at the bottom of a terminal, below the scrolling log.

`Tally` counts the events of a run, `ProgressBars` formats the bars. Both are pure: they get the
time and the size of the terminal as arguments. `cli.run_log` decides where and when bars are drawn,
so that the log itself is the same as without them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from aflow._core.records import dataclass, field
from aflow._core.wording import plural
from aflow.flow.graph import Graph, Kind
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
from aflow.scheduler.states import AttemptState, RunState

WIDEST = 100  # maximum columns of a line: making a terminal narrower does not wrap drawn lines
_NARROW = 40  # columns below which only the counts of a step are shown
_LONGEST_NAME = 24
_WINDOW = 30.0  # seconds over which the rate of a step is measured
_IDLE = 2.0  # seconds without a running task after which the reason for waiting is shown
_MOST_STEPS = 12  # maximum number of bars
_RESET = "\x1b[0m"
_FAILED = (AttemptState.FAILED, AttemptState.TIMED_OUT, AttemptState.LOST)


class Signs(NamedTuple):
    """The characters of the bars."""

    running: str
    done: str
    failed: str
    waiting: str
    full: str
    empty: str
    more: str


UNICODE = Signs("\u25cf", "\u2714", "\u2718", "\u25cb", "\u2501", "\u2500", "\u2026")
ASCII = Signs("*", "+", "!", ".", "#", "-", "~")


@dataclass(slots=True)
class _Step:
    """The counts of a step."""

    name: str
    begun: int = 0  # tasks, not attempts
    running: int = 0
    done: int = 0
    reused: int = 0  # included in `done`
    retried: int = 0  # attempts after the first of a task
    failed: set[int] = field(default_factory=set)  # tasks
    splits: int = 0  # tasks of the foreach loops that it has opened
    began_at: float | None = None
    ended_at: float | None = None
    samples: deque[tuple[float, int]] = field(default_factory=deque)  # times, with `done` then

    @property
    def over(self) -> int:
        return self.done + len(self.failed)


class Tally:
    """Counts the tasks of a run by step, from its events."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._openers = {node.join: node.name for node in graph.nodes.values() if node.join}
        self.steps: dict[str, _Step] = {name: _Step(name) for name in graph.nodes}
        self.changed_at = 0.0  # when a task last started or ended
        self.began_at: float | None = None
        self.ended_at: float | None = None
        self.stopping = ""  # the reason why the run is being stopped
        self.retries: dict[int, tuple[str, float]] = {}  # by task: its step, the time of its retry

    def count(self, events: Sequence[RunEvent]) -> None:
        """Count the events in this order.

        Args:
            events: The events since the last call.
        """
        for event in events:
            if type(event) is LogLine:  # first, because most events are log lines
                continue
            if isinstance(event, TaskStarting):
                self._starting(event)
            elif isinstance(event, TaskEnded):
                self._ended(event)
            elif isinstance(event, TaskReused):
                step = self._step(event.step)
                step.begun, step.done, step.reused = step.begun + 1, step.done + 1, step.reused + 1
                self._note(step, event.at)
            elif isinstance(event, RunStarting):
                self.began_at = self.changed_at = event.at
            elif isinstance(event, RunStopping):
                self.stopping = event.reason
            elif isinstance(event, RunEnded):
                self.ended_at = event.at

    def _step(self, name: str) -> _Step:
        step = self.steps.get(name)
        if step is None:
            step = self.steps[name] = _Step(name)
        return step

    def _starting(self, event: TaskStarting) -> None:
        step = self._step(event.step)
        self.retries.pop(event.task, None)
        if event.attempt == 0 and not event.fallback:
            step.begun += 1
        else:
            step.retried += 1
        step.failed.discard(event.task)  # it is retried, or @catch handles the failure
        step.running += 1
        if step.began_at is None:
            step.began_at = event.at
        self._note(step, event.at)

    def _ended(self, event: TaskEnded) -> None:
        step = self._step(event.step)
        step.running = max(step.running - 1, 0)
        if event.state == AttemptState.SUCCEEDED:
            step.done += 1
            step.splits += event.splits or 0
        elif event.retry_at is not None:
            self.retries[event.task] = (event.step, event.retry_at)
        elif event.state in _FAILED:
            step.failed.add(event.task)
        self._note(step, event.at)

    def _note(self, step: _Step, at: float) -> None:
        self.changed_at = step.ended_at = at
        if not step.samples or at - step.samples[-1][0] >= 1.0:
            step.samples.append((at, step.done))
        while len(step.samples) > 2 and at - step.samples[1][0] > _WINDOW:
            step.samples.popleft()

    def expected(self, name: str) -> int:
        """Return how many tasks the step will have; if that is not known, how many have started.

        Args:
            name: The name of a step.
        """
        step, first = name, self.steps[name]
        while step != self._graph.start:
            node = self._graph[step]
            if node.is_join:
                step = self._openers[step]
                continue
            before = self._graph[node.previous[0]]
            if len(node.previous) > 1 or before.kind is Kind.SWITCH:
                return first.begun
            if before.kind in (Kind.FOREACH, Kind.PARALLEL):
                return max(self.steps[before.name].splits, first.begun)
            step = before.name
        return max(1, first.begun)

    def rate(self, name: str, now: float) -> float | None:
        """Return the recent rate of the step in finished tasks per second; None if it is not known
        yet.

        Args:
            name: The name of a step.
            now: The current time, in seconds since the epoch.
        """
        step = self.steps[name]
        if len(step.samples) < 2:
            return None
        at, done = step.samples[0]
        seconds = now - at
        return (step.done - done) / seconds if seconds >= 1.0 and step.done > done else None

    def ready(self, name: str) -> int:
        """Return how many tasks of a foreach are ready but have not started; 0 outside of a
        foreach.

        Args:
            name: The name of a step.
        """
        if name not in self._graph.nodes:
            return 0
        node = self._graph[name]
        if name == self._graph.start or node.is_join:
            return 0
        before = self._graph[node.previous[0]]
        if len(node.previous) > 1 or before.kind not in (Kind.FOREACH, Kind.PARALLEL):
            return 0
        return max(self.expected(name) - self.steps[name].begun, 0)


class ProgressBars:
    """Formats the bars of a run. `waits_for` is what ready tasks wait for, such as `a slot
    (--max-workers 16)`."""

    def __init__(
        self, tally: Tally, *, colors: bool, signs: Signs = UNICODE, waits_for: str = "a slot"
    ) -> None:
        self.tally = tally
        self._colors = colors
        self._signs = signs
        self._waits_for = waits_for

    def lines(self, now: float, columns: int, rows: int) -> list[str]:
        """Return the lines of the bars for this time and this size of the terminal; none if the
        terminal is too small.

        Args:
            now: The current time, in seconds since the epoch.
            columns: The width of the terminal, in characters.
            rows: The height of the terminal, in lines.
        """
        width = min(columns - 1, WIDEST)
        most = min(rows - 4, _MOST_STEPS)
        tally = self.tally
        if width < 16 or most < 1 or tally.began_at is None or tally.ended_at is not None:
            return []
        shown, left_out = self._shown(most)
        names = max((min(len(name), _LONGEST_NAME) for name in shown), default=0)
        lines = [self._line(name, names, width, now) for name in shown]
        return [*lines, self._foot(now, width, left_out)]

    def _shown(self, most: int) -> tuple[list[str], int]:
        """Return the steps that fit, in the order of the flow, and the number of other steps that
        have started. Running steps take precedence, then failed, finished and future ones."""
        steps = self.tally.steps
        names = [*steps]

        def weight(name: str) -> int:
            step = steps[name]
            if step.running:
                return 0
            if not step.begun:
                return 4
            return 1 if step.over < self.tally.expected(name) else 2 if step.failed else 3

        chosen = sorted(names, key=lambda name: (weight(name), -names.index(name)))[:most]
        if len(names) > most:
            chosen = [name for name in chosen if steps[name].begun or self.tally.ready(name)]
        left_out = sum(1 for name in names if steps[name].begun and name not in chosen)
        return [name for name in names if name in chosen], left_out

    def _line(self, name: str, names: int, width: int, now: float) -> str:
        step, signs = self.tally.steps[name], self._signs
        total = self.tally.expected(name)
        if not step.begun:
            ready = self.tally.ready(name)
            color, sign = ("36", signs.waiting) if ready else ("2", signs.waiting)
        elif step.failed:
            color, sign = "31", signs.failed
        elif step.running or step.over < total:
            color, sign = "36", signs.running
        else:
            color, sign = "32", signs.done
        if len(name) > names:
            name = name[: names - 1] + signs.more
        counts = f"{step.done}/{total}" if step.begun or total > 1 else ""
        head = f"{sign} {name:<{names}} "
        if width < _NARROW or not step.begun:
            return self._painted(color, f"{head}{counts}"[:width].rstrip())
        room = width - len(head) - 1
        bar = min(30, max(10, room // 3))
        parts = [counts, *self._facts(step, total, now)]
        text = "  ".join(parts)
        while len(parts) > 1 and bar + 1 + len(text) > room:
            parts.pop()
            text = "  ".join(parts)
        text = text[: max(room - bar - 1, 0)]
        return (
            self._painted(color, head)
            + self._bar(step, total, bar)
            + " "
            + self._painted_facts(text, step)
        ).rstrip()

    def _facts(self, step: _Step, total: int, now: float) -> Iterator[str]:
        """Yield details of a step, the most important first."""
        if step.failed:
            yield f"{len(step.failed)} failed"
        is_over = not step.running and step.over >= total
        rate = None if is_over else self.tally.rate(step.name, now)
        if rate is not None and total > step.over:
            yield f"{_span((total - step.over) / rate)} left"
        elif step.began_at is not None:
            until = (step.ended_at if is_over else None) or now
            yield _span(max(until - step.began_at, 0.0))
        if rate is not None:
            yield _rate(rate)
        if step.running > 1:
            yield f"{step.running} running"
        if step.retried:
            yield f"{step.retried} tried again"
        if step.reused:
            yield f"{step.reused} reused"

    def _bar(self, step: _Step, total: int, width: int) -> str:
        signs = self._signs
        whole = max(total, 1)
        failed = -(-len(step.failed) * width // whole) if step.failed else 0
        done = min(step.done * width // whole, width - failed)
        return (
            self._painted("32" if step.done >= whole else "36", signs.full * done)
            + self._painted("31", signs.full * failed)
            + self._painted("2", signs.empty * (width - done - failed))
        )

    def _foot(self, now: float, width: int, left_out: int) -> str:
        """Return the line below the bars: the duration of the run, and what it waits for."""
        tally = self.tally
        assert tally.began_at is not None, "there are no lines before"
        parts = [_span(max(now - tally.began_at, 0.0))]
        running = sum(step.running for step in tally.steps.values())
        ready = sum(tally.ready(name) for name in tally.steps)
        if tally.stopping:
            parts.append(f"stopping, {running} still running")
        elif ready:
            parts.append(f"{ready} waiting for {self._waits_for}")
        elif not running and not tally.retries and now - tally.changed_at >= _IDLE:
            parts.append(f"waiting for {self._waits_for}")
        if tally.retries and not tally.stopping:
            step, at = min(tally.retries.values(), key=lambda each: each[1])
            others = f" and {len(tally.retries) - 1} more" if len(tally.retries) > 1 else ""
            parts.append(f"{step}{others} tried again in {_span(max(at - now, 0.0))}")
        if left_out:
            parts.append(plural(left_out, "more step"))
        text = "  ".join(parts)
        if len(text) > width:
            text = text[: width - 1] + self._signs.more
        return self._painted("2", text)

    def _painted_facts(self, text: str, step: _Step) -> str:
        if not step.failed or not self._colors:
            return text
        what = f"{len(step.failed)} failed"
        return text.replace(what, f"\x1b[31m{what}{_RESET}", 1)

    def _painted(self, color: str, text: str) -> str:
        return f"\x1b[{color}m{text}{_RESET}" if self._colors and text else text


def last_line(tally: Tally, ended: RunEnded, further: str, signs: Signs) -> str:
    """Return the last line about a run: its outcome, its duration, its counts, and the command that
    shows more.

    Args:
        tally: The counts of the run's tasks.
        ended: The last event of the run.
        further: The command that shows more; "" for none.
        signs: The characters for success and failure that the terminal can show.
    """
    done = sum(step.done for step in tally.steps.values())
    reused = sum(step.reused for step in tally.steps.values())
    failed = sum(len(step.failed) for step in tally.steps.values())
    parts = [f"{plural(done, 'task')} done"]
    if reused:
        parts.append(f"{reused} of them reused")
    if failed:
        steps = [name for name, step in tally.steps.items() if step.failed]
        parts.append(f"{failed} failed ({', '.join(steps[:3])}{', ...' if len(steps) > 3 else ''})")
    succeeded = ended.state is RunState.SUCCEEDED
    how = {RunState.SUCCEEDED: "succeeded in", RunState.CANCELLED: "stopped after"}
    began_at = ended.at if tally.began_at is None else tally.began_at
    took = _span(max(ended.at - began_at, 0.0))
    return (
        f"{signs.done if succeeded else signs.failed} {how.get(ended.state, 'failed after')} "
        f"{took}, {', '.join(parts)}: {further}"
    )


def _span(seconds: float) -> str:
    """Format a duration: `0:07`, `12:30`, `1:02:03`."""
    whole = int(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _rate(a_second: float) -> str:
    """Format a rate: `12/s`, `3.2/min`, `5.0/h`."""
    value, unit = a_second, "s"
    if value < 1:
        value, unit = value * 60, "min"
    if value < 1:
        value, unit = value * 60, "h"
    return f"{value:.0f}/{unit}" if value >= 10 else f"{value:.1f}/{unit}"
