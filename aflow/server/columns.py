"""The tasks of a run as columns: what a timeline, statistics and sorted tables are made of.

A hundred thousand tasks are read from the metadata once; from then on only those whose latest
attempt was written since. The columns of a few runs are kept, the least used one is forgotten.

Format of `encode` (little endian): 4 bytes length of a header, the header (JSON, padded with
spaces so that the columns begin at a multiple of 8 bytes), then the columns, each padded to a
multiple of 8 bytes: task (u32), ready, start, end (f32, seconds after `base`, NaN for none), step
(u16, place in `steps`), worker (u16, place in `workers`), state (u8, place in `states`), flags (u8:
1 its result was reused, 2 it has had several attempts).
"""

from __future__ import annotations

import json
import sys
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterable
from math import isnan, nan
from typing import TYPE_CHECKING, NamedTuple

from aflow.metadata.base import TASK_STATES
from aflow.scheduler.states import TaskState

if TYPE_CHECKING:
    from aflow.metadata.base import MetadataStore, RunRecord, TaskColumns

STATES = tuple(state.value for state in TaskState)
REUSED, RETRIED = 1, 2
_PLACES = {state: STATES.index(TASK_STATES[state].value) for state in TASK_STATES}
_KEPT = 4_000_000  # tasks of all runs that are kept together
_MOST_NAMES = 65_535  # of steps, and of workers


class Durations(NamedTuple):
    """Seconds that the ended tasks of a step took: half of them at most `median`, and so on."""

    median: float
    p95: float
    longest: float


