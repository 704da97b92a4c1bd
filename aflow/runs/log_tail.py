"""Follow the output of a run's tasks, by polling the metadata store and the datastore.

Any process with access to both stores can follow a run on any host. Output is available once it is
recorded, about half a second after it was printed. Lines are not kept after they were yielded, so
memory use does not depend on the size of the run, and no query stays open between two lines.

The position is a short string with which another process can resume the tail after any line: the
greatest task number so far, then for each task that may still print something a `_` and its
position in dotted notation (task, attempt, chunks, lines of the next chunk; without zeros at the
end).

The numbers of tasks increase with time, except in runs of deployed flows: there, a task with a
smaller number may be recorded later. Such tasks are found by the version of the run in which they
were recorded, which follows the task number in the position.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakValueDictionary

from aflow.errors import InvalidInput, ObjectNotFound, StorageError
from aflow.scheduler.states import TERMINAL_RUN_STATES, AttemptState
from aflow.storage.logs import LogRecord, chunk_name, read_chunk

if TYPE_CHECKING:
    from aflow.metadata.base import AttemptRecord, MetadataStore, RunRecord, TaskView
    from aflow.storage.base import ObjectStore


class TaskLine(NamedTuple):
    """A line that an attempt printed. `text` has no newline; `at` is in seconds since the epoch."""

    step: str
    task: int
    attempt: int
    stream: str
    at: float
    text: bytes


@dataclass(slots=True)
class _Open:
    """The position in the log of a task that may still print something."""

    task: int
    step: str
    attempt: int = 0
    chunks: int = 0
    lines: int = 0

    def position(self) -> str:
        numbers = f"_{self.task}.{self.attempt}.{self.chunks}.{self.lines}"
        while numbers.endswith(".0"):
            numbers = numbers[:-2]
        return numbers


class _Chunk:
    """A chunk of a log. A class of its own because `bytes` cannot be weakly referenced."""

    __slots__ = ("__weakref__", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data


# The chunks being read, by store and name. Chunks are immutable, so all tails of one run share
# them, however slowly each is read.
_chunks: WeakValueDictionary[tuple[str, str], _Chunk] = WeakValueDictionary()

_POSITION = re.compile(r"\d{1,18}(?:\.\d{1,9})?(?:_\d{1,18}(?:\.\d{1,9}){0,3})*", re.ASCII)
_PAGE = 500  # tasks per query


class LogTail:
    """The output of a run, of one of its steps, or of one task. All methods block.

    `poll` yields new output since the last call. If `has_ended` returned True before a call of
    `poll`, that call yields the rest. `after` is the `position` of an earlier tail from which to
    resume; raises InvalidInput if it is malformed."""

    def __init__(
        self,
        metadata: MetadataStore,
        store: ObjectStore,
        run: RunRecord,
        step: str | None = None,
        task: int | None = None,
        after: str = "",
    ) -> None:
        self._metadata = metadata
        self._store = store
        self._run = run
        self._step = step
        self._task = task
        self._seen = 0 if task is None else task - 1  # the greatest task number so far
        self._open: dict[int, _Open] = {}
        self._others = ""  # the position without the task that is being read
        self._now: _Open | None = None
        self._before: list[list[int]] = []  # positions from `after` of tasks not looked up yet
        self._is_unordered = task is None and "engine" in run.settings
        self._version: int | None = None  # of the run at the last poll, if its tasks are unordered
        self._handled: set[int] = set()  # the tasks that the last poll has read then
        if after:
            if not _POSITION.fullmatch(after):
                raise InvalidInput(f"{after[:80]!r} is not a place in the output of a run.")
            seen, *tasks = after.split("_")
            seen, _, version = seen.partition(".")
            self._seen, self._version = int(seen), int(version) if version else None
            self._before = [[*map(int, each.split("."))] for each in tasks]

    @property
    def position(self) -> str:
        """The position after the last line that `poll` yielded."""
        if self._now is None:
            return self._all_but(None)
        return self._others + self._now.position()

    def _all_but(self, task: _Open | None) -> str:
        seen = f"{self._seen}" if self._version is None else f"{self._seen}.{self._version}"
        others = (each.position() for each in self._open.values() if each is not task)
        return "".join((seen, *others))

    def has_ended(self) -> bool:
        """Return whether the run has ended, or no longer exists. Raises MetadataError."""
        now = self._metadata.run(self._run.flow, self._run.run)
        return now is None or now.state in TERMINAL_RUN_STATES

    def poll(self) -> Iterator[TaskLine]:
        """Yield new lines, task by task. Raises MetadataError and StorageError."""
        self._look_up()
        now = self._metadata.run(self._run.flow, self._run.run) if self._is_unordered else None
        handled = {*self._open}
        for each in [*self._open.values()]:
            yield from self._lines_of(each)
        if self._is_unordered and self._version is not None:
            for view in self._late_tasks(self._version, handled | self._handled):
                handled.add(view.task.task)
                yield from self._lines_of_new(view)
        while page := self._new_tasks():
            for view in page:
                self._seen = view.task.task
                if now is not None:
                    handled.add(view.task.task)
                yield from self._lines_of_new(view)
        if now is not None:
            self._version, self._handled = now.version, handled

    def _late_tasks(self, version: int, handled: set[int]) -> Iterator[TaskView]:
        """Yield the tasks recorded since a version whose numbers were passed before."""
        numbers = {
            each.task
            for each in self._metadata.task_columns(self._run.key, version)
            if each.task <= self._seen and self._step in (None, each.step)
        }
        for number in sorted(numbers - handled):
            view = self._metadata.task(self._run.key, number)
            if view is not None:
                yield view

    def _lines_of_new(self, view: TaskView) -> Iterator[TaskLine]:
        if not _is_silent(view):
            found = self._open[view.task.task] = _Open(view.task.task, view.task.step)
            yield from self._lines_of(found)

    def _look_up(self) -> None:
        for number, *position in self._before:
            found = self._metadata.task(self._run.key, number)
            if found is not None and self._step in (None, found.task.step):
                self._open[number] = _Open(number, found.task.step, *position)
        self._before = []

    def _new_tasks(self) -> list[TaskView]:
        key, after = self._run.key, self._seen
        if self._task is not None:
            found = None if self._task <= after else self._metadata.task(key, self._task)
            return [] if found is None else [found]
        return [*self._metadata.tasks(key, step=self._step, after=after, limit=_PAGE, light=True)]

    def _lines_of(self, task: _Open) -> Iterator[TaskLine]:
        self._now, self._others = task, self._all_but(task)
        attempts = self._metadata.attempts(self._run.key, task.task)
        for attempt in attempts:
            if attempt.attempt < task.attempt:
                continue
            if attempt.attempt > task.attempt:
                task.attempt, task.chunks, task.lines = attempt.attempt, 0, 0
            for lines in self._chunks(task, attempt):
                for line in islice(lines, task.lines, None):
                    task.lines += 1
                    where = (task.step, task.task, attempt.attempt)
                    yield TaskLine(*where, line.stream, line.at, line.text)
                task.chunks, task.lines = task.chunks + 1, 0
        last = attempts[-1] if attempts else None
        if last is not None and last.state is AttemptState.SUCCEEDED:
            del self._open[task.task]
        self._now = None

    def _chunks(self, task: _Open, attempt: AttemptRecord) -> Iterator[Iterator[LogRecord]]:
        """Yield the chunks that have not been yielded completely, each as an iterator of lines."""
        if attempt.log is not None:
            if task.chunks == 0:  # an inline log is a single chunk
                yield _readable(attempt.log)
            return
        where = (self._run.flow, self._run.run, task.step, task.task, attempt.attempt)
        while task.chunks < attempt.log_chunks:
            chunk = self._chunk(chunk_name(*where, task.chunks), attempt.started_at or 0.0)
            yield _readable(chunk.data)

    def _chunk(self, name: str, at: float) -> _Chunk:
        key = (self._store.url, name)
        chunk = _chunks.get(key)
        if chunk is None:
            try:
                chunk = _Chunk(bytes(self._store.get(name)))
            except ObjectNotFound:
                if self._metadata.run(self._run.flow, self._run.run) is None:
                    return _Chunk(b"")  # the run was deleted in the meantime
                return _Chunk(b"%016de %b\n" % (int(at * 1e6), _LOST))
            _chunks[key] = chunk
        return chunk


_LOST = b"(Output is missing here: a part of the log is not in the datastore any more.)"
_DAMAGED = b"(Output is missing here: a part of the log is damaged and cannot be read.)"


def _readable(data: bytes) -> Iterator[LogRecord]:
    """Yield the lines of a chunk. If it is damaged, a line reports that instead of the rest, so
    that the other chunks and tasks can still be read."""
    at = 0.0
    try:
        for line in read_chunk(data):
            at = line.at
            yield line
    except StorageError:
        yield LogRecord(at, "stderr", _DAMAGED)


def _is_silent(view: TaskView) -> bool:
    """Return whether a task has ended without output. Its log is not queried: in a run of a hundred
    thousand tasks most print nothing."""
    if view.task.origin:  # a reused result: its output is in the log of the origin
        return True
    last = view.attempt
    return (
        last is not None
        and view.attempts == 1
        and last.state is AttemptState.SUCCEEDED
        and not (last.log_chunks or last.stdout_size or last.stderr_size)
    )
