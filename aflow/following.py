"""What the tasks of a run print, while they print it: read from the records, again and again.

Whoever may read the metadata and the datastore may follow a run, wherever it goes on; output comes
as soon as it is recorded, which is about a second after it was printed. What has been told is not
kept: a run of any size is followed in little memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from aflow.errors import ObjectNotFound
from aflow.scheduler.states import TERMINAL_RUN_STATES, AttemptState
from aflow.storage.logs import chunk_name, read_log

if TYPE_CHECKING:
    from aflow.metadata.base import AttemptRecord, MetadataStore, RunRecord, TaskRecord
    from aflow.storage.base import ObjectStore
    from aflow.storage.logs import LogRecord


class TaskLine(NamedTuple):
    """A line that an attempt has printed. `text` is without its newline; `at` in seconds."""

    step: str
    task: int
    attempt: int
    stream: str
    at: float
    text: bytes


class _Open:
    """A task that may still print something, and how far it has been told."""

    __slots__ = ("attempt", "chunks", "step", "task")

    def __init__(self, task: TaskRecord) -> None:
        self.task = task.task
        self.step = task.step
        self.attempt = 0
        self.chunks = 0


class Following:
    """The output of a run, of one of its steps, or of one task. All calls block.

    `poll` tells what has come since the last call; when `has_ended` was True before a `poll`, that
    one told the last of it."""

    def __init__(
        self,
        metadata: MetadataStore,
        store: ObjectStore,
        run: RunRecord,
        step: str | None = None,
        task: int | None = None,
    ) -> None:
        self._metadata = metadata
        self._store = store
        self._run = run
        self._step = step
        self._task = task
        self._seen = 0 if task is None else task - 1  # the greatest number of a task so far
        self._open: dict[int, _Open] = {}

    def has_ended(self) -> bool:
        """Whether the run has ended, or is not there any more. Raises MetadataError."""
        now = self._metadata.run(self._run.flow, self._run.run)
        return now is None or now.state in TERMINAL_RUN_STATES

    def poll(self) -> Iterator[TaskLine]:
        """What has come, task by task. Raises MetadataError and StorageError."""
        for task in self._new_tasks():
            self._open[task.task] = _Open(task)
        for each in [*self._open.values()]:
            yield from self._lines_of(each)

    def _new_tasks(self) -> Iterator[TaskRecord]:
        run_key = self._run.key
        if self._task is not None:
            found = None if self._task <= self._seen else self._metadata.task(run_key, self._task)
            if found is not None:
                self._seen = self._task
                yield found.task
            return
        for view in self._metadata.tasks(run_key, step=self._step, after=self._seen, light=True):
            self._seen = view.task.task
            if not view.task.origin:  # what was taken over has printed nothing here
                yield view.task

    def _lines_of(self, task: _Open) -> Iterator[TaskLine]:
        attempts = self._metadata.attempts(self._run.key, task.task)
        for attempt in attempts:
            if attempt.attempt < task.attempt:
                continue
            if attempt.attempt > task.attempt:
                task.attempt, task.chunks = attempt.attempt, 0
            for line in self._records(task, attempt):
                yield TaskLine(task.step, task.task, attempt.attempt, *_told(line))
        last = attempts[-1] if attempts else None
        if last is not None and last.state is AttemptState.SUCCEEDED:
            del self._open[task.task]

    def _records(self, task: _Open, attempt: AttemptRecord) -> Iterator[LogRecord]:
        if attempt.log is not None and task.chunks == 0:
            task.chunks = 1  # it is told whole, once
            yield from read_log(attempt.log)
            return
        if attempt.log is None and attempt.log_chunks > task.chunks:
            first, task.chunks = task.chunks, attempt.log_chunks
            where = (self._run.flow, self._run.run, task.step, task.task, attempt.attempt)
            names = [chunk_name(*where, number) for number in range(first, attempt.log_chunks)]
            yield from read_log(data for name in names if (data := self._chunk(name)) is not None)

    def _chunk(self, name: str) -> bytes | None:
        try:
            return bytes(self._store.get(name))
        except ObjectNotFound:  # the run was deleted meanwhile
            return None


def _told(line: LogRecord) -> tuple[str, float, bytes]:
    return line.stream, line.at, line.text