class Columns:
    """The columns of one run; rows stand in the order in which tasks were first seen."""

    def __init__(self, base: float) -> None:
        self.base = base
        self.version = 0
        self.steps: dict[str, int] = {}
        self.workers: dict[str, int] = {}
        self._row_of: dict[int, int] = {}
        self.task = array("I")
        self.ready, self.start, self.end = array("f"), array("f"), array("f")
        self.step, self.worker = array("H"), array("H")
        self.state, self.flags = array("B"), array("B")

    def __len__(self) -> int:
        return len(self.task)

    def update(self, found: Iterable[TaskColumns]) -> list[int]:
        """Take in tasks as they are now; their rows."""
        return [self._put(each) for each in found]

    def _put(self, each: TaskColumns) -> int:
        row = self._row_of.get(each.task)
        if row is None:
            row = self._row_of[each.task] = len(self.task)
            self.task.append(each.task)
            for times in (self.ready, self.start, self.end):
                times.append(nan)
            for places in (self.step, self.worker, self.state, self.flags):
                places.append(0)
        self.ready[row] = each.created_at - self.base
        self.start[row] = nan if each.started_at is None else each.started_at - self.base
        self.end[row] = nan if each.finished_at is None else each.finished_at - self.base
        self.step[row] = _place(self.steps, each.step)
        self.worker[row] = _place(self.workers, f"{each.host}:{each.pid}" if each.pid else "")
        self.state[row] = _PLACES[each.state]
        self.flags[row] = (REUSED if each.reused else 0) | (RETRIED if each.attempt else 0)
        return row

    def encode(self, rows: list[int] | None = None) -> bytes:
        """All rows, or these, as bytes; see the module's text."""
        names = {"version": self.version, "base": self.base, "states": STATES}
        count = len(self) if rows is None else len(rows)
        head = {**names, "steps": [*self.steps], "workers": [*self.workers], "count": count}
        header = json.dumps(head).encode()
        header += b" " * (-(4 + len(header)) % 8)
        parts = [len(header).to_bytes(4, "little"), header]
        for column in (
            self.task, self.ready, self.start, self.end, self.step, self.worker,
            self.state, self.flags,
        ):  # fmt: skip
            chosen = column if rows is None else array(column.typecode, (column[r] for r in rows))
            if sys.byteorder == "big":
                chosen = array(chosen.typecode, chosen)
                chosen.byteswap()
            data = chosen.tobytes()
            parts += [data, bytes(-len(data) % 8)]
        return b"".join(parts)

    def durations(self) -> dict[str, Durations]:
        """By step, how long its tasks took that have ended and were not reused."""
        by_step: list[array[float]] = [array("d") for _ in self.steps]
        for row, step in enumerate(self.step):
            took = self.end[row] - self.start[row]
            if not isnan(took) and not self.flags[row] & REUSED:
                by_step[step].append(took)
        found = {}
        for name, place in self.steps.items():
            values = sorted(by_step[place])
            if values:
                last = len(values) - 1
                found[name] = Durations(values[last // 2], values[round(last * 0.95)], values[-1])
        return found

    def waits(self) -> dict[str, float]:
        """By step, the median of seconds from when a task was ready to its latest start."""
        by_step: dict[int, list[float]] = {}
        for row, step in enumerate(self.step):
            wait = self.start[row] - self.ready[row]
            if not isnan(wait) and not self.flags[row]:
                by_step.setdefault(step, []).append(max(0.0, wait))
        names = [*self.steps]
        return {names[step]: sorted(w)[(len(w) - 1) // 2] for step, w in by_step.items()}

    def flagged(self, flag: int) -> dict[str, int]:
        """By step, how many of its tasks have this flag."""
        counts = [0] * len(self.steps)
        for row, flags in enumerate(self.flags):
            if flags & flag:
                counts[self.step[row]] += 1
        return {name: counts[place] for name, place in self.steps.items() if counts[place]}

    def page(
        self, step: str | None, state: str | None, sort: str, offset: int, limit: int
    ) -> tuple[int, list[int]]:
        """How many tasks there are of this step and in this state, and the numbers of some of them,
        sorted by `task`, `started`, `duration` or `wait`, `-` before it for the largest first."""
        rows: Iterable[int] = range(len(self))
        if step is not None:
            place = self.steps.get(step, -1)
            rows = [row for row in rows if self.step[row] == place]
        if state is not None:
            at = STATES.index(state)
            rows = [row for row in rows if self.state[row] == at]
        name, backwards = sort.removeprefix("-"), sort.startswith("-")
        chosen = sorted(rows, key=lambda row: self._sort_key(row, name), reverse=backwards)
        return len(chosen), [self.task[row] for row in chosen[offset : offset + limit]]

    def _sort_key(self, row: int, name: str) -> tuple[float, int]:
        value = 0.0
        if name == "started":
            value = self.start[row]
        elif name == "duration":
            value = self.end[row] - self.start[row]
        elif name == "wait":
            value = self.start[row] - self.ready[row]
        # NaN compares with nothing: a task without a time comes before all others.
        return (-1.0 if isnan(value) else value, self.task[row])


def _place(names: dict[str, int], name: str) -> int:
    place = names.get(name)
    if place is None:
        place = len(names)
        if place > _MOST_NAMES:
            return _MOST_NAMES
        names[name] = place
    return place


class ColumnsCache:
    """The columns of the runs that were asked for last. Safe from many threads."""

    def __init__(self, metadata: MetadataStore) -> None:
        self._metadata = metadata
        self._lock = threading.Lock()
        self._found: OrderedDict[int, tuple[threading.Lock, Columns]] = OrderedDict()

    def read(self, run: RunRecord, since: int | None = None) -> bytes:
        """The columns of a run as bytes: all of them, or the rows that changed after its version
        `since`."""
        lock, columns = self._entry(run)
        with lock:
            self._refresh(columns, run)
            if since is None or since > columns.version:
                return columns.encode()
            if since == columns.version:
                return columns.encode([])
            # Read again from the metadata: the cache does not keep when each row has changed.
            return columns.encode(columns.update(self._metadata.task_columns(run.key, since)))

    def columns(self, run: RunRecord) -> Columns:
        """The columns as they are now, to be read at once: another thread may bring them up to
        date."""
        lock, columns = self._entry(run)
        with lock:
            self._refresh(columns, run)
        return columns

    def _entry(self, run: RunRecord) -> tuple[threading.Lock, Columns]:
        with self._lock:
            entry = self._found.pop(run.key, None) or (threading.Lock(), Columns(run.created_at))
            self._found[run.key] = entry
            while len(self._found) > 1 and sum(len(c) for _, c in self._found.values()) > _KEPT:
                self._found.popitem(last=False)
            return entry

    def _refresh(self, columns: Columns, run: RunRecord) -> None:
        if columns.version < run.version:
            # The run's version was read before its tasks: what is written meanwhile comes again.
            columns.update(self._metadata.task_columns(run.key, columns.version))
            columns.version = run.version
