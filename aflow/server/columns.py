"""The tasks of a run as columns, for timelines, statistics and sorted tables.

All tasks are read from the metadata once; later reads fetch only tasks whose latest attempt has
changed since. The columns of the most recently used runs are cached, together with the statistics
of their steps and the order of sorted tables, which are valid until the run changes.

Format of `encode` (little endian): 4 bytes with the length of the header, the header (JSON, padded
with spaces so that the columns start at a multiple of 8 bytes), then the columns, each padded to a
multiple of 8 bytes: task (u32), ready, start, end (f32, seconds after `base`, NaN for none), step
(u16, index into `steps`), worker (u16, index into `workers`), state (u8, index into `states`),
flags (u8: 1 the result was reused, 2 the task was retried).
"""

from __future__ import annotations

import heapq
import json
import sys
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from itertools import islice
from math import nan
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from aflow.metadata.base import TASK_STATES
from aflow.scheduler.states import TERMINAL_RUN_STATES, TaskState

if TYPE_CHECKING:
    from aflow._core.clock import Clock
    from aflow.metadata.base import MetadataStore, RunRecord, TaskColumns

T = TypeVar("T")

STATES = tuple(state.value for state in TaskState)
REUSED, RETRIED = 1, 2
_PLACES = {state: STATES.index(TASK_STATES[state].value) for state in TASK_STATES}
_KEPT = 4_000_000  # tasks in the cache, over all runs
_CHUNK = 500  # tasks converted at a time: few enough not to trigger a garbage collection
_ORDERS = 4  # sorted tables of a run whose order is cached
_SHARE = 20  # statistics of an active run take at most 1/20 of the time
_MOST_NAMES = 65_535  # distinct steps, and distinct workers
_COLUMNS = ("task", "ready", "start", "end", "step", "worker", "state", "flags")


class StepFigures(NamedTuple):
    """Statistics of the tasks of a step, times in seconds.

    `median`, `p95` and `longest` are run times of finished tasks; `wait` is the median time from
    ready to start. `retried` and `reused` count tasks. A time is None if there are no samples."""

    median: float | None
    p95: float | None
    longest: float | None
    wait: float | None
    retried: int
    reused: int


