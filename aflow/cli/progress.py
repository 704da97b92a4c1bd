"""`--progress`: one bar a step at the foot of the terminal, above which the log scrolls.

rich draws the bars; where they stand is decided here, so that the log itself is written as it is
without them, byte for byte. Each batch of notices erases the bars, adds its lines and draws again.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from aflow.flow.graph import Graph, Kind
from aflow.runs.notices import Notice, RunEnded, TaskEnded, TaskStarting
from aflow.scheduler.states import AttemptState

_DRAWS_A_SECOND = 20


class ProgressBars:
    """The bars of one run on one terminal."""

    def __init__(self, graph: Graph, *, colors: bool) -> None:
        self._graph = graph
        self._openers = {node.join: node.name for node in graph.nodes.values() if node.join}
        self._colors = colors
        self._begun: Counter[str] = Counter()
        self._done: Counter[str] = Counter()
        self._splits: Counter[str] = Counter()  # items that the foreach steps have opened
        self._height = 0
        self._drawn = b""
        self._second = -1
        self._draws = 0

    def erase(self) -> bytes:
        """What takes the bars off the terminal."""
        height, self._height = self._height, 0
        return b"\x1b[%dF\x1b[J" % height if height else b""

    def draw(self, notices: Sequence[Notice]) -> bytes:
        """What puts the bars there, after these notices.

        They are computed anew at most 20 times a second: a storm of short tasks is not to pay
        for them. The end of the run is always shown.
        """
        for notice in notices:
            self._count(notice)
        if notices and self._is_time(notices[-1]):
            self._drawn = self._bars()
        self._height = self._drawn.count(b"\n")
        return self._drawn

    def _is_time(self, notice: Notice) -> bool:
        if int(notice.at) != self._second:
            self._second, self._draws = int(notice.at), 0
        self._draws += 1
        return self._draws <= _DRAWS_A_SECOND or type(notice) is RunEnded

    def _count(self, notice: Notice) -> None:
        if type(notice) is TaskStarting:
            self._begun[notice.step] += notice.attempt == 0
        elif type(notice) is TaskEnded and notice.state == AttemptState.SUCCEEDED:
            self._done[notice.step] += 1
            self._splits[notice.step] += notice.splits or 0

    def _bars(self) -> bytes:
        size = shutil.get_terminal_size()
        console = Console(
            width=size.columns,
            force_terminal=self._colors,
            no_color=not self._colors,
            legacy_windows=False,
        )
        bars = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), console=console
        )
        for step in self._shown(size.lines - 2):
            total = max(self._expected(step), self._begun[step])
            bars.add_task(step, total=total, completed=self._done[step])
        with console.capture() as captured:
            console.print(bars.get_renderable())
        return captured.get().encode() if bars.tasks else b""

    def _shown(self, limit: int) -> list[str]:
        """The steps that have begun; the unfinished ones alone where not all fit."""
        begun = [step for step in self._graph.nodes if self._begun[step]]
        if len(begun) > limit:
            begun = [step for step in begun if self._done[step] < self._begun[step]]
        return begun[-max(limit, 1) :]

    def _expected(self, step: str) -> int:
        """How many tasks the step will have, as far as is known; 0 where a switch decides."""
        while step != self._graph.start:
            node = self._graph[step]
            if node.is_join:
                step = self._openers[step]
                continue
            before = self._graph[node.previous[0]]
            if len(node.previous) > 1 or before.kind is Kind.SWITCH:
                return 0
            if before.kind in (Kind.FOREACH, Kind.PARALLEL):
                return self._splits[before.name]
            step = before.name
        return 1
