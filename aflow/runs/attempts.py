"""The state that a driver keeps of live attempts: their records, logs and input manifests."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING

from aflow._core.ids import PARAMETERS_TASK
from aflow._core.records import NamedTuple, dataclass, field
from aflow._core.threads import in_thread
from aflow.metadata.base import AttemptRecord
from aflow.scheduler.messages import FromBranches, FromForeach, FromTask, Inputs
from aflow.scheduler.states import AttemptState
from aflow.storage.artifacts import Manifest
from aflow.storage.logs import LineSplitter, LogBuffer, chunk_name

if TYPE_CHECKING:
    from aflow.executors.base import Usage
    from aflow.storage.base import ObjectStore
    from aflow.task.spec import AttemptKey, AttemptReport


@cache
def _host() -> str:
    return socket.gethostname()


@dataclass(slots=True)
class LiveAttempt:
    """An attempt that was launched and has not been recorded as ended.

    `fallback` is True if @catch settles its task; `is_over` is True after its end was reported,
    while its log is still being stored.
    """

    step: str
    fallback: bool
    is_over: bool = False
    handle: str = ""  # by which a later executor finds it again: a worker or a job
    host: str = field(default_factory=_host)  # this host, unless a worker reports another
    pid: int | None = None
    started_at: float | None = None
    chunks: int = 0  # stored chunks of its log
    manifest: bytes | None = None  # of the artifacts that it has stored so far

    def go_on(self, record: AttemptRecord) -> None:
        """Restore the state that an earlier coordinator of the run recorded.

        Args:
            record: The record of the attempt by the earlier coordinator.
        """
        self.handle, self.pid, self.started_at = record.handle, record.pid, record.started_at
        self.chunks, self.manifest = record.log_chunks, record.manifest
        self.host = record.host or self.host

    def running(self, task: int, attempt: int) -> AttemptRecord:
        """Return the record of an attempt that has not ended.

        Args:
            task: The number of the task within its run.
            attempt: The number of the attempt, from 0.
        """
        return AttemptRecord(
            task,
            attempt,
            AttemptState.QUEUED if self.started_at is None else AttemptState.RUNNING,
            self.started_at,
            manifest=self.manifest,
            log_chunks=self.chunks,
            host=self.host,
            pid=self.pid,
            handle=self.handle,
        )

    def ended(
        self, report: AttemptReport, usage: Usage | None, log: Kept | None, now: float
    ) -> AttemptRecord:
        """Return the record of the attempt after it has ended.

        Args:
            report: How the attempt ended.
            usage: Memory and CPU usage of the attempt; None if unknown.
            log: The final state of the log; None if the attempt wrote nothing.
            now: The present time, in seconds since the epoch.
        """
        return AttemptRecord(
            task=report.task,
            attempt=report.attempt,
            state=AttemptState(report.state),
            started_at=self.started_at,
            # The clocks of the hosts that reported the start and the end may differ.
            finished_at=max(report.finished_at or now, self.started_at or 0.0),
            reason=report.reason,
            manifest=report.manifest,
            log=log.inline if log else None,
            log_chunks=log.chunks if log else 0,
            stdout_size=log.stdout_size if log else 0,
            stderr_size=log.stderr_size if log else 0,
            host=self.host,
            pid=self.pid,
            handle=self.handle,
            max_rss=usage.max_rss if usage else None,
            cpu=usage.cpu if usage else None,
        )


# The logs of live attempts: split into lines as they arrive, buffered and stored.
#
# A small log becomes part of the attempt's record, which needs no object in the store. The log of
# an attempt that runs for longer, or prints more, is stored in numbered chunks shortly after it
# was written, so that readers can follow it. Each chunk costs an object and a commit: if many
# attempts write, or the run has many chunks already, chunks are larger and stored once a second.


MAX_INLINE = 8192  # bytes of log that are stored inline in the attempt's record
CHUNK = 1 << 20  # bytes after which a chunk is stored immediately
SOON = 0.4  # seconds between two flushes ...
LATER = 1.0  # ... or between these, if that would store too many chunks
FEW = 32  # attempts that have written since the last flush; with more, LATER applies
MANY = 2000  # chunks of a run; with more, LATER applies
FIRST_STATE = 1.0  # seconds until the state of a progress bar is shown
NEXT_STATE = 5.0  # seconds between two states of a progress bar

Line = tuple[float, int, bytes, bool]  # time, index of the stream, text, whether it is complete


class Kept(NamedTuple):
    """The final state of a log when its attempt has ended.

    If `unstored` is not None, the last chunk is still being stored: the end of the attempt must be
    recorded only after that.
    """

    inline: bytes | None
    chunks: int
    stdout_size: int
    stderr_size: int
    unstored: asyncio.Future[None] | None


@dataclass(slots=True)
class _Log:
    step: str
    buffer: LogBuffer
    splitters: tuple[LineSplitter, ...] = field(
        default_factory=lambda: (LineSplitter(), LineSplitter())
    )
    chunks: int = 0
    latest: asyncio.Future[None] | None = None  # the storing of the latest chunk
    # By stream: the time at which the state of its progress bar is shown next.
    show_at: list[float | None] = field(default_factory=lambda: [None, None])


class AttemptLogs:
    """The logs of one run's live attempts.

    `stored(task, attempt, chunks, error)` is called on the event loop after each chunk, with the
    number of stored chunks, or the error if this chunk could not be stored.
    """

    def __init__(
        self,
        store: ObjectStore,
        flow: str,
        run: str,
        max_size: int,
        stored: Callable[[int, int, int, Exception | None], None],
    ) -> None:
        self._store = store
        self._flow = flow
        self._run = run
        self._max_size = max_size
        self._stored = stored
        self._logs: dict[AttemptKey, _Log] = {}
        self._loop = asyncio.get_running_loop()
        self._thread: ThreadPoolExecutor | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._on_their_way = 0  # chunks that are being stored
        self._stored_chunks = 0  # chunks since the start, including those being stored

    def go_on(self, step: str, task: int, attempt: int, chunks: int) -> None:
        """Continue the log of an attempt of which an earlier coordinator stored some chunks.

        Args:
            step: The name of the step, for the names of the chunks.
            task: The number of the task within its run.
            attempt: The number of the attempt, from 0.
            chunks: The number of chunks that are stored already.
        """
        self._opened(step, task, attempt).chunks = chunks

    def feed(
        self, step: str, task: int, attempt: int, stream: int, at: float, chunk: bytes
    ) -> list[Line]:
        """Add output of an attempt to its log.

        Args:
            step: The name of the step, for the names of the chunks.
            task: The number of the task within its run.
            attempt: The number of the attempt, from 0.
            stream: 0 for stdout, 1 for stderr.
            at: When the output was written, in seconds since the epoch.
            chunk: The bytes that were written; a line may be spread over several chunks.

        Returns:
            The lines that this chunk completes, and at intervals the current state of a line that
            is rewritten in place (a progress bar), which is not stored.
        """
        log = self._logs.get((task, attempt)) or self._opened(step, task, attempt)
        lines = self._add(log, stream, at, log.splitters[stream].feed(chunk))
        if log.buffer.size >= CHUNK:
            self._store_chunk((task, attempt), log)
        return lines + self._state(log, stream, at)

    def _opened(self, step: str, task: int, attempt: int) -> _Log:
        log = self._logs[(task, attempt)] = _Log(step, LogBuffer(self._max_size))
        if self._timer is None:
            self._timer = self._loop.call_later(SOON, self._flush)
        return log

    @staticmethod
    def _state(log: _Log, stream: int, at: float) -> list[Line]:
        state = log.splitters[stream].state
        due = log.show_at[stream]
        if not state:
            log.show_at[stream] = None
        elif due is None:  # a progress bar that finishes quickly is not shown before its end
            log.show_at[stream] = at + FIRST_STATE
        elif at >= due:
            log.show_at[stream] = at + NEXT_STATE
            return [(at, stream, state, True)]
        return []

    def _add(
        self, log: _Log, stream: int, at: float, texts: list[tuple[bytes, bool]]
    ) -> list[Line]:
        lines = []
        for text, whole in texts:
            log.buffer.add(at, stream, text, whole)
            lines.append((at, stream, text, whole))
        return lines

    def finish(self, task: int, attempt: int, at: float) -> tuple[list[Line], Kept | None]:
        """Return the incomplete last lines of an attempt that has ended, and the final state of its
        log; None if the attempt wrote nothing.

        Args:
            task: The number of the task within its run.
            attempt: The number of the attempt, from 0.
            at: The end of the attempt, in seconds since the epoch.
        """
        log = self._logs.pop((task, attempt), None)
        if log is None:
            return [], None
        lines = []
        for stream, splitter in enumerate(log.splitters):
            lines += self._add(log, stream, at, splitter.finish())
        buffer = log.buffer
        inline = unstored = None
        if log.chunks == 0 and buffer.size <= MAX_INLINE:
            inline = buffer.take_chunk()
        elif buffer.size:
            unstored = self._store_chunk((task, attempt), log)
        elif log.latest is not None and not log.latest.done():
            unstored = log.latest
        return lines, Kept(inline, log.chunks, buffer.stdout_size, buffer.stderr_size, unstored)

    def _flush(self) -> None:
        """Store the buffered output of all attempts, periodically while there are logs.

        Nothing is stored while earlier chunks are in flight: a slow store gets larger chunks
        instead of a growing queue.
        """
        wrote = 0
        if not self._on_their_way:
            for attempt_key, log in self._logs.items():
                if log.buffer.size:
                    self._store_chunk(attempt_key, log)
                    wrote += 1
        pause = SOON if wrote <= FEW and self._stored_chunks <= MANY else LATER
        self._timer = self._loop.call_later(pause, self._flush) if self._logs else None

    def _store_chunk(self, attempt_key: AttemptKey, log: _Log) -> asyncio.Future[None]:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "aflow-logs")  # one thread keeps chunks in order
        name = chunk_name(self._flow, self._run, log.step, *attempt_key, log.chunks)
        log.chunks += 1
        chunks = log.chunks
        data = log.buffer.take_chunk()
        future = self._loop.run_in_executor(self._thread, self._store.put, name, [data])
        self._on_their_way += 1
        self._stored_chunks += 1
        future.add_done_callback(lambda done: self._note(attempt_key, chunks, done))
        log.latest = future
        return future

    def _note(self, attempt_key: AttemptKey, chunks: int, future: asyncio.Future[None]) -> None:
        self._on_their_way -= 1
        error = future.exception()
        if isinstance(error, Exception) or error is None:
            self._stored(*attempt_key, chunks, error)
        else:
            raise error

    async def close(self) -> None:
        """Wait until all chunks are stored, and stop the thread."""
        if self._timer is not None:
            self._timer.cancel()
        if self._thread is not None:
            await in_thread(self._thread.shutdown)


# Manifests that are sent with the spec of an attempt, so that its process need not query for them.
#
# A task reads the manifests of its input tasks, and of the tasks that set the artifacts which these
# inherit. Small manifests that are in memory are sent; the process reads all others from the
# metadata store.


MAX_KEPT = 16 << 20  # bytes of manifests that are kept in memory
MAX_ALONG = 1 << 15  # bytes of manifests that are sent with one spec


class Handover:
    """A cache of the latest manifests of a run, to send to the tasks that read them."""

    def __init__(self, parameters: bytes) -> None:
        self._manifests: dict[int, bytes] = {}
        self._size = 0
        self._parameters = parameters
        self._latest: tuple[int, dict[int, bytes]] | None = None

    def keep(self, task: int, manifest: bytes) -> None:
        """Cache the new manifest of a task; the oldest ones are evicted.

        Args:
            task: The number of the task within its run.
            manifest: The encoded manifest.
        """
        if self._latest is not None and self._latest[0] == task:
            self._latest = None  # outdated: a foreach that is still growing has a new manifest
        self._size -= len(self._manifests.pop(task, b""))
        if len(manifest) > MAX_ALONG:
            return
        self._manifests[task] = manifest
        self._size += len(manifest)
        while self._size > MAX_KEPT:
            oldest = next(iter(self._manifests))
            self._size -= len(self._manifests.pop(oldest))

    def manifests_for(self, inputs: Inputs) -> dict[int, bytes]:
        """Return the manifests to send with the spec of a task, by task number.

        Args:
            inputs: The tasks whose artifacts are the inputs.
        """
        if type(inputs) is FromTask:
            # All tasks of a foreach have the same input, so the result is cached.
            if self._latest is None or self._latest[0] != inputs.task:
                self._latest = (inputs.task, self._collect((inputs.task,)))
            return self._latest[1]
        if type(inputs) is FromBranches:
            return self._collect(inputs.tasks)
        if type(inputs) is FromForeach:
            return self._collect((inputs.split,))
        return self._collect(())

    def _collect(self, tasks: Iterable[int]) -> dict[int, bytes]:
        read: list[int] = [PARAMETERS_TASK]
        for task in tasks:
            manifest = self._at_hand(task)
            if manifest is not None:
                read += [task, *Manifest.decode(manifest).inherited]
        along: dict[int, bytes] = {}
        room = MAX_ALONG
        for task in read:
            manifest = self._at_hand(task)
            if manifest is not None and task not in along and len(manifest) <= room:
                along[task] = manifest
                room -= len(manifest)
        return along

    def _at_hand(self, task: int) -> bytes | None:
        return self._parameters if task == PARAMETERS_TASK else self._manifests.get(task)