class Columns:
    """The columns of one run; its rows are in the order in which tasks were first read."""

    def __init__(self, base: float) -> None:
        self.base = base
        self.version = 0
        self.steps: dict[str, int] = {}
        self.workers: dict[tuple[str, int | None], int] = {}
        self.task = array("I")
        self.ready, self.start, self.end = array("f"), array("f"), array("f")
        self.step, self.worker = array("H"), array("H")
        self.state, self.flags = array("B"), array("B")
        self._row_of: dict[int, int] | None = None  # built at the first update of an existing task
        self._orders: OrderedDict[tuple[Any, ...], Sequence[int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self.task)

    def update(self, found: Iterable[TaskColumns]) -> list[int]:
        """Update the rows of tasks that have changed, and add rows for new tasks.

        Args:
            found: The changed tasks; all tasks of the run if the columns are empty.

        Returns:
            The row numbers of these tasks.
        """
        self._orders.clear()
        if not len(self):
            self._fill(found)
            return [*range(len(self))]
        if self._row_of is None:
            self._row_of = {task: row for row, task in enumerate(self.task)}
        return [self._put(each, self._row_of) for each in found]

    def _fill(self, found: Iterable[TaskColumns]) -> None:
        """Add all tasks of a run, column by column with calls that loop in C: opening the page of a
        run with a million tasks waits for this."""
        base, steps, workers = self.base, self.steps, self.workers
        rows = iter(found)
        while chunk := [*islice(rows, _CHUNK)]:
            task, step, ready, start, end, state, attempt, reused, host, pid = zip(
                *chunk, strict=True
            )
            self.task.extend(task)
            self.ready.extend([at - base for at in ready])
            self.start.extend(_since(base, start))
            self.end.extend(_since(base, end))
            step_at = {name: _place(steps, name) for name in dict.fromkeys(step)}
            self.step.extend(map(step_at.__getitem__, step))
            places = [*zip(host, pid, strict=True)]
            worker_at = {place: _place(workers, place) for place in dict.fromkeys(places)}
            self.worker.extend(map(worker_at.__getitem__, places))
            self.state.frombytes(bytes(map(_PLACES.__getitem__, state)))
            if any(attempt) or any(reused):
                self.flags.frombytes(bytes(map(_flags, reused, attempt)))
            else:
                self.flags.frombytes(bytes(len(chunk)))

    def _put(self, each: TaskColumns, row_of: dict[int, int]) -> int:
        row = row_of.get(each.task)
        if row is None:
            row = row_of[each.task] = len(self.task)
            self.task.append(each.task)
            for times in (self.ready, self.start, self.end):
                times.append(nan)
            for places in (self.step, self.worker, self.state, self.flags):
                places.append(0)
        self.ready[row] = each.created_at - self.base
        self.start[row] = nan if each.started_at is None else each.started_at - self.base
        self.end[row] = nan if each.finished_at is None else each.finished_at - self.base
        self.step[row] = _place(self.steps, each.step)
        self.worker[row] = _place(self.workers, (each.host, each.pid))
        self.state[row] = _PLACES[each.state]
        self.flags[row] = _flags(each.reused, each.attempt)
        return row

    def encode(self, rows: list[int] | None = None) -> bytes:
        """Return the rows in the binary format described in the module's docstring.

        Args:
            rows: The row numbers; None for all.
        """
        names = {"version": self.version, "base": self.base, "states": STATES}
        count = len(self) if rows is None else len(rows)
        names_of = [f"{host}:{pid}" if pid else "" for host, pid in self.workers]
        head = {**names, "steps": [*self.steps], "workers": names_of, "count": count}
        header = json.dumps(head).encode()
        header += b" " * (-(4 + len(header)) % 8)
        parts = [len(header).to_bytes(4, "little"), header]
        for column in (getattr(self, name) for name in _COLUMNS):
            chosen = column if rows is None else array(column.typecode, (column[r] for r in rows))
            if sys.byteorder == "big":
                chosen = array(chosen.typecode, chosen)
                chosen.byteswap()
            data = chosen.tobytes()
            parts += [data, bytes(-len(data) % 8)]
        return b"".join(parts)

    def copy(self) -> Columns:
        """Return a copy, for callers that must not hold the lock for long."""
        made = Columns(self.base)
        for name in ("version", "steps", "workers", *_COLUMNS):
            setattr(made, name, copy(getattr(self, name)))
        return made

    def figures(self) -> dict[str, StepFigures]:
        """Return the statistics of each step, computed in one pass over the tasks."""
        took: list[array[float]] = [array("d") for _ in self.steps]
        waits: list[array[float]] = [array("d") for _ in self.steps]
        retried, reused = [0] * len(self.steps), [0] * len(self.steps)
        for step, ready, start, end, flags in zip(
            self.step, self.ready, self.start, self.end, self.flags, strict=True
        ):
            if flags & REUSED:
                reused[step] += 1
                continue
            if flags:
                retried[step] += 1
            elif start == start:  # not NaN
                waits[step].append(start - ready if start > ready else 0.0)
            if end == end and start == start:
                took[step].append(end - start)
        return {
            name: StepFigures(
                *_quantiles(took[place]), _median(waits[place]), retried[place], reused[place]
            )
            for name, place in self.steps.items()
        }

    def trace(self, name: str, now: float) -> Iterator[str]:
        """Yield a trace of the tasks in Chrome's trace format, which Perfetto displays, as pieces
        of JSON text.

        Each host is a process of the trace, with as many threads as it had tasks at the same time.
        Running tasks end at `now`.

        Args:
            name: The pathspec of the run, used as the title of the trace.
            now: The current time, in seconds since the epoch.
        """
        hosts: dict[str, int] = {}
        host_of = [hosts.setdefault(host, len(hosts)) for host, _ in self.workers]
        yield f'{{"displayTimeUnit":"ms","otherData":{{"run":{json.dumps(name)}}},"traceEvents":[\n'
        named = [
            {"ph": "M", "name": "process_name", "pid": place, "args": {"name": host or "this host"}}
            for host, place in hosts.items()
        ]
        yield ",\n".join(map(json.dumps, named))
        steps = [*self.steps]
        lanes: list[list[tuple[float, int]]] = [[] for _ in hosts]
        started = [row for row, at in enumerate(self.start) if at == at]
        started.sort(key=self.start.__getitem__)
        for chunk in range(0, len(started), _CHUNK):
            lines = []
            for row in started[chunk : chunk + _CHUNK]:
                start, end = self.start[row], self.end[row]
                over = end if end == end else max(start, now - self.base)
                host, step = host_of[self.worker[row]], steps[self.step[row]]
                details = {
                    "state": STATES[self.state[row]],
                    "waited_seconds": round(max(0.0, start - self.ready[row]), 3),
                    "reused": bool(self.flags[row] & REUSED),
                    "retried": bool(self.flags[row] & RETRIED),
                }
                event = {
                    "ph": "X", "name": f"{step}/{self.task[row]}", "cat": step, "pid": host,
                    "tid": _lane(lanes[host], start, over), "ts": round(start * 1e6),
                    "dur": round((over - start) * 1e6), "args": details,
                }  # fmt: skip
                lines.append(json.dumps(event))
            yield ",\n" + ",\n".join(lines)
        yield "\n]}\n"

    def page(
        self, step: str | None, state: str | None, sort: str, offset: int, limit: int
    ) -> tuple[int, list[int]]:
        """Return the number of tasks that match, and the task numbers of one page of them, sorted.

        Args:
            step: The name of the step; None for all steps.
            state: The state of the tasks; None for all.
            sort: `task`, `started`, `duration` or `wait`, with `-` before it for the largest first.
            offset: The number of tasks before the page.
            limit: The maximum size of the page.
        """
        key = (step, state, sort)
        order = self._orders.get(key)
        if order is None:
            rows: Iterable[int] = range(len(self))
            if step is not None:
                place = self.steps.get(step, -1)
                rows = [row for row, each in enumerate(self.step) if each == place]
            if state is not None:
                at = STATES.index(state)
                rows = [row for row in rows if self.state[row] == at]
            order = self._orders[key] = self._order(rows, sort)
            if len(self._orders) > _ORDERS:
                self._orders.popitem(last=False)
        return len(order), [self.task[row] for row in order[offset : offset + limit]]

    def _order(self, rows: Iterable[int], sort: str) -> Sequence[int]:
        name, backwards = sort.removeprefix("-"), sort.startswith("-")
        keys = self._sort_keys(name)
        return array("I", sorted(rows, key=keys.__getitem__, reverse=backwards))

    def _sort_keys(self, name: str) -> Sequence[tuple[float, int] | float]:
        """Return the sort key of each row. NaN would break the order, so a task without the time
        sorts first."""
        if name == "task":
            return self.task
        start, other = (self.end, self.start) if name == "duration" else (self.start, self.ready)
        if name == "started":
            values = [*self.start]
        else:
            values = [late - early for late, early in zip(start, other, strict=True)]
        return [
            (value if value == value else -1.0, task)
            for value, task in zip(values, self.task, strict=True)
        ]


def _lane(ends: list[tuple[float, int]], start: float, end: float) -> int:
    """Return a lane for a task beside those that run at the same time, and keep its end in the heap
    `ends`. Tasks must be passed in the order of their starts; the lane that became free first is
    reused."""
    if ends and ends[0][0] <= start:
        lane = ends[0][1]
        heapq.heapreplace(ends, (end, lane))
    else:
        lane = len(ends)
        heapq.heappush(ends, (end, lane))
    return lane


def _since(base: float, times: Sequence[float | None]) -> list[float]:
    """Return times as seconds after `base`; NaN for None."""
    if None in times:
        return [nan if at is None else at - base for at in times]
    return [at - base for at in cast("Sequence[float]", times)]


def _flags(reused: bool, attempt: int) -> int:
    return (REUSED if reused else 0) | (RETRIED if attempt else 0)


def _quantiles(values: array[float]) -> tuple[float | None, float | None, float | None]:
    if not values:
        return None, None, None
    ordered = sorted(values)
    last = len(ordered) - 1
    return ordered[last // 2], ordered[round(last * 0.95)], ordered[-1]


def _median(values: array[float]) -> float | None:
    return sorted(values)[(len(values) - 1) // 2] if values else None


def _place(names: dict[T, int], name: T) -> int:
    place = names.get(name)
    if place is None:
        place = len(names)
        if place > _MOST_NAMES:
            return _MOST_NAMES
        names[name] = place
    return place


class _Kept:
    """A cache entry: the columns of one run and its latest statistics, with the version of the run,
    the time of the computation and its duration."""

    def __init__(self, run: RunRecord) -> None:
        self.lock = threading.Lock()
        self.columns = Columns(run.created_at)
        # A separate lock: reading the columns must not wait for the statistics.
        self.figuring = threading.Lock()
        self.figures: dict[str, StepFigures] = {}
        self.found_at = (-1, float("-inf"), 0.0)


class ColumnsCache:
    """A thread-safe cache of the columns of the most recently requested runs."""

    def __init__(self, metadata: MetadataStore, clock: Clock) -> None:
        self._metadata = metadata
        self._clock = clock
        self._lock = threading.Lock()
        self._found: OrderedDict[int, _Kept] = OrderedDict()

    def read(self, run: RunRecord, since: int | None = None) -> bytes:
        """Return the encoded columns of a run: all rows, or those changed after version `since`.

        Args:
            run: The current record of the run; its version decides whether the cache is up to date.
            since: The version that the client already has; None for none.
        """
        with self.fresh(run) as columns:
            if since is None or since > columns.version:
                return columns.encode()
            if since == columns.version:
                return columns.encode([])
            # Read from the metadata again: the cache does not record when each row changed.
            return columns.encode(columns.update(self._metadata.task_columns(run.key, since)))

    def figures(self, run: RunRecord) -> dict[str, StepFigures]:
        """Return the statistics of a run's steps, which for an active run may be slightly out of
        date: computing them takes a pass over all its tasks.

        Args:
            run: The current record of the run.
        """
        kept = self._kept(run)
        version, at, cost = kept.found_at
        goes_on = run.state not in TERMINAL_RUN_STATES
        if version == run.version:
            return kept.figures
        if goes_on and self._clock.monotonic() - at < cost * _SHARE:
            return kept.figures
        with kept.figuring:
            if kept.found_at[0] != run.version:
                with self.fresh(run) as columns:
                    copied = columns.copy()
                begun = self._clock.monotonic()
                kept.figures = copied.figures()
                now = self._clock.monotonic()
                kept.found_at = (run.version, now, now - begun)
            return kept.figures

    def _kept(self, run: RunRecord) -> _Kept:
        with self._lock:
            kept = self._found.pop(run.key, None) or _Kept(run)
            self._found[run.key] = kept
            sizes = sum(len(each.columns) for each in self._found.values())
            while len(self._found) > 1 and sizes > _KEPT:
                _, gone = self._found.popitem(last=False)
                sizes -= len(gone.columns)
            return kept

    @contextmanager
    def fresh(self, run: RunRecord) -> Iterator[Columns]:
        """Yield the up-to-date columns of a run, locked for this thread.

        Args:
            run: The current record of the run; its version decides whether the cache is up to date.
        """
        kept = self._kept(run)
        with kept.lock:
            columns = kept.columns
            if columns.version < run.version:
                try:
                    columns.update(self._metadata.task_columns(run.key, columns.version))
                except BaseException:
                    # The columns may have different lengths now: read all of them again next time.
                    kept.columns = Columns(run.created_at)
                    raise
                # The run's version was read before its tasks: tasks written in between are read
                # again next time.
                columns.version = run.version
            yield columns
